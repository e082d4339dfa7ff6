"""The model's global latent variables as one unconstrained vector.

Global are all that is not specific to a group: coefficients, standard deviations, correlations,
auxiliary parameters.
"""

from __future__ import annotations

from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import biject_to

from pyro_armed.batch import Batch
from pyro_armed.guides import LatentSite, is_real, latent_sites
from pyro_armed.module import MixedEffectsModule

__all__ = ["GlobalSpace"]


class GlobalSpace:
    """Maps a vector theta of size P to the model's global sites.

    Parameters
    ----------
    module : MixedEffectsModule
        The model.
    batch : Batch
        Any rows; not looked at.

    Attributes
    ----------
    sites : list of LatentSite
        Global sites in the model's order.
    size : int
        P, the number of unconstrained values.
    start : Tensor, shape (P,)
        Central prior values.
    scales, correlations : Tensor, shape (P,), bool
        Which values are log standard deviations of group effects, and which their correlations.
    coefficients : Tensor, shape (P,), bool
        Which values may be any number in the model itself, as coefficients may.
    """

    def __init__(self, module: MixedEffectsModule, batch: Batch):
        self.module = module
        self.sites: list[LatentSite] = [site for site in latent_sites(module, batch) if site.group is None]
        self.sizes = [site.unconstrained.numel() for site in self.sites]
        self.size = sum(self.sizes)
        self.start = torch.cat([site.start.reshape(-1) for site in self.sites])
        factors = self._marked([site.name.endswith("_cholesky") for site in self.sites])
        self.correlations = factors
        self.coefficients = self._marked([is_real(site.support) for site in self.sites])
        self.scales = self._marked(["|" in site.name for site in self.sites]) & ~factors

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
        sites, log_density = self.unpack(theta)
        conditioned = poutine.condition(self.module.sample_globals, data=sites)
        # Values bring their own batch shape, so no plate is needed; one would meet a caller's at dim -2.
        with poutine.block():
            trace = poutine.trace(conditioned).get_trace()
        for name in sites:
            node: Any = trace.nodes[name]
            log_density = log_density + node["fn"].log_prob(node["value"]).reshape(theta.shape[0], -1).sum(-1)
        returned: Any = trace.nodes["_RETURN"]["value"]
        return returned, log_density
