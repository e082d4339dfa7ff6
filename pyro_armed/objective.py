"""The loss that training minimises, in named parts. The one place where signs are decided."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor, nn
from torch.distributions import Independent, Normal, kl_divergence

from pyro_armed.adversary import Adversary, adversary_loss, group_dependence, label_columns
from pyro_armed.batch import Batch
from pyro_armed.module import MixedEffectsModule
from pyro_armed.networks import Pass, flattened, layer_outputs, still_statistics
from pyro_armed.passes import input_distribution, network_inputs
from pyro_armed.regression import Hidden
from pyro_armed.seeds import seeded

# Rows of a minibatch that are worth a second pass for the auxiliary terms: a share, but not fewer than these.
_FEWEST = 16

__all__ = ["AdversaryHead", "LossParts", "Objective", "negative_elbo"]


@dataclass(frozen=True)
class LossParts:
    """Parts of the loss, per row of the data set; 0-dim tensors.

    Attributes
    ----------
    elbo : Tensor
        The *negative* ELBO divided by N: the only part that belongs to the probability model.
    adversary : Tensor
        The adversary's cross-entropy, whose gradient to the network is reversed, and what its kernel adds.
    fixed_effects : Tensor
        Weighted loss of the prediction without group effects.
    total : Tensor
        Their sum, to be minimised.
    adversary_accuracy : Tensor, shape (G,)
        The adversary's accuracy for each of its grouping factors.
    """

    elbo: Tensor
    adversary: Tensor
    fixed_effects: Tensor
    total: Tensor
    adversary_accuracy: Tensor


@dataclass(frozen=True)
class AdversaryHead:
    """A group classifier and its settings.

    Attributes
    ----------
    settings : Adversary
        The user's settings.
    classifiers : nn.ModuleDict
        One classifier for each grouping factor, in the order of ``groups``.
    groups : tuple of str
        The grouping factors.
    conditional : bool
        Whether the classifiers see the response.
    levels : int or None
        Classes of the response, if it is a class.
    chance : tuple of float
        For each grouping factor the accuracy of knowing no features; see `adversary.chance_accuracy`.
    shares : tuple of Tensor
        Where there is a kernel, `adversary.group_shares` of each grouping factor.
    """

    settings: Adversary
    classifiers: nn.ModuleList
    groups: tuple[str, ...]
    conditional: bool
    levels: int | None
    chance: tuple[float, ...] = ()
    shares: tuple[Tensor, ...] = ()

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that it reads; none: the network's last hidden activations."""
        return tuple(self.settings.layers or ())

    def loss(self, batch: Batch, features: Tensor, weight: float | Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy and dependence, averaged over the grouping factors; accuracy of each, shape (G,)."""
        features = features.to(next(self.classifiers.parameters()).dtype)
        labels = None
        if self.conditional and batch.response is not None:
            response = batch.response if batch.trials is None else batch.response / batch.trials
            labels = label_columns(response, self.levels).to(features.dtype)
        terms = [
            adversary_loss(classifier, features, batch.codes[group], labels, weight, batch.weights)
            for group, classifier in zip(self.groups, self.classifiers, strict=True)
        ]
        loss = torch.stack([term.loss for term in terms]).mean()
        if self.shares:
            classes = batch.response if self.conditional else None
            found = [
                group_dependence(features, batch.codes[group], shares, classes, batch.weights)
                for group, shares in zip(self.groups, self.shares, strict=True)
            ]
            loss = loss + weight * self.settings.independence * torch.stack(found).mean()
        return loss, torch.stack([term.accuracy for term in terms])


class Objective:
    """The loss of one model, guide and adversary.

    Parameters
    ----------
    module : MixedEffectsModule
        The Pyro model.
    guide : callable
        The Pyro guide.
    adversary : AdversaryHead, optional
        None: no adversary.
    fixed_effects_weight : float
        Weight of the loss of the prediction without group effects; 0 leaves it out.

    Notes
    -----
    With neither auxiliary term ``total`` is the negative ELBO per row, to the last bit. The auxiliary terms
    see the network of the average group: with group effects within its layers that takes a second pass. Some
    of a minibatch's rows are enough for it, which are in random order, so that the gradient stays unbiased:
    half of them for a fixed-effects loss, a quarter for an adversary alone.
    """

    def __init__(
        self,
        module: MixedEffectsModule,
        guide: Callable[..., object],
        adversary: AdversaryHead | None = None,
        fixed_effects_weight: float = 0.0,
    ):
        self.module, self.guide = module, guide
        self.adversary, self.fixed_effects_weight = adversary, fixed_effects_weight

    def __call__(self, batch: Batch, adversary_weight: float | Tensor = 0.0) -> LossParts:
        """The parts of the loss on some rows.

        Parameters
        ----------
        batch : Batch
            Rows with their response.
        adversary_weight : float or Tensor
            The weight of the reversed gradient at this step.

        Returns
        -------
        LossParts
        """
        watch, within = self.adversary, bool(self.module.spec.layers)
        layers = () if watch is None else watch.layers
        hidden, outputs = (None, {}) if within else self._pass(batch, layers)
        # Where effects within the network are not drawn yet, the model makes a pass of its own.
        loss, trace = negative_elbo(self.module, self.guide, batch, hidden)
        elbo = loss / batch.n_rows
        zero = torch.zeros_like(elbo)
        cross_entropy = fixed = zero
        accuracy = zero.new_empty(0)
        if within and (watch is not None or self.fixed_effects_weight):
            batch = _part(batch, 2 if self.fixed_effects_weight else 4)
            hidden, outputs = self._second_pass(batch, layers)
        if watch is not None and hidden is not None:
            features = hidden[0]
            if layers:
                features = flattened(outputs, layers, batch.size, grid=watch.settings.grid)
            cross_entropy, accuracy = watch.loss(batch, features, adversary_weight)
        if self.fixed_effects_weight:
            fixed = self.fixed_effects_weight * self._fixed_effects_loss(trace, batch, hidden)
        return LossParts(elbo, cross_entropy, fixed, elbo + cross_entropy + fixed, accuracy)

    def to(self, device: torch.device | str, data: Batch) -> None:
        """Move model, guide and classifiers; ``data`` are the training rows there, which are not copied."""
        self.module.data = None
        classifiers = None if self.adversary is None else self.adversary.classifiers
        for part in (self.module, self.guide, classifiers):
            if isinstance(part, nn.Module):
                part.to(device)
        self.module.data = data

    def _pass(self, batch: Batch, layers: Sequence[str]) -> tuple[Hidden, dict[str, Any]]:
        """The network of the average group, and the outputs of the layers that the adversary reads."""
        if self.module.network is None:
            return None, {}
        with layer_outputs(self.module.network, layers) as outputs:
            return self.module.passed(batch), outputs

    def _second_pass(self, batch: Batch, layers: Sequence[str]) -> tuple[Hidden, dict[str, Any]]:
        """The same after the model's own pass, without a trace in buffers or the random stream."""
        network: nn.Module = self.module.network  # type: ignore[assignment]
        with still_statistics(network), seeded(None, [self.module.priors.device]):
            return self._pass(batch, layers)

    def _fixed_effects_loss(self, trace: Trace, batch: Batch, hidden: Hidden) -> Tensor:
        """Mean negative log density at the population's prediction, that of reconstructed inputs included."""
        module, likelihood = self.module, self.module.spec.reconstruction
        values = self._values(trace, batch)
        etas = {
            p.parameter: module.linear_predictor(p, values, batch, hidden, random=False)
            for p in module.spec.predictors
        }
        log_prob = module.response_distribution(etas, values, batch).log_prob(batch.response)
        if likelihood is not None and isinstance(hidden, Pass) and module.network is not None:
            inputs = network_inputs(module.network, batch)
            log_prob = log_prob + likelihood.weight * input_distribution(likelihood, hidden, values).log_prob(
                inputs
            )
        if batch.weights is not None:
            return -(log_prob * batch.weights).sum() / batch.weights.sum()
        return -log_prob.mean()

    def _values(self, trace: Trace, batch: Batch) -> Mapping[str, Tensor]:
        with poutine.block(), poutine.replay(trace=trace):
            return self.module.sample_latents(batch)


def _part(batch: Batch, share: int) -> Batch:
    """One in ``share`` rows of a minibatch.

    All rows of the data set stay, since their order is the user's, and so do weighted rows.
    """
    if batch.size >= batch.n_rows or batch.size <= _FEWEST or batch.weights is not None:
        return batch
    return batch.first(max(_FEWEST, batch.size // share))


def negative_elbo(
    module: MixedEffectsModule, guide: Callable[..., object], batch: Batch, hidden: Hidden = None
) -> tuple[Tensor, Trace]:
    """One-draw estimate of the negative ELBO, summed over the data set.

    Divergences between Gaussians are taken in closed form, as in `pyro.infer.TraceMeanField_ELBO`; nothing
    is read back from tensors, so that the function can be traced.

    Parameters
    ----------
    module : MixedEffectsModule
        The model.
    guide : callable
        The guide, called as ``guide(batch, hidden)``.
    batch : Batch
        Rows with their response.
    hidden : tuple of Tensor, optional
        The network's features and output.

    Returns
    -------
    loss : Tensor
        0-dim.
    trace : Trace
        The model's trace.
    """
    guide_trace = poutine.trace(guide).get_trace(batch, hidden)
    model_trace = poutine.trace(poutine.replay(module, trace=guide_trace)).get_trace(batch, hidden)
    loss: Tensor | None = None
    guide_nodes: Any = guide_trace.nodes
    model_nodes: Any = model_trace.nodes
    for name, site in model_nodes.items():
        if site["type"] != "sample" or _is_deterministic(site):
            continue
        if site["is_observed"]:
            part = -_scaled(_masked(site["fn"].log_prob(site["value"]), site), site)
        else:
            part = _divergence(guide_nodes[name], site)
        loss = part if loss is None else loss + part
    if loss is None:
        raise RuntimeError("the model has no sample sites")
    for site in guide_nodes.values():
        if site["type"] == "sample" and site["infer"].get("is_auxiliary"):
            loss = loss + _scaled(site["fn"].log_prob(site["value"]), site)
    return loss, model_trace


def _divergence(guide: Mapping[str, Any], model: Mapping[str, Any]) -> Tensor:
    """E_q[log q - log p] of one site: in closed form for Gaussians, else at the draw."""
    q, p = guide["fn"], model["fn"]
    if _gaussian(q) and _gaussian(p):
        return _scaled(kl_divergence(q, p), model)
    value = model["value"]
    return _scaled(q.log_prob(value), guide) - _scaled(p.log_prob(value), model)


def _gaussian(distribution: object) -> bool:
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return isinstance(distribution, Normal)


def _scaled(values: Tensor, site: Mapping[str, Any]) -> Tensor:
    scale = site["scale"]
    return (values * scale).sum() if isinstance(scale, Tensor) else values.sum() * scale


def _masked(values: Tensor, site: Mapping[str, Any]) -> Tensor:
    mask = site["mask"]
    return values.masked_fill(~mask, 0.0) if isinstance(mask, Tensor) else values


def _is_deterministic(site: Mapping[str, Any]) -> bool:
    infer = site["infer"]
    return (
        bool(isinstance(infer, dict) and infer.get("_deterministic"))
        or type(site["fn"]).__name__ == "_Subsample"
    )
