"""The group effects' conditional for a Gaussian response, from sums of squares and products.

With an identity link and one noise scale everything depends on the rows only through cross-products, which
are taken once: an evaluation costs as much as the groups, not as the rows. Exact, no Newton steps.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_armed.batch import Batch
from pyro_armed.conditional import GroupConditional
from pyro_armed.crossed import CrossProducts, log_determinant
from pyro_armed.group_gaussian import Effects, GroupGaussian, Hidden, solve_lower
from pyro_armed.module import MixedEffectsModule

__all__ = ["GaussianConditional", "GaussianProblem", "conditional_of", "has_gaussian_conditional"]


@dataclass(frozen=True)
class GaussianProblem:
    """The conditional of z for S values of the global variables.

    Attributes
    ----------
    values : mapping of str to Tensor
        Global values, (S, 1, ...).
    contrast : Tensor, shape (S, P + 1)
        What turns columns and response into residuals: the prior centres minus the coefficients, then one.
    variance : Tensor, shape (S,)
        Noise variance.
    transforms : list of Tensor, shape (S, D_g, D_g)
        Square roots of each grouping factor's covariance: u = transform z.
    """

    values: Mapping[str, Tensor]
    contrast: Tensor
    variance: Tensor
    transforms: list[Tensor]


def has_gaussian_conditional(module: MixedEffectsModule) -> bool:
    """Whether the response is Gaussian around its predictor with one noise scale."""
    family = module.spec.family
    return family.name == "gaussian" and family.link.name == "identity" and len(module.spec.predictors) == 1


def conditional_of(
    module: MixedEffectsModule,
    batch: Batch,
    hidden: Hidden = None,
    sizes: Mapping[str, int] | None = None,
    within: Tensor | None = None,
) -> Any:
    """The cheapest exact way to the group effects of a model: Gaussian or not.

    Each solves the problems that it makes itself, which is more than their types can say.
    """
    if has_gaussian_conditional(module):
        return GaussianConditional(module, batch, hidden, sizes, within)
    return GroupConditional(module, batch, hidden, sizes)


class GaussianConditional(GroupGaussian):
    """Group effects of a Gaussian model given its global variables; see `GroupConditional`.

    Parameters
    ----------
    module, batch, hidden, sizes
        As for `GroupGaussian`.
    within : Tensor, 0-dim, optional
        What `pool_rows` took from the sum of squares of the rows.
    """

    def __init__(
        self,
        module: MixedEffectsModule,
        batch: Batch,
        hidden: Hidden = None,
        sizes: Mapping[str, int] | None = None,
        within: Tensor | None = None,
    ):
        super().__init__(module, batch, hidden, sizes)
        self._coefficients = self._coefficient_names()
        columns, offset = self._columns()
        # Residuals are taken from the priors' centres: squares of a large mean would swallow the variance.
        self._reference = self._prior_centres(columns)
        offset = offset + columns @ self._reference
        rows = torch.cat([columns, (batch.response - offset).unsqueeze(-1)], dim=-1)  # type: ignore[operator]
        weight = torch.ones_like(offset) if batch.weights is None else batch.weights
        self.total_weight = weight.sum()
        self.within = weight.new_zeros(()) if within is None else within
        self.squares = rows.mT @ (rows * weight.unsqueeze(-1))
        self.squares[-1, -1] += self.within
        slopes = {name: self.columns_of(name) for name in self.groups}
        weighted = {name: slope * weight.unsqueeze(-1) for name, slope in slopes.items()}
        self.products = [
            self._sum(g, weighted[n].unsqueeze(-1) * rows.unsqueeze(1)) for g, n in enumerate(self.groups)
        ]
        self.grams = [
            self._sum(g, weighted[n].unsqueeze(-1) * slopes[n].unsqueeze(1))
            for g, n in enumerate(self.groups)
        ]
        self.crossed = {
            (g, h): self._cross(weighted, slopes, g, h)
            for g in range(len(self.groups))
            for h in range(max(g, 1), len(self.groups))
            if g != h
        }
        self.pairs = self._pairs()

    def problem(self, values: Mapping[str, Tensor]) -> GaussianProblem:
        """What the conditional needs at some global values (S, 1, ...)."""
        size = values["sigma"].shape[0]
        parts = [values[name].reshape(size, -1) for name in self._coefficients]
        coefficients = torch.cat(parts, dim=-1) if parts else values["sigma"].new_zeros(size, 0)
        contrast = torch.cat(
            [
                self._reference - coefficients,
                torch.ones_like(coefficients[:, :1] if parts else values["sigma"]),
            ],
            dim=-1,
        )
        transforms = [self._transform(name, values) for name in self.groups]
        return GaussianProblem(values, contrast, values["sigma"].reshape(size).square(), transforms)

    def given_residuals(self, square: Tensor, products: list[Tensor]) -> GaussianConditional:
        """The conditional where what the rows leave of the predictor is known, and has no coefficients.

        Parameters
        ----------
        square : Tensor, 0-dim
            Weighted sum of the residuals' squares.
        products : list of Tensor, shape (C_g, D_g)
            Weighted sums over each group's rows of residual times column, for each grouping factor.

        Returns
        -------
        GaussianConditional
        """
        other = copy.copy(self)
        other._coefficients, other._reference = [], square.new_zeros(0)
        other.squares = square.reshape(1, 1)
        other.products = [product.unsqueeze(-1) for product in products]
        return other

    def solve(self, problem: GaussianProblem, start: object = None, **_: object) -> Effects:
        """Mean and precision of z, exact."""
        precision = self._factorise(problem)
        return Effects(self._apply_inverse(precision, self._scores(problem)), *precision)

    def integrated(self, problem: GaussianProblem, start: object = None) -> Tensor:
        """The log density log p(y | theta), exact, shape (S,).

        The mean of z maximises the joint density, so that its own derivatives drop out: far cheaper than
        derivatives through the factorisation.
        """
        blocks, crossed, dense = self._parts(problem)
        eliminated = self._eliminated(problem, blocks)
        scores = self._scores(problem)
        with torch.no_grad():
            precision = self._eliminate(blocks, crossed, dense, eliminated)
            if not scores[0].requires_grad:
                return self._likelihood(problem, self._fit(precision, scores) - precision[3])
            z = self._apply_inverse(precision, scores)
        first = z[0].reshape(len(z[0]), -1, 1)
        score = sum((part * s).sum((1, 2)) for part, s in zip(z, scores, strict=True))
        square = _quadratic(blocks, z[0])
        log_det = log_determinant(blocks, precision[0]).sum(-1)
        if crossed.shape[-1]:
            second = torch.cat([part.reshape(len(part), -1) for part in z[1:]], dim=1).unsqueeze(-1)
            square = square + (2 * first.mT @ crossed @ second + second.mT @ dense @ second)[:, 0, 0]
            if eliminated is None:
                cross = torch.linalg.solve_triangular(
                    torch.linalg.cholesky(blocks), crossed.reshape(*blocks.shape[:3], -1), upper=False
                ).reshape(crossed.shape)
                eliminated = cross.mT @ cross
            log_det = log_det + log_determinant(dense - eliminated, precision[2])
        return self._likelihood(problem, 2 * score - square - log_det)

    def _fit(self, precision: tuple[Tensor, Tensor, Tensor, Tensor], scores: list[Tensor]) -> Tensor:
        """Scores' squares in the metric of the inverse precision, which z at its mean adds, shape (S,)."""
        primary, cross, rest, _ = precision
        size = len(primary)
        half = solve_lower(primary, scores[0].unsqueeze(-1)).reshape(size, -1)
        total = half.square().sum(1)
        if rest.shape[-1]:
            others = torch.cat([score.reshape(size, -1) for score in scores[1:]], dim=1).unsqueeze(-1)
            left = others - cross.mT @ half.unsqueeze(-1)
            total = total + torch.linalg.solve_triangular(rest, left, upper=False).square().sum((1, 2))
        return total

    def _likelihood(self, problem: GaussianProblem, effects: Tensor) -> Tensor:
        """The log likelihood from twice what the group effects add to that without them, shape (S,)."""
        log_scale = self.total_weight * (math.log(2 * math.pi) + problem.variance.log())
        return -0.5 * (log_scale + self._residual_squares(problem) / problem.variance - effects)

    def evidence(self, problem: GaussianProblem) -> Tensor:
        """The log density log p(y | theta) of a model without group effects, shape (S,)."""
        return self._likelihood(problem, torch.zeros_like(problem.variance))

    def _residual_squares(self, problem: GaussianProblem) -> Tensor:
        return ((problem.contrast @ self.squares) * problem.contrast).sum(-1)

    # --- sums of products --------------------------------------------------------------------------------

    def _coefficient_names(self) -> list[str]:
        predictor = self.module.spec.mu
        labels = ["Intercept", *(term.name for term in predictor.terms), "features"]
        return [
            predictor.common_name(label)
            for label in labels
            if predictor.common_name(label) in self.module.priors
        ]

    def _columns(self) -> tuple[Tensor, Tensor]:
        """Columns (N, P) that the coefficients multiply and what is added to them, read off the model."""
        module, predictor = self.module, self.module.spec.mu
        shapes = {name: module.priors[name].raw.event_shape for name in self._coefficients}
        sizes = [max(1, shape.numel()) for shape in shapes.values()]
        units = torch.eye(sum(sizes), dtype=module.priors.dtype, device=module.priors.device)
        units = torch.cat([torch.zeros_like(units[:1]) if len(units) else units.new_zeros(1, 0), units])
        values = {
            name: part.reshape(len(units), 1, *shape)
            for (name, shape), part in zip(shapes.items(), units.split(sizes, dim=-1), strict=True)
        }
        eta = module.linear_predictor(predictor, values, self.batch, self.hidden, random=False)
        eta = eta.expand(len(units), -1)
        return (eta[1:] - eta[0]).mT, eta[0]

    def _prior_centres(self, columns: Tensor) -> Tensor:
        """Central prior value of each coefficient, shape (P,)."""
        priors = [self.module.priors[name] for name in self._coefficients]
        centres = [prior.shift.expand(max(1, prior.raw.event_shape.numel())) for prior in priors]
        return torch.cat(centres) if centres else columns.new_zeros(0)

    def columns_of(self, name: str) -> Tensor:
        """Columns that a factor's effects multiply, shape (N, D)."""
        parts = [self.module.slope_columns(block, self.batch, self.hidden) for block in self.blocks[name]]
        return torch.cat(parts, dim=-1)

    def _sum(self, g: int, rows: Tensor) -> Tensor:
        return self._sum_by_group(g, rows.unsqueeze(0))[0]

    def _cross(self, weighted: Mapping[str, Tensor], slopes: Mapping[str, Tensor], g: int, h: int) -> Tensor:
        """Products of two factors' columns, shape (C_g, D_g, C_h, D_h)."""
        first, second = self.groups[g], self.groups[h]
        rows = weighted[first].unsqueeze(-1) * slopes[second].unsqueeze(1)
        index = self._positions(g, 0)[:, :, None] * (self.counts[second] * self.widths[second])
        index = index + self._positions(h, 0)[:, None, :]
        shape = (self.counts[first], self.widths[first], self.counts[second], self.widths[second])
        total = rows.new_zeros(math.prod(shape))
        return total.index_add(0, index.reshape(-1), rows.reshape(-1)).reshape(shape)

    # --- the conditional ---------------------------------------------------------------------------------

    def _transform(self, name: str, values: Mapping[str, Tensor]) -> Tensor:
        blocks = []
        for block in self.blocks[name]:
            sds = self.module.block_sds(block, values)[:, 0]
            factor = self._factor(block, values)
            blocks.append(torch.diag_embed(sds) if factor is None else sds.unsqueeze(-1) * factor)
        if len(blocks) == 1:
            return blocks[0]
        return torch.stack([torch.block_diag(*parts) for parts in zip(*blocks, strict=True)])

    def _scores(self, problem: GaussianProblem) -> list[Tensor]:
        scores = []
        for products, transform in zip(self.products, problem.transforms, strict=True):
            raw = (problem.contrast @ products.flatten(0, 1).mT).unflatten(1, products.shape[:2])
            scores.append(_times(raw, transform / problem.variance[:, None, None]))
        return scores

    def _factorise(self, problem: GaussianProblem) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        blocks, crossed, dense = self._parts(problem)
        return self._eliminate(blocks, crossed, dense, self._eliminated(problem, blocks))

    def _parts(self, problem: GaussianProblem) -> tuple[Tensor, Tensor, Tensor]:
        """The precision's blocks (S, C, D, D), crossed (S, C D, M) and dense (S, M, M) parts."""
        scaled = problem.transforms[0] / problem.variance.sqrt()[:, None, None]
        blocks = _sandwiched(self.grams[0], scaled)
        identity = torch.eye(blocks.shape[-1], dtype=blocks.dtype, device=blocks.device)
        return blocks + identity, *self._rest_parts(problem)

    def _pairs(self) -> CrossProducts | None:
        """Products of crossed columns, where each factor has one effect for a group."""
        if len(self.groups) < 2 or any(self.widths[name] > 1 for name in self.groups):
            return None
        parts = [self.crossed[0, h].flatten(1) for h in range(1, len(self.groups))]
        return CrossProducts.of(torch.cat(parts, dim=1))

    def _eliminated(self, problem: GaussianProblem, blocks: Tensor) -> Tensor | None:
        """What eliminating the primary factor takes from the dense part, from pairs of crossed columns."""
        if self.pairs is None:
            return None
        weight = (problem.transforms[0][:, 0] / problem.variance[:, None]).square() / blocks[..., 0, 0]
        sds = torch.cat(
            [
                transform[:, 0].expand(-1, self.counts[name])
                for name, transform in zip(self.groups[1:], problem.transforms[1:], strict=True)
            ],
            dim=1,
        )
        return self.pairs.weighted(weight) * sds.unsqueeze(1) * sds.unsqueeze(2)

    def _rest_parts(self, problem: GaussianProblem) -> tuple[Tensor, Tensor]:
        """Primary x rest (S, C D, M) and rest x rest (S, M, M) parts of the precision."""
        size = len(problem.variance)
        totals = [self.counts[name] * self.widths[name] for name in self.groups]
        scale = problem.variance[:, None, None]
        crossed = [
            self._scaled_cross(problem, 0, h).reshape(size, totals[0], -1) for h in range(1, len(totals))
        ]
        if not crossed:
            empty = problem.variance.new_zeros(size, totals[0], 0)
            return empty, empty[:, :0]
        rows = []
        for g in range(1, len(totals)):
            row = []
            for h in range(1, len(totals)):
                if g == h:
                    row.append(_block_diagonal(_sandwiched(self.grams[g], problem.transforms[g])))
                else:
                    part = self._scaled_cross(problem, min(g, h), max(g, h)).reshape(
                        size, totals[min(g, h)], -1
                    )
                    row.append(part if g < h else part.mT)
            rows.append(torch.cat(row, dim=2))
        dense = torch.cat(rows, dim=1) / scale
        return torch.cat(crossed, dim=2) / scale, dense + torch.eye(dense.shape[-1], dtype=dense.dtype)

    def _scaled_cross(self, problem: GaussianProblem, g: int, h: int) -> Tensor:
        cross = self.crossed[g, h]
        first, second = problem.transforms[g], problem.transforms[h]
        if cross.shape[1] == cross.shape[3] == 1:
            return cross.unsqueeze(0) * (first * second).reshape(-1, 1, 1, 1, 1)
        return torch.einsum("cdef,sdk,sfl->sckel", cross, first, second)


# Products of 1 x 1 matrices, of most models, are slow as such.


def _times(rows: Tensor, transform: Tensor) -> Tensor:
    """Rows (S, C, D) times matrices (S, D, D)."""
    return rows * transform if transform.shape[-1] == 1 else rows @ transform


def _sandwiched(grams: Tensor, transform: Tensor) -> Tensor:
    """T' G T for each of S matrices T (S, D, D) and C matrices G (C, D, D), shape (S, C, D, D)."""
    if transform.shape[-1] == 1:
        return grams * transform.square().unsqueeze(1)
    return transform.mT.unsqueeze(1) @ grams @ transform.unsqueeze(1)


def _quadratic(blocks: Tensor, z: Tensor) -> Tensor:
    """Sum over groups of z' B z, for B (S, C, D, D) and z (S, C, D), shape (S,)."""
    if z.shape[-1] == 1:
        return (blocks[..., 0] * z.square()).sum((1, 2))
    return (z.unsqueeze(-2) @ blocks @ z.unsqueeze(-1)).sum((1, 2, 3))


def _block_diagonal(blocks: Tensor) -> Tensor:
    """Blocks (S, C, D, D) on the diagonal of (S, C D, C D)."""
    size, groups, width = blocks.shape[:3]
    if width == 1:
        return torch.diag_embed(blocks.reshape(size, groups))
    full = blocks.new_zeros(size, groups, width, groups, width)
    index = torch.arange(groups, device=blocks.device)
    full[:, index, :, index, :] = blocks.transpose(0, 1)
    return full.reshape(size, groups * width, groups * width)
