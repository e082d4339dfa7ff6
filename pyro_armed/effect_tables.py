"""Effects of groups by the million: drawn for the groups that are asked for, never all at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pyro_armed.guides import MeanFieldGuide
from pyro_armed.seeds import stream

if TYPE_CHECKING:
    from pyro_armed.module import MixedEffectsModule

__all__ = ["HELD", "EffectTables", "effect_numbers"]

# Draws of effects that are held in memory, over all chains.
HELD = 50_000_000


def effect_numbers(guide: MeanFieldGuide) -> int:
    """Numbers in one draw of the effects of all groups."""
    return sum(
        location.numel()
        for site, location in zip(guide.sites, guide.locations, strict=True)
        if site.group is not None
    )


@dataclass(frozen=True)
class EffectTables:
    """The Gaussians of a mean-field guide over the effects of all groups.

    A group's draws come from a random stream of its own (Philox, the group's code as counter): they are the
    same whichever other groups are asked for.

    Attributes
    ----------
    groups : dict of str to str
        Grouping factor of each sample site.
    locations, scales : dict of str to Tensor, shape (C, ...)
        Means and sds by sample site.
    draws : int
        Number of draws S.
    seed : int
        Seed of all draws.
    """

    groups: dict[str, str]
    locations: dict[str, Tensor]
    scales: dict[str, Tensor]
    draws: int
    seed: int

    @classmethod
    def of(cls, guide: MeanFieldGuide, draws: int, seed: int) -> EffectTables:
        """The tables of a guide.

        Parameters
        ----------
        guide : MeanFieldGuide
            After training.
        draws : int
            Number of draws S.
        seed : int
            Seed of the draws.

        Returns
        -------
        EffectTables
        """
        sites = zip(guide.sites, guide.locations, guide.log_scales, strict=True)
        own = [(site, location, scale) for site, location, scale in sites if site.group is not None]
        return cls(
            {site.name: str(site.group) for site, _, _ in own},
            {site.name: location.detach().cpu() for site, location, _ in own},
            {site.name: scale.detach().exp().cpu() for site, _, scale in own},
            draws,
            seed,
        )

    def draw(
        self, module: MixedEffectsModule, values: Mapping[str, Tensor], codes: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Effects of some groups.

        Parameters
        ----------
        module : MixedEffectsModule
            The model.
        values : mapping of str to Tensor, shape (S, ...)
            Draws of everything that is not specific to a group.
        codes : mapping of str to Tensor, shape (P,)
            Which groups, by grouping factor.

        Returns
        -------
        dict of str to Tensor, shape (S, P, ...)
            By effect name, for the grouping factors in ``codes``.
        """
        # Sds and correlations as the module takes them in a plate of draws: an axis of one for the groups.
        shared = {name: value[:, None] for name, value in values.items()}
        drawn = {
            name: self._draw(name, codes[group]) for name, group in self.groups.items() if group in codes
        }
        within = {name for layer in module.spec.layers for name in layer.names}
        effects = {name: value for name, value in drawn.items() if name in within}
        for block in module.spec.blocks:
            if block.group in codes:
                names = [block.effect_name(term) for term in block.terms]
                offsets = [drawn[f"{name}_offset"] for name in names]
                scaled = module.split_effects(block, module.scale_offsets(block, offsets, shared))
                effects |= dict(zip(names, scaled, strict=True))
        return effects

    def _draw(self, name: str, codes: Tensor) -> Tensor:
        location, scale = self.locations[name][codes], self.scales[name][codes]
        key, width = stream(self.seed, "effects", name), math.prod(location.shape[1:])
        noise = np.empty((len(codes), self.draws, width))
        for row, code in enumerate(codes.tolist()):
            generator = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, code]))
            generator.standard_normal(out=noise[row])
        normal = torch.as_tensor(noise).transpose(0, 1).reshape(self.draws, *location.shape)
        return location + scale * normal.to(location.dtype)
