"""Draws of group effects from their conditional: from its Gaussian, corrected where the response is not.

Two corrections, each exact in the limit: a choice among candidates by importance weights, and elliptical
slice sampling about the Gaussian (Murray, Adams, MacKay, AISTATS 2010; Nishihara, Murray, Adams, JMLR 15,
2014), which needs no tuning and treats all groups and draws at once.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyro_armed.group_gaussian import Effects

__all__ = ["choose_effects", "slice_sample"]

_SPREAD = 1.3
# Of the ellipses: tails heavier than the Gaussian's are left slowly without. Of 1, 1.3, 1.6 and 2 times the
# sd, the prior's ellipses and Student's, 1.6 came nearest to a half-normal posterior in three steps.
_SLICE_SPREAD = 1.6
_SHRINKAGES = 30


def choose_effects(
    conditional: Any, problem: Any, effects: Effects, candidates: int, generator: torch.Generator
) -> tuple[list[Tensor], Tensor]:
    """One draw of z for each group: the Gaussian's own, or one of several candidates.

    Parameters
    ----------
    conditional : GroupConditional or GaussianConditional
        The density.
    problem : Problem or GaussianProblem
        From its ``problem``.
    effects : Effects
        From its ``solve``.
    candidates : int
        Draws for each group to choose from; there is no choice for several grouping factors.
    generator : torch.Generator
        Source of the draws.

    Returns
    -------
    z : list of Tensor, shape (S, C_g, D_g)
    log_ratio : Tensor, shape (S, C)
        Log ratio of each group's conditional and its Gaussian at the first candidate; empty without choice.
    """
    z = conditional.draw(effects, _noise(effects, generator))
    if len(conditional.groups) > 1 or not hasattr(conditional, "by_group"):
        return z, z[0].new_empty(z[0].shape[0], 0)
    ratio = conditional.by_group(problem, z) - conditional.density_by_group(effects, z)
    kept, best = z[0], ratio + _gumbel(ratio, generator)
    for _ in range(candidates - 1):
        # Wider than the Gaussian, which a skewed conditional leaves on one side.
        narrow = conditional.draw(effects, _noise(effects, generator))
        other = _around(effects, narrow, _SPREAD)
        weight = conditional.by_group(problem, other) - conditional.density_by_group(effects, narrow)
        weight = weight + narrow[0].shape[-1] * math.log(_SPREAD)
        key = weight + _gumbel(weight, generator)
        kept = torch.where((key > best).unsqueeze(-1), other[0], kept)
        best = torch.maximum(best, key)
    return [kept], ratio


def slice_sample(
    conditional: Any, problem: Any, effects: Effects, z: list[Tensor], steps: int, generator: torch.Generator
) -> list[Tensor]:
    """Move draws of z by steps that leave their conditional density as it is.

    Parameters
    ----------
    conditional : GroupConditional
        The density. With one grouping factor each group has slices of its own.
    problem, effects
        As for `choose_effects`.
    z : list of Tensor, shape (S, C_g, D_g)
        Where to start.
    steps : int
        How many.
    generator : torch.Generator
        Source of the draws.

    Returns
    -------
    list of Tensor, shape (S, C_g, D_g)
    """
    height = _log_ratio(conditional, problem, effects, z)
    for _ in range(steps):
        narrow = conditional.draw(effects, _noise(effects, generator))
        other = _around(effects, narrow, _SLICE_SPREAD)
        level = height + _uniform(height, generator).log()
        angle = 2 * math.pi * _uniform(height, generator)
        low, high = angle - 2 * math.pi, angle
        open_ = torch.ones_like(height, dtype=torch.bool)
        for _ in range(_SHRINKAGES):
            proposal = _on_ellipse(effects, z, other, torch.where(open_, angle, torch.zeros_like(angle)))
            reached = _log_ratio(conditional, problem, effects, proposal)
            accepted = open_ & (reached > level)
            z = [torch.where(accepted.unsqueeze(-1), p, old) for p, old in zip(proposal, z, strict=True)]
            height = torch.where(accepted, reached, height)
            open_ = open_ & ~accepted
            if not bool(open_.any()):
                break
            low = torch.where(angle < 0, angle, low)
            high = torch.where(angle >= 0, angle, high)
            angle = low + (high - low) * _uniform(height, generator)
    return z


def _on_ellipse(effects: Effects, z: list[Tensor], other: list[Tensor], angle: Tensor) -> list[Tensor]:
    """Points through z and another draw around the Gaussian's mean."""
    cosine, sine = angle.cos().unsqueeze(-1), angle.sin().unsqueeze(-1)
    return [
        mean + (a - mean) * cosine + (b - mean) * sine
        for mean, a, b in zip(effects.mean, z, other, strict=True)
    ]


def _around(effects: Effects, z: list[Tensor], factor: float) -> list[Tensor]:
    """Points as many times as far from the Gaussian's mean."""
    return [mean + factor * (part - mean) for mean, part in zip(effects.mean, z, strict=True)]


def _log_ratio(conditional: Any, problem: Any, effects: Effects, z: list[Tensor]) -> Tensor:
    """Log ratio of conditional and widened Gaussian: (S, C) for one factor, (S, 1) for crossed ones."""
    narrow = _around(effects, z, 1 / _SLICE_SPREAD)
    if len(conditional.groups) == 1:
        ratio: Tensor = conditional.by_group(problem, z) - conditional.density_by_group(effects, narrow)
        return ratio
    return (conditional.joint(problem, z) - conditional.log_density(effects, narrow)).unsqueeze(-1)


def _noise(effects: Effects, generator: torch.Generator) -> list[Tensor]:
    return [torch.randn(m.shape, generator=generator, dtype=m.dtype).to(m.device) for m in effects.mean]


def _gumbel(like: Tensor, generator: torch.Generator) -> Tensor:
    return -torch.log(-torch.log(_uniform(like, generator)))


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    uniform = torch.rand(like.shape, generator=generator, dtype=like.dtype)
    return uniform.clamp_min(torch.finfo(like.dtype).tiny).to(like.device)
