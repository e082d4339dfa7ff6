"""Gaussians over the group effects: what conditionals of every kind share.

The precision of the standardised effects z of all groups is an arrow: with one grouping factor it is block
diagonal; with several, the largest factor's diagonal blocks are eliminated and the rest (M effects) is
dense, as in Bates et al. (2015, lme4).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_armed.batch import Batch
from pyro_armed.module import MixedEffectsModule
from pyro_armed.priors import corr_name
from pyro_armed.spec import EffectBlock

__all__ = ["Effects", "GroupGaussian", "Hidden", "cholesky", "solve_lower", "solve_transposed"]

Hidden = tuple[Tensor, Tensor] | None


@dataclass(frozen=True)
class Effects:
    """A Gaussian over z: ``mean`` and the factors of its precision.

    Attributes
    ----------
    mean : list of Tensor, shape (S, C_g, D_g)
        Mode for each grouping factor; the primary one is first.
    primary : Tensor, shape (S, C, D, D)
        Cholesky factors of the primary factor's diagonal blocks.
    cross : Tensor, shape (S, C * D, M)
        Primary block times the rest, divided by the factors; M = 0 for one grouping factor.
    rest : Tensor, shape (S, M, M)
        Cholesky factor of the Schur complement.
    log_det : Tensor, shape (S,)
        Log determinant of the precision.
    """

    mean: list[Tensor]
    primary: Tensor
    cross: Tensor
    rest: Tensor
    log_det: Tensor

    def replaced(self, which: Tensor, others: Effects) -> Effects:
        """With those of some of the S, a mask, replaced by others."""
        parts = [self.primary, self.cross, self.rest, self.log_det]
        new = [others.primary, others.cross, others.rest, others.log_det]
        return Effects(
            [own.index_put((which,), other) for own, other in zip(self.mean, others.mean, strict=True)],
            *(own.index_put((which,), other) for own, other in zip(parts, new, strict=True)),
        )


class GroupGaussian:
    """The layout of a model's group effects, and the algebra of Gaussians over them.

    Parameters
    ----------
    module : MixedEffectsModule
        The model.
    batch : Batch
        All rows of the groups concerned.
    hidden : tuple of Tensor, optional
        The network's features and output for these rows.
    sizes : mapping of str to int, optional
        Number of groups of each factor where it is not that of training (new groups).
    only : sequence of str, optional
        The grouping factors whose effects are meant; None: all.

    Attributes
    ----------
    groups : list of str
        Grouping factors with effects; the first, with most effects, is eliminated block by block.
    counts, widths : dict of str to int
        Groups C and effects of one group D of each factor.
    """

    def __init__(
        self,
        module: MixedEffectsModule,
        batch: Batch,
        hidden: Hidden = None,
        sizes: Mapping[str, int] | None = None,
        only: Sequence[str] | None = None,
    ):
        self.module, self.batch, self.hidden = module, batch, hidden
        spec = module.spec
        counts = {group.name: (sizes or {}).get(group.name, group.size) for group in spec.groups}
        names = [group.name for group in spec.groups if any(b.group == group.name for b in spec.blocks)]
        names = names if only is None else [name for name in names if name in only]
        self.blocks = {name: [b for b in spec.blocks if b.group == name] for name in names}
        self.widths = {name: sum(self._width(b) for b in self.blocks[name]) for name in names}
        self.groups = sorted(names, key=lambda name: -counts[name] * self.widths[name])
        self.counts = counts

    def draw(self, effects: Effects, noise: list[Tensor]) -> list[Tensor]:
        """Draws of z from the Gaussian, differentiable.

        Parameters
        ----------
        effects : Effects
            From `solve`.
        noise : list of Tensor, shape (S, C_g, D_g)
            Standard normal noise for each grouping factor, primary first.

        Returns
        -------
        list of Tensor, shape (S, C_g, D_g)
        """
        size, groups, width = effects.primary.shape[:3]
        first = noise[0].reshape(size, -1, 1)
        parts: list[Tensor] = []
        if effects.rest.shape[-1]:
            others = torch.cat([part.reshape(size, -1) for part in noise[1:]], dim=1).unsqueeze(-1)
            second = torch.linalg.solve_triangular(effects.rest.mT, others, upper=True)
            first = first - effects.cross @ second
            parts = self._split_rest(second[..., 0])
        solved = solve_transposed(effects.primary, first.reshape(size, groups, width, 1))[..., 0]
        return [mean + part for mean, part in zip(effects.mean, [solved, *parts], strict=True)]

    def log_density(self, effects: Effects, z: list[Tensor]) -> Tensor:
        """Log density of the Gaussian at z, shape (S,)."""
        size = effects.primary.shape[0]
        centred = [a - b for a, b in zip(z, effects.mean, strict=True)]
        first = (effects.primary.mT @ centred[0].unsqueeze(-1)).reshape(size, -1, 1)
        square = effects.log_det.new_zeros(size)
        count = centred[0][0].numel()
        if effects.rest.shape[-1]:
            others = torch.cat([part.reshape(size, -1) for part in centred[1:]], dim=1).unsqueeze(-1)
            first = first + effects.cross @ others
            square = (effects.rest.mT @ others).square().sum((1, 2))
            count += others.shape[1]
        square = square + first.square().sum((1, 2))
        return 0.5 * (effects.log_det - square - count * math.log(2 * math.pi))

    def density_by_group(self, effects: Effects, z: list[Tensor]) -> Tensor:
        """Log density of the Gaussian for each group of the only grouping factor, shape (S, C)."""
        white = (effects.primary.mT @ (z[0] - effects.mean[0]).unsqueeze(-1))[..., 0]
        log_det = effects.primary.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return log_det - 0.5 * white.square().sum(-1) - 0.5 * z[0].shape[-1] * math.log(2 * math.pi)

    def offsets(self, name: str, table: Tensor) -> list[tuple[EffectBlock, list[Tensor]]]:
        """A factor's z (S, C, D) as offsets of each block's terms: (S, C), (S, C, K), with R at the end."""
        result = []
        widths = [self._width(block) for block in self.blocks[name]]
        for block, part in zip(self.blocks[name], table.split(widths, dim=-1), strict=True):
            outputs = self._outputs(block.parameter)
            shaped = part.reshape(*part.shape[:2], block.size, outputs) if outputs > 1 else part
            result.append((block, self.module.split_effects(block, shaped)))
        return result

    def scaled(self, values: Mapping[str, Tensor], z: list[Tensor]) -> list[Tensor]:
        """Effects u = D(tau) L z of each grouping factor, (S, C_g, D_g) as z itself."""
        return self._by_block(z, lambda block, part: self._root(block, values, part))

    def standardised(self, values: Mapping[str, Tensor], effects: list[Tensor]) -> list[Tensor]:
        """The z of which `scaled` makes these effects."""
        return self._by_block(effects, lambda block, part: self._root_inverse(block, values, part))

    def _by_block(
        self, tables: list[Tensor], change: Callable[[EffectBlock, Tensor], Tensor]
    ) -> list[Tensor]:
        """Each block's columns, as (S, C, K, R), changed."""
        changed = []
        for name, table in zip(self.groups, tables, strict=True):
            parts = table.split([self._width(block) for block in self.blocks[name]], dim=-1)
            shaped = [
                change(block, part.unflatten(-1, (block.size, self._outputs(block.parameter))))
                for block, part in zip(self.blocks[name], parts, strict=True)
            ]
            changed.append(torch.cat([part.flatten(2) for part in shaped], dim=-1))
        return changed

    def _root(self, block: EffectBlock, values: Mapping[str, Tensor], z: Tensor) -> Tensor:
        factor = self._factor(block, values)
        z = z if factor is None else factor.unsqueeze(1) @ z
        return z * self._sds(block, values)

    def _root_inverse(self, block: EffectBlock, values: Mapping[str, Tensor], effects: Tensor) -> Tensor:
        factor, z = self._factor(block, values), effects / self._sds(block, values)
        return z if factor is None else torch.linalg.solve_triangular(factor.unsqueeze(1), z, upper=False)

    def _sds(self, block: EffectBlock, values: Mapping[str, Tensor]) -> Tensor:
        """Standard deviations of a block's effects, shape (S, 1, K, R)."""
        sds = self.module.block_sds(block, values)
        return sds if self._outputs(block.parameter) > 1 else sds.unsqueeze(-1)

    def effects(self, values: Mapping[str, Tensor], z: list[Tensor]) -> dict[str, Tensor]:
        """Effects u of each term by name, (S, C, ...), from z of each grouping factor."""
        named = {}
        for name, table in zip(self.groups, z, strict=True):
            for block, offsets in self.offsets(name, table):
                scaled = self.module.scale_offsets(block, offsets, values)
                for term, effect in zip(block.terms, self.module.split_effects(block, scaled), strict=True):
                    named[block.effect_name(term)] = effect
        return named

    @staticmethod
    def _eliminate(
        blocks: Tensor, crossed: Tensor, dense: Tensor, eliminated: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Factor the Hessian from its blocks (S, C, D, D), crossed (S, C D, M) and dense (S, M, M) parts.

        What elimination takes from the dense part may be given where it is known already.
        """
        primary = cholesky(blocks)
        log_det = 2 * primary.diagonal(dim1=-2, dim2=-1).log().sum((-1, -2))
        size, groups, width = primary.shape[:3]
        total = dense.shape[-1]
        if not total:
            return primary, crossed, dense, log_det
        cross = solve_lower(primary, crossed.reshape(size, groups, width, total))
        cross = cross.reshape(size, groups * width, total)
        rest = torch.linalg.cholesky(dense - (cross.mT @ cross if eliminated is None else eliminated))
        log_det = log_det + 2 * rest.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return primary, cross, rest, log_det

    def _apply_inverse(
        self, precision: tuple[Tensor, Tensor, Tensor, Tensor], scores: list[Tensor]
    ) -> list[Tensor]:
        """Solve the Hessian against one vector for each grouping factor."""
        primary, cross, rest, _ = precision
        size, groups, width = primary.shape[:3]
        half = solve_lower(primary, scores[0].unsqueeze(-1)).reshape(size, -1, 1)
        if not rest.shape[-1]:
            return [solve_transposed(primary, half.reshape(size, groups, width, 1))[..., 0]]
        others = torch.cat([score.reshape(size, -1) for score in scores[1:]], dim=1).unsqueeze(-1)
        second = torch.cholesky_solve(others - cross.mT @ half, rest)
        first = (half - cross @ second).reshape(size, groups, width, 1)
        solved = solve_transposed(primary, first)[..., 0]
        return [solved, *self._split_rest(second[..., 0])]

    def _split_rest(self, values: Tensor) -> list[Tensor]:
        sizes = [self.counts[name] * self.widths[name] for name in self.groups[1:]]
        parts = values.split(sizes, dim=-1)
        return [
            part.reshape(len(values), self.counts[name], self.widths[name])
            for name, part in zip(self.groups[1:], parts, strict=True)
        ]

    def _sum_by_group(self, g: int, rows: Tensor) -> Tensor:
        """Sums of rows (S, N, ...) within groups, (S, C, ...)."""
        name = self.groups[g]
        total = rows.new_zeros(rows.shape[0], self.counts[name], *rows.shape[2:])
        return total.index_add(1, self.batch.codes[name], rows)

    def _sum_rows(self, g: int, rows: Tensor) -> Tensor:
        """Sums of rows (..., N) within groups, (..., C)."""
        name = self.groups[g]
        total = rows.new_zeros(*rows.shape[:-1], self.counts[name])
        return total.index_add(-1, self.batch.codes[name], rows)

    def _positions(self, g: int, start: int) -> Tensor:
        """Positions of each row's effects among those of its side, shape (N, D)."""
        width = self.widths[self.groups[g]]
        codes = self.batch.codes[self.groups[g]]
        return start + codes[:, None] * width + torch.arange(width, device=codes.device)

    def _factor(self, block: EffectBlock, values: Mapping[str, Tensor]) -> Tensor | None:
        """Cholesky factor of a block's correlations, shape (S, K, K); None if its effects are independent."""
        return values[corr_name(self.module.spec, block)][:, 0] if block.correlated else None

    def _outputs(self, parameter: str) -> int:
        return self.module.spec.n_predictors if parameter == "mu" else 1

    def _width(self, block: EffectBlock) -> int:
        return block.size * self._outputs(block.parameter)


# Most models have one effect for each group, for which the factorisations of 1 x 1 matrices are slow.


def cholesky(blocks: Tensor) -> Tensor:
    """Cholesky factors of blocks (..., D, D)."""
    return blocks.sqrt() if blocks.shape[-1] == 1 else torch.linalg.cholesky(blocks)


def solve_lower(factor: Tensor, right: Tensor) -> Tensor:
    """Solve lower triangular systems (..., D, D) for right sides (..., D, K)."""
    if factor.shape[-1] == 1:
        return right / factor
    return torch.linalg.solve_triangular(factor, right, upper=False)


def solve_transposed(factor: Tensor, right: Tensor) -> Tensor:
    """Solve the transposed systems of lower triangular factors; see `solve_lower`."""
    if factor.shape[-1] == 1:
        return right / factor
    return torch.linalg.solve_triangular(factor.mT, right, upper=True)
