"""Posterior draws: made once, stored, and reused by everything that comes after."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_armed.effect_tables import EffectTables
from pyro_armed.module import MixedEffectsModule

__all__ = ["Chain", "Posterior"]


@dataclass
class Chain:
    """Draws of one restart (SVI) or one Markov chain (NUTS).

    Attributes
    ----------
    module : MixedEffectsModule
        The model that the draws belong to; restarts have networks of their own.
    values : dict of str to Tensor
        Draws of what `MixedEffectsModule.linear_predictor` takes; S comes first, group effects are
        (S, C, ...), everything else (S, ...).
    stats : dict of str to Tensor
        Sample statistics of each draw, shape (S,), such as ``log_weight`` or ``diverging``.
    trace : Tensor
        The ELBO per row over training, shape (steps,); empty for NUTS.
    quality : dict of str to Tensor
        What says how good the approximation is: ``khat`` and ``converged``, scalars, and ``khat|GROUP``,
        shape (C,), for the effects of each group given everything else. With an adversary the scalar
        ``adversary_chance|GROUP``, the accuracy that needs no features.
    watched : dict of str to Tensor
        What else was watched over training, shape (steps,) each: ``adversary_accuracy|GROUP``.
    tables : EffectTables or None
        Where there are too many groups to hold draws of their effects: ``values`` has everything else, and
        `pyro_armed.some_groups.posterior_of` draws those of some groups.
    """

    module: MixedEffectsModule
    values: dict[str, Tensor]
    stats: dict[str, Tensor] = field(default_factory=dict)
    trace: Tensor = field(default_factory=lambda: torch.empty(0))
    quality: dict[str, Tensor] = field(default_factory=dict)
    watched: dict[str, Tensor] = field(default_factory=dict)
    tables: EffectTables | None = None

    @property
    def n_draws(self) -> int:
        """Number of draws S."""
        return len(next(iter(self.values.values())))

    def chunks(self, size: int) -> Iterator[dict[str, Tensor]]:
        """Values of successive draws, shaped for `MixedEffectsModule.linear_predictor`.

        Parameters
        ----------
        size : int
            Draws at a time.

        Yields
        ------
        dict of str to Tensor
            Everything but group effects has an axis of size one for the rows: (S, 1, ...).
        """
        for start in range(0, self.n_draws, size):
            part = {name: value[start : start + size] for name, value in self.values.items()}
            yield with_row_axis(self.module, part)

    def report(self) -> dict[str, Tensor]:
        """What the posterior reports, on the data's scale: (S, ...) tensors by Bambi's names."""
        groups = self.module.effect_names()
        reported = self.module.report(with_row_axis(self.module, self.values))
        return {name: value if name in groups else value[:, 0] for name, value in reported.items()}


@dataclass
class Posterior:
    """Draws of all chains, and what made them.

    Attributes
    ----------
    chains : list of Chain
        One for each restart or Markov chain.
    attributes : dict
        How inference was done: plain strings and numbers, written into the ArviZ object.
    """

    chains: list[Chain]
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def is_held(self) -> bool:
        """Whether the draws of all groups' effects are in memory."""
        return all(chain.tables is None for chain in self.chains)

    @property
    def n_draws(self) -> int:
        """Draws of each chain."""
        return self.chains[0].n_draws


def with_row_axis(module: MixedEffectsModule, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Draws (S, ...) as (S, 1, ...), group effects as they are."""
    groups = module.effect_names()
    return {name: value if name in groups else value.unsqueeze(1) for name, value in values.items()}
