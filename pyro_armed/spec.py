"""What a model consists of, as plain values: terms, effect blocks, predictors. No tensors, no behaviour.

A `ModelSpec` is all that the Pyro model, the exporter and the saved file need to know about a formula or
about arrays.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from numbers import Real
from typing import Any

from pyro_armed import families
from pyro_armed.effects import ScaleBias
from pyro_armed.errors import ArgumentError
from pyro_armed.families import Family
from pyro_armed.integers import compact

__all__ = [
    "EffectBlock",
    "Group",
    "LayerEffects",
    "ModelSpec",
    "Predictor",
    "Reconstruction",
    "Term",
    "with_layers",
]

INTERCEPT = "Intercept"
FEATURES = "features"


@dataclass(frozen=True)
class Term:
    """One named effect and the columns it multiplies.

    Attributes
    ----------
    name : str
        As in the formula: ``"age"``, ``"livch"``; ``"1"`` for a group-specific intercept.
    center, scale : tuple of float
        Mean and standard deviation of each column in training, shape (K,).
    labels : tuple of str
        Names of the columns where the effect is a vector; empty for a scalar effect.
    """

    name: str
    center: tuple[float, ...]
    scale: tuple[float, ...]
    labels: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Number of columns K."""
        return len(self.scale)

    @property
    def is_vector(self) -> bool:
        """Whether the effect has a dimension of its own."""
        return bool(self.labels)


@dataclass(frozen=True)
class EffectBlock:
    """Effects of one grouping factor that share a covariance matrix.

    Attributes
    ----------
    group : str
        The grouping factor.
    terms : tuple of Term
        What varies between groups, in the order of the slope columns. Features come last, as a
        vector term named ``"features"``.
    correlated : bool
        Whether the effects of a group are correlated (LKJ prior).
    parameter : str
        The predictor that the effects belong to: ``"mu"`` or an auxiliary parameter such as ``"sigma"``.
    """

    group: str
    terms: tuple[Term, ...]
    correlated: bool
    parameter: str = "mu"

    @property
    def size(self) -> int:
        """Number of effects of one group."""
        return sum(term.size for term in self.terms)

    @property
    def uses_features(self) -> bool:
        """Whether the network's hidden activations have group-specific slopes."""
        return any(term.name == FEATURES for term in self.terms)

    def effect_name(self, term: Term) -> str:
        """Bambi's name of a term's effects: ``"1|district"``."""
        return f"{prefix(self.parameter)}{term.name}|{self.group}"

    @property
    def key(self) -> str:
        """A name that no other block of the model has."""
        return f"{prefix(self.parameter)}{'+'.join(term.name for term in self.terms)}|{self.group}"


@dataclass(frozen=True)
class Predictor:
    """The linear predictor of one parameter of the response family.

    Attributes
    ----------
    parameter : str
        ``"mu"`` for the family's mean, else an auxiliary parameter.
    intercept : bool
        Whether it has an intercept.
    terms : tuple of Term
        Common effects. Beside a network they are its linear path, if it has one.
    blocks : tuple of EffectBlock
        Group-specific effects.
    network : bool
        Whether the network replaces the linear combination of the terms.
    features : bool
        Whether the last hidden activations enter with coefficients of their own.
    offset : bool
        Whether known values are added.
    inputs : tuple of Term
        The network's inputs, where they are columns.
    """

    parameter: str
    intercept: bool
    terms: tuple[Term, ...]
    blocks: tuple[EffectBlock, ...] = ()
    network: bool = False
    features: bool = False
    offset: bool = False
    inputs: tuple[Term, ...] = ()

    @property
    def linear_path(self) -> bool:
        """Whether columns enter linearly beside the network, which is a departure from them."""
        return self.network and bool(self.terms)

    def common_name(self, name: str) -> str:
        """Name of a common effect in the posterior: ``"sigma_x"`` for a term of sigma's predictor."""
        return f"{prefix(self.parameter)}{name}"


@dataclass(frozen=True)
class Group:
    """A grouping factor.

    Attributes
    ----------
    name : str
        Column name, or ``"a:b"``.
    labels : tuple or Integers
        Labels in the order of their codes, shape (C,).
    counts : tuple or Integers
        Rows per group in training, shape (C,).

    Examples
    --------
    >>> Group("site", ("a", "b"), (5, 7)).size
    2
    """

    name: str
    labels: Sequence[Any]
    counts: Sequence[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", compact(self.labels))
        object.__setattr__(self, "counts", compact(self.counts))

    @property
    def size(self) -> int:
        """Number of groups C."""
        return len(self.labels)


@dataclass(frozen=True)
class LayerEffects:
    """Group-specific scale and bias on the channels of one layer of the network.

    Attributes
    ----------
    group : str
        The grouping factor.
    layer : str
        Name of the layer in the network.
    normalize : bool
        Whether the layer's output is normalised over the positions of each row and channel.
    channels : int
        Number K of channels; 0 until the network has been looked at.
    spread : float
        sd of what is scaled: 1 after normalisation, else that of the layer's output on some rows.
    """

    group: str
    layer: str
    normalize: bool = True
    channels: int = 0
    spread: float = 1.0

    @property
    def names(self) -> tuple[str, str]:
        """Names of the scales gamma and of the biases b: ``"scale[conv1]|site"``, ``"bias[conv1]|site"``."""
        return f"scale[{self.layer}]|{self.group}", f"bias[{self.layer}]|{self.group}"


LIKELIHOODS = ("normal", "bernoulli")


@dataclass(frozen=True)
class Reconstruction:
    """The likelihood of the inputs given the network's reconstruction of them.

    Parameters
    ----------
    likelihood : {"normal", "bernoulli"}
        ``"normal"``: the network gives the mean of each pixel, and one sd for all of them is learned
        (``reconstruction_sigma``). ``"bernoulli"``: it gives the log odds; inputs are between 0 and 1.
    weight : float
        Factor of the inputs' log density; 1 is the joint density of input and response.
    scale : float
        sd of the inputs in training, the unit of the sd's prior; filled in by the model.

    Raises
    ------
    ArgumentError
        For another likelihood, or a weight that is not a positive number.

    Examples
    --------
    >>> Reconstruction("bernoulli", weight=0.1)
    Reconstruction(likelihood='bernoulli', weight=0.1, scale=1.0)
    """

    likelihood: str = "normal"
    weight: float = 1.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.likelihood not in LIKELIHOODS:
            raise ArgumentError(f"reconstruction={self.likelihood!r} is not 'normal' or 'bernoulli'.")
        number = isinstance(self.weight, Real) and not isinstance(self.weight, bool)
        if not number or not 0.0 < float(self.weight) < math.inf:
            raise ArgumentError(
                f"weight={self.weight!r} of Reconstruction must be a number above 0; for a network without "
                "reconstructions leave reconstruction=... out."
            )


@dataclass(frozen=True)
class ModelSpec:
    """Everything about the model's structure.

    Attributes
    ----------
    response : str
        Name of the response.
    family : Family
        Response family with its link.
    predictors : tuple of Predictor
        The first one is ``"mu"``.
    groups : tuple of Group
        Grouping factors in the order of the formula.
    n_rows : int
        Training rows N.
    levels : tuple
        Labels of a categorical, ordinal or two-label response; empty otherwise.
    response_scale : float
        sd of the response for identity links, else 1: the unit of the default priors.
    response_center : float
        Link of the mean response: the centre of the intercept's default prior.
    n_features : int
        Width F of the network's last hidden layer; 0 without a network or without an output layer.
    layers : tuple of LayerEffects
        Group effects within the network.
    reconstruction : Reconstruction or None
        Likelihood of the inputs, where the network reconstructs them.
    """

    response: str
    family: Family
    predictors: tuple[Predictor, ...]
    groups: tuple[Group, ...]
    n_rows: int
    levels: tuple[Any, ...] = ()
    response_scale: float = 1.0
    response_center: float = 0.0
    n_features: int = 0
    layers: tuple[LayerEffects, ...] = ()
    reconstruction: Reconstruction | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def n_predictors(self) -> int:
        """Linear predictors R of mu: one, or K - 1 for a categorical response with K levels."""
        return self.family.n_predictors(len(self.levels) or None)

    @property
    def blocks(self) -> tuple[EffectBlock, ...]:
        """Effect blocks of all predictors."""
        return tuple(block for predictor in self.predictors for block in predictor.blocks)

    def effect_names(self, group: str | None = None) -> list[str]:
        """Names of the group effects, whose first axis is the group; of one grouping factor if given."""
        names = [(b.group, b.effect_name(term)) for b in self.blocks for term in b.terms]
        names += [(layer.group, name) for layer in self.layers for name in layer.names]
        return [name for factor, name in names if group in (None, factor)]

    @property
    def effect_groups(self) -> list[str]:
        """Names of the grouping factors that have effects, in the predictors or within the network."""
        groups = [block.group for block in self.blocks] + [layer.group for layer in self.layers]
        return list(dict.fromkeys(groups))

    @property
    def mu(self) -> Predictor:
        """The predictor of the mean."""
        return self.predictors[0]

    def predictor(self, parameter: str) -> Predictor:
        """The predictor of a parameter; KeyError if it has none."""
        return {predictor.parameter: predictor for predictor in self.predictors}[parameter]

    def group(self, name: str) -> Group:
        """A grouping factor by name; KeyError if there is none."""
        return {group.name: group for group in self.groups}[name]

    def with_groups(self, groups: Mapping[str, Group]) -> ModelSpec:
        """The same model with other groups for some of the grouping factors."""
        return replace(self, groups=tuple(groups.get(group.name, group) for group in self.groups))

    @property
    def uses_features(self) -> bool:
        """Whether any coefficient multiplies the network's hidden activations."""
        return any(p.features for p in self.predictors) or any(b.uses_features for b in self.blocks)

    def with_features(self, n_features: int, coefficients: bool = True) -> ModelSpec:
        """The same model once the width of the network's last hidden layer is known.

        Without ``coefficients`` the network's own last layer is used for its predictor.
        """
        predictors = tuple(
            replace(
                p,
                blocks=tuple(_sized(block, n_features) for block in p.blocks),
                features=p.features and (coefficients or not p.network),
            )
            for p in self.predictors
        )
        return replace(self, predictors=predictors, n_features=n_features)

    @property
    def network_sites(self) -> list[str]:
        """Sample sites that only the network and what it gives depend on."""
        names = [name for layer in self.layers for name in layer.names]
        sigmas = [f"{name}_sigma" for name in names]
        return [*sigmas, "reconstruction_sigma", *names] if self.reconstruction else [*sigmas, *names]

    def given_network(self) -> ModelSpec:
        """The model of the response alone, once the network and the effects within it are known."""
        return replace(self, layers=(), reconstruction=None)

    def to_config(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        config = asdict(replace(self, family=None))  # type: ignore[arg-type]
        config["family"] = self.family.config()
        for group in config["groups"]:
            group["labels"], group["counts"] = list(group["labels"]), list(group["counts"])
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any], family: Family | None = None) -> ModelSpec:
        """Rebuild from `to_config`; ``family`` is needed for a user's own."""
        predictors = []
        for p in config["predictors"]:
            blocks = tuple(EffectBlock(**{**b, "terms": tuple(map(_term, b["terms"]))}) for b in p["blocks"])
            if "inputs" not in p:  # a file from before networks had a linear path
                p = {
                    **p,
                    "inputs": p["terms"] if p["network"] else (),
                    "terms": () if p["network"] else p["terms"],
                }
            terms = {name: tuple(map(_term, p[name])) for name in ("terms", "inputs")}
            predictors.append(Predictor(**{**p, **terms, "blocks": blocks}))
        groups = tuple(Group(g["name"], g["labels"], g["counts"]) for g in config["groups"])
        rebuilt = config.get("reconstruction")
        return cls(
            **{
                **config,
                "layers": tuple(LayerEffects(**layer) for layer in config.get("layers", ())),
                "reconstruction": None if rebuilt is None else Reconstruction(**rebuilt),
                "family": family or families.from_config(config["family"]),
                "predictors": tuple(predictors),
                "groups": groups,
                "levels": tuple(config["levels"]),
            }
        )


def with_layers(spec: ModelSpec, effects: Iterable[ScaleBias], mend: str) -> ModelSpec:
    """The model with group effects within the layers of its network.

    Parameters
    ----------
    spec : ModelSpec
        A specification.
    effects : iterable of ScaleBias
        What the user declared.
    mend : str
        How a grouping factor is added, for the message.

    Returns
    -------
    ModelSpec

    Raises
    ------
    ArgumentError
        Where there is no network or no such grouping factor, or a layer has effects of one factor twice.
    """
    layers: dict[tuple[str, str], LayerEffects] = {}
    known = [group.name for group in spec.groups]
    for one in effects:
        if not spec.mu.network:
            raise ArgumentError("ScaleBias is for the layers of a network; pass network=... or leave it out.")
        if one.group not in known:
            names = ", ".join(map(repr, known)) or "none"
            raise ArgumentError(
                f"ScaleBias names the group {one.group!r}, which is no grouping factor of the model "
                f"(it has: {names}); {mend}."
            )
        for layer in one.layers:
            if (one.group, layer) in layers:
                raise ArgumentError(
                    f"random_effects gives the layer {layer!r} effects of {one.group!r} twice; keep one."
                )
            layers[one.group, layer] = LayerEffects(one.group, layer, one.normalize)
    return replace(spec, layers=tuple(layers.values()))


def prefix(parameter: str) -> str:
    """What names of a parameter's effects begin with: nothing for the mean."""
    return "" if parameter == "mu" else f"{parameter}_"


def feature_term(n_features: int) -> Term:
    """The vector term of the network's hidden activations."""
    labels = tuple(str(i) for i in range(n_features))
    return Term(FEATURES, (0.0,) * n_features, (1.0,) * n_features, labels)


def _sized(block: EffectBlock, n_features: int) -> EffectBlock:
    return replace(
        block, terms=tuple(feature_term(n_features) if t.name == FEATURES else t for t in block.terms)
    )


def _term(config: dict[str, Any]) -> Term:
    values: dict[str, Any] = {key: tuple(value) if key != "name" else value for key, value in config.items()}
    return Term(**values)
