"""Variational families for the Pyro model."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import biject_to
from torch.distributions.constraints import Constraint

from pyro_armed.batch import Batch
from pyro_armed.local import LocalPyroModule
from pyro_armed.module import OBSERVATIONS, MixedEffectsModule, group_plate
from pyro_armed.seeds import seeded

__all__ = ["LatentSite", "MeanFieldGuide", "global_sites", "is_real", "latent_sites"]

_LARGE = 100_000
_GLOBAL_STARTS = 101


@dataclass(frozen=True)
class LatentSite:
    """One latent variable of the model.

    Attributes
    ----------
    name : str
        The sample site.
    group : str or None
        The grouping factor whose plate it stands in.
    shape : torch.Size
        Shape for all groups: (C, ...) in a plate, else the event shape.
    unconstrained : torch.Size
        Shape of the unconstrained value.
    support : Constraint
        Where the value lives.
    start : Tensor
        A central prior value, unconstrained.
    """

    name: str
    group: str | None
    shape: torch.Size
    unconstrained: torch.Size
    support: Constraint
    start: Tensor

    @property
    def event_dim(self) -> int:
        """Dimensions of one value, plates excluded."""
        return len(self.shape) - int(self.group is not None)


def global_sites(module: MixedEffectsModule) -> list[LatentSite]:
    """The latent variables that are not specific to a group, in the order in which the model draws them.

    Parameters
    ----------
    module : MixedEffectsModule
        The model.

    Returns
    -------
    list of LatentSite
    """
    with seeded(0), torch.no_grad(), pyro.plate("_starts", _GLOBAL_STARTS, dim=-2):
        trace: Any = poutine.trace(module.sample_globals).get_trace()
    sites = []
    for name, node in trace.nodes.items():
        if node["type"] != "sample" or name == "_starts":
            continue
        draws = biject_to(node["fn"].support).inv(node["value"])[:, 0]
        start = torch.zeros_like(draws[0]) if name.endswith("_cholesky") else draws.median(dim=0).values
        shape = node["value"].shape[2:]
        sites.append(LatentSite(name, None, shape, start.shape, node["fn"].support, start))
    return sites


def latent_sites(module: MixedEffectsModule, batch: Batch) -> list[LatentSite]:
    """The model's latent variables in the order in which it draws them.

    Parameters
    ----------
    module : MixedEffectsModule
        The model.
    batch : Batch
        Any rows; not looked at.

    Returns
    -------
    list of LatentSite
    """
    plates = {group_plate(group.name): group.name for group in module.spec.groups}
    # Values of fifteen draws of a million groups would be held for nothing: all start at zero.
    large = [group.name for group in module.spec.groups if group.size > _LARGE]
    sizes = {group.name: group.size for group in module.spec.groups}
    whole = Batch(
        size=batch.size,
        n_rows=batch.n_rows,
        present={name: torch.zeros(1, dtype=torch.long) for name in large},
    )
    with seeded(0), torch.no_grad():
        traces: list[Any] = [
            poutine.trace(poutine.block(module.sample_latents, hide_types=["param"])).get_trace(whole)
            for _ in range(15)
        ]
    sites = []
    for name, node in traces[0].nodes.items():
        if node["type"] != "sample" or node["is_observed"] or name == OBSERVATIONS or name in plates:
            continue
        group = next((plates[frame.name] for frame in node["cond_indep_stack"] if frame.name in plates), None)
        bijection = biject_to(node["fn"].support)
        draws = torch.stack([bijection.inv(trace.nodes[name]["value"]) for trace in traces])
        start = draws.median(dim=0).values
        if group is not None or name.endswith("_cholesky"):
            start = torch.zeros_like(start)
        shape = node["value"].shape
        if group in large:
            shape = torch.Size((sizes[group], *shape[1:]))
            start = start.new_zeros(()).expand(sizes[group], *start.shape[1:])
        sites.append(LatentSite(name, group, shape, start.shape, node["fn"].support, start))
    return sites


class MeanFieldGuide(LocalPyroModule):
    """Independent Gaussians over all unconstrained latent variables.

    Too narrow for mixed models (Goplerud, Papaspiliopoulos, Zanella, arXiv 2312.13148): means are usable,
    intervals are not. Its tables have one row for each group, and a batch touches those present.

    Parameters
    ----------
    module : MixedEffectsModule
        The model.
    batch : Batch
        Training rows.
    generator : torch.Generator
        Source of the starting values.
    init_scale : float
        Starting sd of each unconstrained variable.

    Examples
    --------
    >>> isinstance(MeanFieldGuide, type)
    True
    """

    def __init__(
        self, module: MixedEffectsModule, batch: Batch, generator: torch.Generator, init_scale: float = 0.1
    ):
        super().__init__()
        self.sites = latent_sites(module, batch)
        self.group_sizes = {group.name: group.size for group in module.spec.groups}
        self.locations, self.log_scales = nn.ParameterList(), nn.ParameterList()
        for site in self.sites:
            noise = torch.randn(site.unconstrained, generator=generator, dtype=site.start.dtype)
            spread = 0.3 if site.name == "features_raw" else 0.05
            self.locations.append(nn.Parameter(site.start + spread * noise))
            self.log_scales.append(nn.Parameter(torch.full_like(site.start, math.log(init_scale))))

    def restricted(self, names: Collection[str]) -> MeanFieldGuide:
        """The guide of some of the sites, with the same parameters.

        Parameters
        ----------
        names : collection of str
            Names of sample sites.

        Returns
        -------
        MeanFieldGuide
        """
        kept = [i for i, site in enumerate(self.sites) if site.name in names]
        guide = type(self).__new__(type(self))
        LocalPyroModule.__init__(guide)
        guide.sites, guide.group_sizes = [self.sites[i] for i in kept], self.group_sizes
        guide.locations = nn.ParameterList(self.locations[i] for i in kept)
        guide.log_scales = nn.ParameterList(self.log_scales[i] for i in kept)
        return guide

    @torch.no_grad()
    def centers(self) -> dict[str, Tensor]:
        """Each site's value at the mean of its Gaussian on the unconstrained scale."""
        pairs = zip(self.sites, self.locations, strict=True)
        return {site.name: biject_to(site.support)(location.detach()) for site, location in pairs}

    def forward(self, batch: Batch | None = None, hidden: object = None) -> dict[str, Tensor]:
        """Draw all latent variables.

        Parameters
        ----------
        batch : Batch, optional
            Says which groups are present.
        hidden : object
            Taken for the model's sake, not used.

        Returns
        -------
        dict of str to Tensor
        """
        present = {} if batch is None else batch.present
        scales = {} if batch is None else batch.group_scale
        plates = {
            name: pyro.plate(group_plate(name), size, subsample=present.get(name), dim=-1)
            for name, size in self.group_sizes.items()
        }
        draws = {}
        for site, location, log_scale in zip(self.sites, self.locations, self.log_scales, strict=True):
            if site.group is None:
                draws[site.name] = self._draw(site, location, log_scale)
                continue
            rows = present.get(site.group)
            if rows is not None:
                location, log_scale = location[rows], log_scale[rows]
            weight = scales.get(site.group, torch.ones(()))
            weight = weight * (len(weight) / self.group_sizes[site.group]) if weight.dim() else weight
            with poutine.scale(scale=weight), plates[site.group]:
                draws[site.name] = self._draw(site, location, log_scale)
        return draws

    def tables(self) -> dict[str, str]:
        """Names of the parameters that have one row for each group, and the grouping factor of each."""
        return {
            f"{part}.{position}": site.group
            for position, site in enumerate(self.sites)
            if site.group is not None
            for part in ("locations", "log_scales")
        }

    @staticmethod
    def _draw(site: LatentSite, location: Tensor, log_scale: Tensor) -> Tensor:
        base_event_dim = location.dim() - int(site.group is not None)
        normal = dist.Normal(location, log_scale.exp()).to_event(base_event_dim)
        if is_real(site.support):
            return pyro.sample(site.name, normal)
        return pyro.sample(site.name, dist.TransformedDistribution(normal, [biject_to(site.support)]))


def is_real(support: Constraint) -> bool:
    """Whether a variable may be any number."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support is torch.distributions.constraints.real
