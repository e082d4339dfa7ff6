"""Effects of new groups within the network, given a few of their rows with the response."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_armed.batch import Batch
from pyro_armed.local import local_parameters
from pyro_armed.module import MixedEffectsModule
from pyro_armed.passes import input_distribution, network_inputs
from pyro_armed.posterior import Chain
from pyro_armed.training import single_thread

__all__ = ["WithinNetwork", "fit_within"]

_STEPS, _RATE, _ROWS = 200, 0.1, 128


@dataclass(frozen=True)
class WithinNetwork:
    """Independent Gaussians over the effects of M new groups within the network.

    Attributes
    ----------
    means : dict of str to Tensor, shape (C + M, K)
        By effect name: posterior means of the seen groups, then the means of the new ones.
    sds : dict of str to Tensor, shape (M, K)
        Standard deviations of the new ones.
    """

    means: dict[str, Tensor]
    sds: dict[str, Tensor]

    def draw(self, draws: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Effects of the new groups by name, shape (S, M, K)."""
        return {
            name: self.means[name][-len(sd) :] + sd * _normal((draws, *sd.shape), sd, generator)
            for name, sd in self.sds.items()
        }


def fit_within(
    chain: Chain, batch: Batch, new: Mapping[str, int], generator: torch.Generator
) -> WithinNetwork:
    """Fit the effects of new groups within the network to rows, all else as the posterior has it.

    By stochastic variational inference with a mean-field Gaussian, as in training: network and globals keep
    their draws, of which each step takes one at random, and the new groups' effects on the predictor are
    fitted along and then forgotten, for they can be drawn exactly given these.

    Parameters
    ----------
    chain : Chain
        S draws.
    batch : Batch
        Rows with their response. Codes from C on are of new groups.
    new : mapping of str to int
        New groups M of each grouping factor.
    generator : torch.Generator
        Source of all random numbers.

    Returns
    -------
    WithinNetwork
    """
    module = chain.module.eval()
    fitted = _MeanField(chain, new)
    with local_parameters(), single_thread(batch), torch.enable_grad():
        optimizer = torch.optim.Adam(fitted.parameters, lr=_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
        for _ in range(_STEPS):
            rows = torch.randperm(batch.size, generator=generator)[:_ROWS]
            draw = int(torch.randint(chain.n_draws, (), generator=generator))
            globals_ = {name: value[draw] for name, value in chain.values.items()}
            values, divergence = fitted.sample(globals_, generator)
            density = _log_density(module, values, batch.select(rows)) * (batch.size / len(rows))
            loss = (divergence - density) / batch.size
            gradients = torch.autograd.grad(loss, fitted.parameters)
            for parameter, gradient in zip(fitted.parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            schedule.step()
    return fitted.within_network()


class _MeanField:
    """Gaussians over the standardised effects of the new groups: those within the network, and the others."""

    def __init__(self, chain: Chain, new: Mapping[str, int]):
        self.chain, self.module = chain, chain.module
        spec = self.module.spec
        self.layers = [layer for layer in spec.layers if new.get(layer.group)]
        self.blocks = [block for block in spec.blocks if new.get(block.group)]
        names = [(name, layer.group) for layer in self.layers for name in layer.names]
        names += [(block.effect_name(term), block.group) for block in self.blocks for term in block.terms]
        self.location, self.log_scale = {}, {}
        for name, group in names:
            like = chain.values[name]
            zeros = like.new_zeros(new[group], *like.shape[2:])
            self.location[name] = zeros.clone().requires_grad_()
            self.log_scale[name] = torch.full_like(zeros, math.log(0.5)).requires_grad_()

    @property
    def parameters(self) -> list[Tensor]:
        return [*self.location.values(), *self.log_scale.values()]

    def sample(
        self, globals_: Mapping[str, Tensor], generator: torch.Generator
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Values with the new groups' effects appended, and the divergence of these from their prior."""
        drawn = {
            name: mean + self.log_scale[name].exp() * _normal(mean.shape, mean, generator)
            for name, mean in self.location.items()
        }
        values = dict(globals_)
        for layer in self.layers:
            for name in layer.names:
                effect = drawn[name] * globals_[f"{name}_sigma"].unsqueeze(-1)
                values[name] = torch.cat([globals_[name], effect])
        for block in self.blocks:
            offsets = [drawn[block.effect_name(term)] for term in block.terms]
            effects = self.module.split_effects(block, self.module.scale_offsets(block, offsets, globals_))
            for term, effect in zip(block.terms, effects, strict=True):
                name = block.effect_name(term)
                values[name] = torch.cat([globals_[name], effect])
        return values, self._divergence()

    def _divergence(self) -> Tensor:
        """The sum of KL(Normal(m, s) || Normal(0, 1)); all these effects are standardised."""
        parts = [
            (0.5 * (self.location[name].square() + (2 * log_scale).exp() - 1) - log_scale).sum()
            for name, log_scale in self.log_scale.items()
        ]
        return torch.stack(parts).sum()

    @torch.no_grad()
    def within_network(self) -> WithinNetwork:
        means, sds = {}, {}
        for layer in self.module.spec.layers:
            for name in layer.names:
                means[name] = self.chain.values[name].mean(0)
        for layer in self.layers:
            for name in layer.names:
                unit = self.chain.values[f"{name}_sigma"].mean(0).unsqueeze(-1)
                means[name] = torch.cat([means[name], self.location[name] * unit])
                sds[name] = self.log_scale[name].exp() * unit
        return WithinNetwork(means, sds)


def _log_density(module: MixedEffectsModule, values: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """Log density of the responses, and of the inputs where the network reconstructs them."""
    hidden = module.passed(batch, values)
    etas = {p.parameter: module.linear_predictor(p, values, batch, hidden) for p in module.spec.predictors}
    density: Tensor = module.response_distribution(etas, values, batch).log_prob(batch.response)
    likelihood = module.spec.reconstruction
    if likelihood is not None and module.network is not None:
        inputs = network_inputs(module.network, batch)
        density = density + likelihood.weight * input_distribution(likelihood, hidden, values).log_prob(
            inputs
        )
    return density.sum() if batch.weights is None else (density * batch.weights).sum()


def _normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=like.dtype).to(like.device)
