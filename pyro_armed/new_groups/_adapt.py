"""Groups of which a few rows with their responses are known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_armed.design import Encoded
from pyro_armed.errors import ArgumentError
from pyro_armed.new_groups._modes import Marginal, Mode, draw_marginal
from pyro_armed.new_groups._within import fit_within
from pyro_armed.partial_conditional import draw_free_effects
from pyro_armed.posterior import Chain
from pyro_armed.spec import ModelSpec

__all__ = ["Adapt"]


class Adapt(Mode):
    """A group of which some rows are known: its effects given these rows, for each draw of all else.

    Network and global variables stay as training left them: with u the effects of a new group, the draws are
    of p(u | theta, support) for theta from p(theta | training). Groups without support get `Marginal`.
    Effects within the network are drawn from the Gaussians that `fit_within` fits to the support, and u given
    their means, as `fit` does for the groups of training.

    Parameters
    ----------
    spec : ModelSpec
        The model's structure.
    support : Encoded
        Rows with their response. Each has at least one group that training did not have; groups of other
        factors that training had enter with their own effects, draw by draw.

    Raises
    ------
    ArgumentError
        For a model without group effects, and rows of groups that training had.

    Notes
    -----
    Draws of theta are not weighted by p(support | theta), as conditioning theta on the support too would ask:
    the weights differ between groups, and a row's prediction would belong to other draws than the rest of
    the posterior. They hardly matter: with five support rows of groups from `simulate.mixed_model`, after 6
    or 20 training groups, the weighted draws' effective share was 82 to 96 %, and weighting changed the
    negative log predictive density by -0.004 to +0.002, within two standard errors of nothing.
    """

    name = "adapt"

    def __init__(self, spec: ModelSpec, support: Encoded):
        if not spec.effect_groups:
            raise ArgumentError("new_groups='adapt' needs group effects to adapt; this model has none.")
        self._support = support
        self._sizes = {name: spec.group(name).size for name in spec.effect_groups}
        self._refuse_seen(spec)

    def _refuse_seen(self, spec: ModelSpec) -> None:
        codes = self._support.batch.codes
        is_new = torch.stack([codes[group] >= size for group, size in self._sizes.items()]).any(0)
        if bool(is_new.all()):
            return
        group = next(iter(self._sizes))
        seen = sorted(set(codes[group][~is_new].tolist()))
        labels = [spec.group(group).labels[code] for code in seen]
        shown = ", ".join(repr(label) for label in labels[:5]) + (", ..." if len(labels) > 5 else "")
        raise ArgumentError(
            f"support has rows of groups that training had ('{group}': {shown}); leave them out, and give "
            "more data on known groups to model.update(new_rows)."
        )

    def effects(self, chain: Chain, encoded: Encoded, generator: torch.Generator) -> dict[str, Tensor]:
        """Effects given the support; see `Mode.effects`."""
        spec, new = chain.module.spec, encoded.new_groups
        # First, so that a group's draws do not depend on which other groups are predicted.
        adapted = self._adapted(chain, generator)
        made = draw_marginal(chain, {group: len(labels) for group, labels in new.items()}, generator)
        for group in self._sizes:
            here, there = _matches(new.get(group, []), self._support.new_groups.get(group, []))
            for name in spec.effect_names(group) if here else ():
                made[name][:, here] = adapted[name][:, there]
        return made

    def _adapted(self, chain: Chain, generator: torch.Generator) -> dict[str, Tensor]:
        """Effects of the groups with support by name, (S, M, ...)."""
        spec, batch = chain.module.spec, self._support.batch
        counts = {group: len(self._support.new_groups.get(group, ())) for group in self._sizes}
        within, means = {}, None
        if any(counts[layer.group] for layer in spec.layers):
            found = fit_within(chain, batch, counts, generator)
            within, means = found.draw(chain.n_draws, generator), found.means
        free = {
            block.group: self._sizes[block.group] + torch.arange(counts[block.group]) for block in spec.blocks
        }
        if not any(map(len, free.values())):
            return within
        return within | draw_free_effects(chain, batch, free, generator, means)

    def received(self, encoded: Encoded) -> dict[str, list[str]]:
        """``"adapt"`` for groups with support, ``"marginal"`` for others."""
        return {
            group: [self.name if label in known else Marginal.name for label in labels]
            for group, labels in encoded.new_groups.items()
            for known in [set(self._support.new_groups.get(group, ())) if group in self._sizes else set()]
        }


def _matches(labels: list[Any], others: list[Any]) -> tuple[list[int], list[int]]:
    """Positions of what two lists share."""
    where: Mapping[Any, int] = {label: position for position, label in enumerate(others)}
    pairs = [(i, where[label]) for i, label in enumerate(labels) if label in where]
    return [i for i, _ in pairs], [j for _, j in pairs]
