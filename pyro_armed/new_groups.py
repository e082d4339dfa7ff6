"""Effects of groups that training has not seen.

Each mode appends rows to the tables of group effects; rows of a batch point to them by code. Everything
after that is the same for seen and new groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_armed.errors import ArgumentError, UnseenGroupError
from pyro_armed.module import MixedEffectsModule
from pyro_armed.spec import EffectBlock

__all__ = ["MODES", "check_mode", "extend_effects"]

MODES = ("error", "population", "marginal")


def check_mode(mode: str, new_groups: Mapping[str, Sequence[Any]]) -> None:
    """Check the ``new_groups`` argument against the labels at hand.

    Parameters
    ----------
    mode : str
        One of `MODES`.
    new_groups : mapping of str to sequence
        New labels of each grouping factor.

    Raises
    ------
    ArgumentError
        For an unknown mode.
    UnseenGroupError
        For new labels under ``"error"``.
    """
    if mode not in MODES:
        raise ArgumentError(f"new_groups={mode!r} is not one of {', '.join(map(repr, MODES))}.")
    if mode != "error":
        return
    for group, labels in new_groups.items():
        if len(labels):
            shown = ", ".join(repr(label) for label in labels[:5]) + (", ..." if len(labels) > 5 else "")
            raise UnseenGroupError(
                f"Group '{group}' has labels that training did not have: {shown}. Pass "
                "new_groups='marginal' to draw their effects from the distribution of groups, or "
                "'population' for the average group."
            )


def extend_effects(
    module: MixedEffectsModule,
    values: dict[str, Tensor],
    sizes: Mapping[str, int],
    mode: str,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Values with the effects of new groups appended.

    Parameters
    ----------
    module : MixedEffectsModule
        The model.
    values : dict of str to Tensor
        Draws of one chain with a row axis: (S, 1, ...), group effects (S, C, ...).
    sizes : mapping of str to int
        New groups of each grouping factor.
    mode : str
        ``"population"``: zero. ``"marginal"``: one draw from Normal(0, Sigma) for each group and each
        posterior draw, shared by the group's rows and independent between groups.
    generator : torch.Generator
        Source of the draws.

    Returns
    -------
    dict of str to Tensor
        Group effects of shape (S, C + new, ...).
    """
    extended = dict(values)
    for block in module.spec.blocks:
        new = sizes.get(block.group, 0)
        if not new:
            continue
        drawn = _marginal(module, block, values, new, generator)
        for term, effect in zip(block.terms, module.split_effects(block, drawn), strict=True):
            name = block.effect_name(term)
            effect = effect if mode == "marginal" else torch.zeros_like(effect)
            extended[name] = torch.cat([extended[name], effect], dim=1)
    return extended


def _marginal(
    module: MixedEffectsModule,
    block: EffectBlock,
    values: Mapping[str, Tensor],
    new: int,
    generator: torch.Generator,
) -> Tensor:
    """Draws of new groups' effects, shape (S, new, K) or (S, new, K, R)."""
    offsets = []
    for term in block.terms:
        like = values[block.effect_name(term)]
        shape = (like.shape[0], new, *like.shape[2:])
        offsets.append(torch.randn(shape, generator=generator, dtype=like.dtype).to(like.device))
    return module.scale_offsets(block, offsets, values)
