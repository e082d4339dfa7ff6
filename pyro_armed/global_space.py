"""The model's global latent variables as one unconstrained vector.

Global are all that is not specific to a group: coefficients, standard deviations, correlations,
auxiliary parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, Normal, biject_to, transform_to

from pyro_armed.guides import LatentSite, global_sites, is_real
from pyro_armed.module import MixedEffectsModule

__all__ = ["GlobalSpace"]


class GlobalSpace:
    """Maps a vector theta of size P to the model's global sites.

    Parameters
    ----------
    module : MixedEffectsModule
        The model.

    Attributes
    ----------
    sites : list of LatentSite
        Global sites in the model's order.
    size : int
        P, the number of unconstrained values.
    start : Tensor, shape (P,)
        Prior medians.
    scales, correlations : Tensor, shape (P,), bool
        Which values are log standard deviations of group effects, and which their correlations.
    coefficients : Tensor, shape (P,), bool
        Which values may be any number in the model itself, as coefficients may.
    """

    def __init__(self, module: MixedEffectsModule):
        self.module = module
        self.sites: list[LatentSite] = global_sites(module)
        self.sizes = [site.unconstrained.numel() for site in self.sites]
        self.size = sum(self.sizes)
        self.start = torch.cat([site.start.reshape(-1) for site in self.sites])
        factors = self._marked([site.name.endswith("_cholesky") for site in self.sites])
        self.correlations = factors
        self.coefficients = self._marked([is_real(site.support) for site in self.sites])
        self.scales = self._marked(["|" in site.name for site in self.sites]) & ~factors
        self._normal = _Normals.of(module, self.sites, self.sizes)

    def _marked(self, flags: list[bool]) -> Tensor:
        """Flags of sites as flags of their values, shape (P,)."""
        return torch.cat([torch.full((n,), flag) for n, flag in zip(self.sizes, flags, strict=True)])

    def unpack(self, theta: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Constrained values of each site, and the log determinant of the map.

        Parameters
        ----------
        theta : Tensor, shape (S, P)
            Unconstrained values.

        Returns
        -------
        values : dict of str to Tensor, shape (S, 1, ...)
        log_det : Tensor, shape (S,)
        """
        values, log_det = {}, theta.new_zeros(theta.shape[0])
        for site, part in zip(self.sites, theta.split(self.sizes, dim=-1), strict=True):
            raw = part.reshape(theta.shape[0], 1, *site.unconstrained)
            if is_real(site.support):
                values[site.name] = raw
                continue
            bijection = biject_to(site.support)
            value = bijection(raw)
            jacobian = bijection.log_abs_det_jacobian(raw, value)
            log_det = log_det + jacobian.reshape(theta.shape[0], -1).sum(-1)
            values[site.name] = value
        return values, log_det

    def evaluate(self, theta: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The model's values at theta, and the log prior density of theta (Jacobian included).

        Parameters
        ----------
        theta : Tensor, shape (S, P)
            Unconstrained values.

        Returns
        -------
        values : dict of str to Tensor, shape (S, 1, ...)
            What `MixedEffectsModule.linear_predictor` takes, without group effects.
        log_prior : Tensor, shape (S,)
        """
        sites, log_det = self.unpack(theta)
        densities = [log_det, self._normal.log_density(theta)]

        def given(name: str, prior: Any) -> Tensor:
            if name not in self._normal.names:
                densities.append(prior.log_prob(sites[name]).reshape(theta.shape[0], -1).sum(-1))
            return sites[name]

        values = self.module.sample_globals(given)
        return values, torch.stack(densities).sum(0)


@dataclass(frozen=True)
class _Normals:
    """The sites with a Gaussian prior, which are most: one sum of squares has the log density of all.

    Attributes
    ----------
    names : set of str
        These sites.
    loc, precision : Tensor, shape (P,)
        Of each value's prior; a precision of zero for the values of other sites.
    constant : float
        What the normalising constants add.
    """

    names: set[str]
    loc: Tensor
    precision: Tensor
    constant: float

    @classmethod
    def of(cls, module: MixedEffectsModule, sites: list[LatentSite], sizes: list[int]) -> _Normals:
        priors: dict[str, Any] = {}
        values = {site.name: transform_to(site.support)(site.start) for site in sites}

        def seen(name: str, prior: Any) -> Tensor:
            while isinstance(prior, Independent):
                prior = prior.base_dist
            if isinstance(prior, Normal):
                priors[name] = prior
            return values[name]

        with torch.no_grad():
            module.sample_globals(seen)
        loc, scale = [], []
        for site, size in zip(sites, sizes, strict=True):
            prior = priors.get(site.name)
            blank = site.start.new_zeros(size)
            loc.append(blank if prior is None else prior.loc.expand(site.shape).reshape(-1))
            scale.append(blank + math.inf if prior is None else prior.scale.expand(site.shape).reshape(-1))
        scales = torch.cat(scale)
        finite = scales[scales.isfinite()]
        constant = -float(finite.log().sum()) - 0.5 * len(finite) * math.log(2 * math.pi)
        return cls(set(priors), torch.cat(loc), scales.square().reciprocal(), constant)

    def log_density(self, theta: Tensor) -> Tensor:
        """Of the values (S, P) of these sites, shape (S,)."""
        return self.constant - 0.5 * (theta - self.loc).square() @ self.precision
