"""Putting a model together: network, adversary, priors and Pyro module for one chain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pyro_armed import networks
from pyro_armed.adversary import Adversary, GroupClassifier, chance_accuracy, group_shares
from pyro_armed.batch import Batch
from pyro_armed.errors import ArgumentError
from pyro_armed.module import MixedEffectsModule
from pyro_armed.objective import AdversaryHead
from pyro_armed.priors import PriorTable
from pyro_armed.seeds import seeded
from pyro_armed.spec import LayerEffects, ModelSpec, Reconstruction

__all__ = ["LAST_LAYERS", "NetworkPlan", "build_adversary", "build_module", "is_classification"]

LAST_LAYERS = ("bayesian", "point")
CLASSES = ("binary", "categorical", "ordinal")
_EXAMPLE_ROWS = 4


@dataclass(frozen=True)
class NetworkPlan:
    """A network and what is known of it.

    Attributes
    ----------
    source : nn.Module or callable
        The user's network, or a function that makes one.
    output_layer : str or None
        Name of its last linear layer; None if it has none, or has one that is not to be Bayesian and whose
        input nobody asks for.
    n_features : int
        Width F of that layer's input; 0 without one.
    last_layer : str
        ``"bayesian"`` or ``"point"``.
    dtype : torch.dtype
        Precision of its weights; everything else is in double precision.
    layers : tuple of LayerEffects
        Group effects within it, with the layers' numbers of channels.
    reconstruction : Reconstruction or None
        Likelihood of its inputs, if it reconstructs them.
    """

    source: nn.Module | Callable[[], nn.Module]
    output_layer: str | None
    n_features: int
    last_layer: str
    dtype: torch.dtype
    layers: tuple[LayerEffects, ...] = ()
    reconstruction: Reconstruction | None = None

    @classmethod
    def inspect(
        cls,
        source: Any,
        spec: ModelSpec,
        data: Batch,
        last_layer: str,
        reconstruction: str | Reconstruction | None = None,
    ) -> NetworkPlan:
        """Try the network on a few rows.

        Parameters
        ----------
        source : nn.Module or callable
            The user's network.
        spec : ModelSpec
            The model's structure.
        data : Batch
            Training rows.
        last_layer : str
            How the last layer's weights are treated.
        reconstruction : str or Reconstruction, optional
            Likelihood of the inputs.

        Returns
        -------
        NetworkPlan

        Raises
        ------
        ArgumentError
            Where the network does not fit the data, has no linear output layer although one is needed, none
            of the layers that are to have group effects, or no reconstruction although one is asked for.
        """
        if last_layer not in LAST_LAYERS:
            raise ArgumentError(f"last_layer={last_layer!r} is not 'bayesian' or 'point'.")
        network = _instance(source, spec, data, seed=0)
        dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
        example = data.inputs[:_EXAMPLE_ROWS].to(dtype)  # type: ignore[index]
        layer, why = _output_layer(network.eval(), example)
        with torch.no_grad():
            networks.network_output(network, example, columns=spec.n_predictors)
        last = layer if last_layer == "bayesian" else None
        found = cls(
            source, None, 0, "point", dtype, *_within(network, spec, data, example, reconstruction, last)
        )
        if layer is None:
            if why is not None and any(block.uses_features for block in spec.blocks):
                raise why
            return found
        with torch.no_grad():
            features, _ = networks.features_and_output(network, example, layer)
        return replace(found, output_layer=layer, n_features=features.shape[1], last_layer=last_layer)

    def complete(self, spec: ModelSpec) -> ModelSpec:
        """The specification with the width of the last hidden layer, and coefficients on it if Bayesian."""
        spec = spec.with_features(self.n_features, coefficients=self.last_layer == "bayesian")
        return replace(spec, layers=self.layers, reconstruction=self.reconstruction)

    def instance(self, spec: ModelSpec, data: Batch, seed: int) -> nn.Module:
        """A network for one chain; see `ARMED.fit` for what restarts share."""
        return _instance(self.source, spec, data, seed)


def _output_layer(network: nn.Module, example: Tensor) -> tuple[str | None, ArgumentError | None]:
    """Name of the last linear layer, or None and why; raises where the network cannot be run at all."""
    try:
        return networks.find_output_layer(network, example), None
    except ArgumentError as error:
        if isinstance(error.__cause__, Exception) or any(map(is_lazy, network.parameters())):
            raise
        return None, error


def _within(
    network: nn.Module,
    spec: ModelSpec,
    data: Batch,
    example: Tensor,
    reconstruction: str | Reconstruction | None,
    output_layer: str | None,
) -> tuple[tuple[LayerEffects, ...], Reconstruction | None]:
    """Group effects within the network with their sizes, and the likelihood of what it reconstructs."""
    wanted = {one.layer: one.normalize for one in spec.layers}
    shapes = networks.layer_shapes(network, example, wanted, output_layer)
    layers = tuple(
        replace(one, channels=shapes[one.layer].channels, spread=shapes[one.layer].spread)
        for one in spec.layers
    )
    with torch.no_grad():
        rebuilt = networks.run_network(network, example).reconstruction
    if rebuilt is None:
        if reconstruction is not None:
            raise ArgumentError(
                "reconstruction=... needs a network that returns two tensors, its output and a "
                "reconstruction of the input's shape; this one returns one."
            )
        return layers, None
    if not isinstance(reconstruction, Reconstruction):
        reconstruction = Reconstruction(reconstruction or "normal")
    inputs: Tensor = data.inputs  # type: ignore[assignment]
    if reconstruction.likelihood == "bernoulli" and not bool(((inputs == 0) | (inputs == 1)).all()):
        raise ArgumentError(
            "reconstruction='bernoulli' is for inputs that are 0 or 1; x has others: use 'normal'."
        )
    return layers, replace(reconstruction, scale=float(inputs.double().std()) or 1.0)


def _instance(source: Any, spec: ModelSpec, data: Batch, seed: int) -> nn.Module:
    if data.inputs is None:
        raise ArgumentError("network=... needs inputs; leave it out for a linear predictor.")
    if isinstance(source, nn.Module):
        network = networks.copy_network(source)
    elif callable(source):
        with seeded(seed):
            network = source()
        if not isinstance(network, nn.Module):
            raise ArgumentError(f"network=... must return a torch.nn.Module, not {type(network).__name__}.")
    else:
        raise ArgumentError(
            f"network={source!r} must be a torch.nn.Module, a function that makes one, or None."
        )
    network = network.to(data.inputs.device)
    if isinstance(network, networks.BuiltIn):
        if not network.is_built:
            network.build_for(data.inputs.shape[1:], spec.n_predictors, seed=seed)
            network = network.to(data.inputs.device)
        elif seed:
            networks.reinitialise(network, seed)
    return network


def build_module(
    spec: ModelSpec, priors: Mapping[str, Any], plan: NetworkPlan | None, data: Batch, seed: int
) -> MixedEffectsModule:
    """The Pyro model of one chain.

    Parameters
    ----------
    spec : ModelSpec
        The model's structure, the number of features included.
    priors : mapping of str to Distribution
        The user's priors.
    plan : NetworkPlan, optional
        The network.
    data : Batch
        Training rows.
    seed : int
        Seed of the network's first weights.

    Returns
    -------
    MixedEffectsModule
    """
    table = PriorTable(spec, priors)
    if plan is None:
        return MixedEffectsModule(spec, table, data=data)
    network = plan.instance(spec, data, seed)
    return MixedEffectsModule(spec, table, network, plan.output_layer, data)


def build_adversary(
    settings: Adversary | None, module: MixedEffectsModule, data: Batch, seed: int
) -> AdversaryHead | None:
    """The group classifiers of one chain.

    Parameters
    ----------
    settings : Adversary, optional
        The user's settings.
    module : MixedEffectsModule
        The Pyro model with its network.
    data : Batch
        Training rows; their device is taken over.
    seed : int
        Seed of the classifiers' first weights.

    Returns
    -------
    AdversaryHead or None

    Raises
    ------
    ArgumentError
        Where the model has no such grouping factor or layer, or no hidden activations.
    """
    if settings is None:
        return None
    spec = module.spec
    groups = _adversary_groups(settings, spec)
    conditional = settings.is_conditional(is_classification(spec))
    levels = len(spec.levels) or None
    label_dim = 0 if not conditional else (levels if levels is not None and levels > 2 else 1)
    width = _adversary_width(settings, module, data)
    device = data.inputs.device  # type: ignore[union-attr]
    classifiers = nn.ModuleList(
        GroupClassifier(width, spec.group(group).size, settings.hidden, label_dim, seed=seed + position).to(
            device
        )
        for position, group in enumerate(groups)
    )
    classes = data.response if conditional and spec.family.response in CLASSES else None
    chance = tuple(chance_accuracy(data.codes[group], classes, data.weights) for group in groups)
    shares = _group_shares(settings, conditional, module, data, groups)
    return AdversaryHead(settings, classifiers, groups, conditional, levels, chance, shares)


def _group_shares(
    settings: Adversary, conditional: bool, module: MixedEffectsModule, data: Batch, groups: Sequence[str]
) -> tuple[Tensor, ...]:
    """What the adversary's kernel needs to know of all rows."""
    if not settings.independence:
        return ()
    spec = module.spec
    if conditional and spec.family.response not in CLASSES:
        raise ArgumentError(
            "independence of the adversary compares rows of the same class, and the response has none; "
            "set independence=0 or conditional=False."
        )
    if data.size < data.n_rows:
        raise ArgumentError("independence of the adversary needs all rows in memory; set independence=0.")
    classes = data.response if conditional else None
    return tuple(group_shares(data.codes[g], spec.group(g).size, classes, data.weights) for g in groups)


def is_classification(spec: ModelSpec) -> bool:
    """Whether an adversary is conditional on the response by default."""
    return spec.family.response in (*CLASSES, "binomial")


def _adversary_groups(settings: Adversary, spec: ModelSpec) -> tuple[str, ...]:
    names = [group.name for group in spec.groups]
    if not names:
        raise ArgumentError("adversary=... needs a grouping factor; add '(1 | group)' to the formula.")
    groups = tuple(settings.groups or names[:1])
    for group in groups:
        if group not in names:
            raise ArgumentError(
                f"The adversary's group {group!r} is not in the model; it has {', '.join(names)}."
            )
    return groups


def _adversary_width(settings: Adversary, module: MixedEffectsModule, data: Batch) -> int:
    """Width of what the adversary reads, found on a few rows."""
    if settings.layers is None:
        if not module.spec.n_features:
            raise ArgumentError(
                "adversary=... needs a network with a linear output layer, whose inputs it reads; or name "
                "layers=..."
            )
        return module.spec.n_features
    rows = data.select(torch.arange(min(_EXAMPLE_ROWS, data.size)))
    with networks.untouched(module.network), networks.layer_outputs(module.network, settings.layers) as seen:  # type: ignore[arg-type]
        module.hidden(rows)
    return networks.flattened(seen, settings.layers, rows.size, grid=settings.grid).shape[1]
