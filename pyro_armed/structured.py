"""The structured guide.

A full-rank Gaussian over the global variables, and given those each group's effects Gaussian at the mode and
curvature of their own conditional.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_armed.batch import Batch
from pyro_armed.conditional import Problem
from pyro_armed.errors import ArgumentError
from pyro_armed.gaussian_conditional import GaussianConditional, conditional_of
from pyro_armed.global_space import GlobalSpace
from pyro_armed.group_gaussian import Effects, Hidden
from pyro_armed.guides import MeanFieldGuide
from pyro_armed.inner_quadrature import InnerQuadrature, inner_nodes
from pyro_armed.local import LocalPyroModule
from pyro_armed.module import MixedEffectsModule, group_plate

__all__ = ["JointGuide", "StructuredGuide"]

_GLOBALS, _NOISE = "_globals", "_noise"
# Standardised effects from which no Newton step begins.
_FAR = 100.0


class StructuredGuide(LocalPyroModule):
    """q(theta) q(z | theta) for all rows of the data.

    theta, the P global variables on their unconstrained scale, is Gaussian with a full covariance:
    theta = center + scale (location + factor eps). Given theta the standardised effects z of a group are
    Gaussian at the mode and curvature of p(z | theta, y), found by Newton's method for all groups at once;
    that is exact for a Gaussian response.

    Parameters
    ----------
    module : MixedEffectsModule
        The model.
    data : Batch
        All training rows: the conditional of a group needs all its rows.
    hidden : tuple of Tensor, optional
        The network's features and output, which the guide takes as given.
    within : Tensor, 0-dim, optional
        Where the rows are pooled: see `pool_rows`.
    """

    def __init__(
        self,
        module: MixedEffectsModule,
        data: Batch,
        hidden: Hidden = None,
        within: Tensor | None = None,
    ):
        super().__init__()
        self.space = GlobalSpace(module)
        self.conditional = conditional_of(module, data, hidden, within=within)
        size = self.space.size
        self.register_buffer("center", self.space.start.clone())
        self.register_buffer("scale", 0.1 * torch.eye(size, dtype=self.space.start.dtype))
        self.location = nn.Parameter(torch.zeros(size, dtype=self.space.start.dtype))
        self.factor_raw = nn.Parameter(torch.zeros(size, size, dtype=self.space.start.dtype))
        self._mode: list[Tensor] | None = None
        self._slopes: list[Tensor] = []
        self._effects: list[Tensor] = []
        self._anchor, self._whitening = self.center, self.scale

    @cached_property
    def inner(self) -> InnerQuadrature | None:
        """What integrates the effects of the largest of several factors out; None where Laplace suffices."""
        if isinstance(self.conditional, GaussianConditional):
            return None
        order = inner_nodes(self.conditional)
        return InnerQuadrature(self.conditional, order) if order > 1 else None

    @property
    def factor(self) -> Tensor:
        """Lower triangular factor of eps, the identity at first; shape (P, P)."""
        return self.factor_raw.tril(-1) + torch.diag_embed(self.factor_raw.diagonal().exp())

    def mean_and_factor(self) -> tuple[Tensor, Tensor]:
        """Mean (P,) and a square root of the covariance (P, P) of theta."""
        return self.center + self.scale @ self.location, self.scale @ self.factor

    @torch.no_grad()
    def set_gaussian(self, mean: Tensor, factor: Tensor) -> None:
        """Make q(theta) the Gaussian with this mean and lower triangular factor of the covariance."""
        self.center.copy_(mean)
        self.scale.copy_(factor)
        self.location.zero_()
        self.factor_raw.zero_()
        self.remember_mode(mean)

    @torch.no_grad()
    def remember_mode(self, theta: Tensor) -> None:
        """Keep the effects' mode at theta (P,) as the start of later Newton steps."""
        self._slopes = []
        if self.conditional.groups:
            self._mode = self._mode_at(theta.unsqueeze(0), self._mode)

    @torch.no_grad()
    def remember_slopes(self) -> None:
        """Keep how the effects' mode moves with theta within the Gaussian: Newton steps then start closer.

        On the scale of the effects themselves, which a group with many rows determines whatever the sds are.
        """
        mean, factor = self.mean_and_factor()
        self.remember_mode(mean)
        if self._mode is None or isinstance(self.conditional, GaussianConditional):
            return
        ends = [self._effects_at(torch.stack([mean + d, mean - d])) for d in factor.mT]
        self._slopes = [
            torch.stack([0.5 * (table[0] - table[1]) for table in tables])
            for tables in zip(*ends, strict=True)
        ]
        self._effects = self._effects_at(mean.unsqueeze(0))
        self._anchor, self._whitening = mean, torch.linalg.inv(factor)

    def _mode_at(self, theta: Tensor, start: list[Tensor] | None) -> list[Tensor]:
        values, _ = self.space.evaluate(theta)
        return self.conditional.solve(self.conditional.problem(values), start).mean

    def _effects_at(self, theta: Tensor) -> list[Tensor]:
        """The mode at theta (S, P) as effects, (S, C_g, D_g)."""
        return self.conditional.scaled(self.space.evaluate(theta)[0], self._mode_at(theta, self._mode))

    @torch.no_grad()
    def start_at(self, theta: Tensor, values: Mapping[str, Tensor]) -> list[Tensor] | None:
        """Where Newton steps to the effects' mode at theta (S, P), with the model's values there, begin."""
        if self._mode is None or not self._slopes:
            return self._mode
        # Far from the mean the line is no guide.
        eps = ((theta - self._anchor) @ self._whitening.mT).clamp(-3.0, 3.0)
        effects = [
            mode + torch.einsum("sp,pcd->scd", eps, slopes)
            for mode, slopes in zip(self._effects, self._slopes, strict=True)
        ]
        # Where sds vanish so does the mode, and what they divide is anything.
        return [z.clamp(-_FAR, _FAR) for z in self.conditional.standardised(values, effects)]

    def solve(self, theta: Tensor) -> tuple[Problem, Effects, Tensor]:
        """The effects' conditional and the log prior at theta (S, P)."""
        values, log_prior = self.space.evaluate(theta)
        problem = self.conditional.problem(values)
        return problem, self.conditional.solve(problem, self.start_at(theta, values)), log_prior

    def forward(self, batch: Batch | None = None, hidden: Hidden = None) -> dict[str, Tensor]:
        """Draw all latent variables.

        Parameters
        ----------
        batch : Batch, optional
            All training rows (the guide keeps them).
        hidden : tuple of Tensor, optional
            Not used: features are those that the guide was made with.

        Returns
        -------
        dict of str to Tensor

        Raises
        ------
        ArgumentError
            For a minibatch.
        """
        if batch is not None and (batch.rows is not None or batch.present):
            raise ArgumentError(
                "The structured guide needs all rows at once; use guide='mean_field' for minibatches."
            )
        mean, factor = self.mean_and_factor()
        covariance = dist.MultivariateNormal(mean, covariance_matrix=factor @ factor.mT)
        theta = pyro.sample(_GLOBALS, covariance, infer={"is_auxiliary": True})
        batched = theta.dim() > 1
        flat = theta.reshape(-1, theta.shape[-1])
        draws = self._sample_sites(flat, batched)
        if self.conditional.groups:
            draws.update(self._sample_effects(flat, batched))
        return draws

    def _sample_sites(self, theta: Tensor, batched: bool) -> dict[str, Tensor]:
        draws = {}
        parts = theta.split(self.space.sizes, dim=-1)
        for site, part in zip(self.space.sites, parts, strict=True):
            raw = part.reshape(len(theta), 1, *site.unconstrained)
            bijection = torch.distributions.biject_to(site.support)
            value = bijection(raw)
            log_det = bijection.log_abs_det_jacobian(raw, value).reshape(len(theta), 1, -1).sum(-1)
            if not batched:
                value, log_det = value[0, 0], log_det[0, 0]
            draws[site.name] = pyro.sample(site.name, dist.Delta(value, -log_det, event_dim=site.event_dim))
        return draws

    def _sample_effects(self, theta: Tensor, batched: bool) -> dict[str, Tensor]:
        conditional = self.conditional
        _, effects, _ = self.solve(theta)
        noise = []
        for name, mean in zip(conditional.groups, effects.mean, strict=True):
            standard = dist.Normal(torch.zeros_like(mean[0]), 1.0).to_event(2)
            drawn = pyro.sample(f"{_NOISE}|{name}", standard, infer={"is_auxiliary": True})
            noise.append(drawn[:, 0] if batched else drawn.unsqueeze(0))
        z = conditional.draw(effects, noise)
        draws = {}
        half_log_det = 0.5 * effects.log_det
        for position, (name, table) in enumerate(zip(conditional.groups, z, strict=True)):
            # The Jacobian of noise -> z belongs to no group in particular: spread it over the first factor's.
            share = half_log_det / table.shape[1] if position == 0 else torch.zeros_like(half_log_det)
            draws.update(self._sample_offsets(name, table, share, batched))
        return draws

    def _sample_offsets(self, name: str, table: Tensor, share: Tensor, batched: bool) -> dict[str, Tensor]:
        draws: dict[str, Tensor] = {}
        with pyro.plate(group_plate(name), table.shape[1], dim=-1):
            for block, part in self.conditional.offsets(name, table):
                for term, offset in zip(block.terms, part, strict=True):
                    density = (
                        (share if not draws else torch.zeros_like(share))
                        .unsqueeze(-1)
                        .expand(offset.shape[:2])
                    )
                    event_dim = offset.dim() - 2
                    if not batched:
                        offset, density = offset[0], density[0]
                    site = f"{block.effect_name(term)}_offset"
                    draws[site] = pyro.sample(site, dist.Delta(offset, density, event_dim=event_dim))
        return draws


class JointGuide(LocalPyroModule):
    """The structured guide, and beside it independent Gaussians over the effects within the network.

    Parameters
    ----------
    structured : StructuredGuide
        Of the model of the response given the network.
    within : MeanFieldGuide
        Of what stands within the network.
    """

    def __init__(self, structured: StructuredGuide, within: MeanFieldGuide):
        super().__init__()
        self.structured, self.within = structured, within

    def forward(self, batch: Batch | None = None, hidden: Hidden = None) -> dict[str, Tensor]:
        """Draw all latent variables; see `StructuredGuide.forward`."""
        draws = self.structured(batch, hidden)
        # Both enter the plates of the grouping factors; a trace may hold each plate once.
        plates = [group_plate(name) for name in self.within.group_sizes]
        with poutine.block(hide=plates):
            return draws | self.within(batch, hidden)
