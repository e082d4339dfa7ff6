"""Newton's method for the mode and curvature of the group effects, all groups at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_armed.group_gaussian import Effects, GroupGaussian

__all__ = ["NewtonSolver", "Problem", "square_norm"]

# Matrix products within groups beat sums over rows of products of columns from so many effects on, if groups
# of the largest one's size would hold so many times the rows.
_PADDING_PAYS = ((6, 4.0), (3, 1.5))


@dataclass(frozen=True)
class Problem:
    """The conditional density of z for S values of the global variables.

    Attributes
    ----------
    values : mapping of str to Tensor
        Global values, (S, 1, ...).
    base : Tensor, shape (S, N, E)
        Linear predictors without group effects, one column for each that has some.
    loadings : list of Tensor, shape (S, N, D_g, E)
        What multiplies z of each grouping factor; rows last in memory, which is fastest.
    fixed : mapping of str to Tensor
        Linear predictors without any group effects.
    """

    values: Mapping[str, Tensor]
    base: Tensor
    loadings: list[Tensor]
    fixed: Mapping[str, Tensor]

    def select(self, chosen: Tensor) -> Problem:
        """Some of the S problems, by a mask."""
        return Problem(
            {name: value[chosen] if len(value) > 1 else value for name, value in self.values.items()},
            self.base[chosen],
            [loading.permute(0, 2, 3, 1)[chosen].permute(0, 3, 1, 2) for loading in self.loadings],
            {name: value[chosen] if len(value) > 1 else value for name, value in self.fixed.items()},
        )


@dataclass(frozen=True)
class _Point:
    """The density at some z.

    Attributes
    ----------
    mode : list of Tensor, shape (S, C_g, D_g)
        z of each grouping factor.
    value : Tensor, shape (S, C) or (S, 1)
        Log density of what has a step length of its own.
    gradient, curvature : Tensor
        See `NewtonSolver._row_derivatives`.
    """

    mode: list[Tensor]
    value: Tensor
    gradient: Tensor
    curvature: Tensor

    def select(self, chosen: Tensor) -> _Point:
        """At some of the S problems, by a mask."""
        parts = (part[chosen] for part in (self.value, self.gradient, self.curvature))
        return _Point([part[chosen] for part in self.mode], *parts)


class NewtonSolver(GroupGaussian):
    """Modes of densities that are a likelihood of rows times standard normal effects.

    Attributes
    ----------
    parameters : list of str
        The predictors that have group effects.
    n_columns : int
        Their columns E.
    """

    parameters: list[str]
    n_columns: int
    _padded: Tensor | None

    def log_likelihood(self, problem: Problem, eta: Tensor) -> Tensor:
        """Weighted log density of each row, shape (S, N), at linear predictors (S, N, E)."""
        raise NotImplementedError

    def eta(self, problem: Problem, effects: list[Tensor]) -> Tensor:
        """Linear predictors (S, N, E) with effects z of each grouping factor."""
        eta = problem.base
        for name, loading, z in zip(self.groups, problem.loadings, effects, strict=True):
            index = self.batch.codes[name].expand(len(z), z.shape[2], -1)
            gathered = z.mT.gather(2, index).unsqueeze(-1)
            # A sum over a handful of effects is faster term by term than along a short axis.
            for d in range(loading.shape[2]):
                eta = torch.addcmul(eta, loading[:, :, d], gathered[:, d])
        return eta

    def solve(
        self, problem: Problem, start: list[Tensor] | None = None, steps: int = 30, tolerance: float = 1e-6
    ) -> Effects:
        """The mode and curvature of z; gradients flow from the global values through both.

        Parameters
        ----------
        problem : Problem
            The density.
        start : list of Tensor, optional
            Where to begin, (1 or S, C_g, D_g) for each grouping factor; None: zero.
        steps : int
            Most Newton steps.
        tolerance : float
            Length of a Newton step that is the last one; the error that it leaves is of the order of its
            square.

        Returns
        -------
        Effects
        """
        frozen, start = self._begun(problem, start)
        differentiable = torch.is_grad_enabled() and any(
            v.requires_grad for v in [problem.base, *problem.loadings]
        )
        # The attached step that follows squares what is left of the error.
        goal = math.sqrt(tolerance) if differentiable else tolerance
        found = self._settled(frozen, start, steps, goal)
        return self._attached(problem, found.mean) if differentiable else found

    def solve_blindly(
        self, problem: Problem, start: list[Tensor] | None = None, steps: int = 2
    ) -> tuple[Effects, Tensor]:
        """`solve` by a fixed number of whole Newton steps, which can be traced.

        Parameters
        ----------
        problem : Problem
            The density.
        start : list of Tensor, optional
            See `solve`.
        steps : int
            Newton steps before the one through which gradients flow.

        Returns
        -------
        effects : Effects
            Not finite where the Hessian is not positive definite, unless that raises an error.
        length : Tensor, shape (S,)
            Length of the last of these steps in posterior sds of what has a step length of its own, a group
            or with crossed factors all: the root of Newton's decrement.
        """
        frozen, mode = self._begun(problem, start)
        length = problem.base.new_zeros(len(problem.base))
        for _ in range(steps):
            direction, scores = self._whole_step(
                frozen, mode, *self._row_derivatives(frozen, mode, False)[1:]
            )
            square = [(part * score).sum(-1) for part, score in zip(direction, scores, strict=True)]
            own = square[0].amax(-1) if len(square) == 1 else sum(part.sum(-1) for part in square)
            length = torch.as_tensor(own).sqrt()
            mode = [m + d for m, d in zip(mode, direction, strict=True)]
        direction, _ = self._whole_step(problem, mode, *self._row_derivatives(problem, mode, True)[1:])
        mode = [m + d for m, d in zip(mode, direction, strict=True)]
        curvature = self._row_derivatives(problem, mode, True)[2]
        return Effects(mode, *self._precision(problem, curvature)), length

    def _begun(self, problem: Problem, start: list[Tensor] | None) -> tuple[Problem, list[Tensor]]:
        """The problem without derivatives, and where Newton's method begins for each of its S."""
        frozen = Problem(
            {name: value.detach() for name, value in problem.values.items()},
            problem.base.detach(),
            [loading.detach() for loading in problem.loadings],
            {name: value.detach() for name, value in problem.fixed.items()},
        )
        if start is None:
            start = [problem.base.new_zeros(1, self.counts[n], self.widths[n]) for n in self.groups]
        return frozen, [part.expand(problem.base.shape[0], -1, -1) for part in start]

    def _settled(self, problem: Problem, mode: list[Tensor], steps: int, goal: float) -> Effects:
        """Newton steps of each of the S problems until they are shorter than a goal."""
        point = self._point(problem, mode)
        stuck = torch.zeros(len(point.value), dtype=torch.bool, device=point.value.device)
        left: list[tuple[Tensor, Effects]] = []
        for step in range(steps + 1):
            direction, precision = self._newton(problem, point.mode, point.gradient, point.curvature)
            far = ~(torch.stack([part.abs().amax((1, 2)) for part in direction]).amax(0) < goal)
            going = far & ~stuck
            count = 0 if step == steps else int(going.sum())
            if 2 * count <= len(far):
                # Most have arrived: the others go on without them.
                far = far[:, None, None]
                arrived = [torch.where(far, m, m + d) for m, d in zip(point.mode, direction, strict=True)]
                left.append((going, Effects(arrived, *precision)))
                if not count:
                    break
                problem, point = problem.select(going), point.select(going)
                direction = [part[going] for part in direction]
            point, stuck = self._line_search(problem, point, direction)
        _, found = left.pop()
        for which, others in reversed(left):
            found = others.replaced(which, found)
        return found

    def _attached(self, problem: Problem, mode: list[Tensor]) -> Effects:
        """One step at the mode, whose derivative is that of the implicit function theorem."""
        direction, _ = self._newton(problem, mode, *self._row_derivatives(problem, mode, True)[1:])
        mode = [m + d for m, d in zip(mode, direction, strict=True)]
        curvature = self._row_derivatives(problem, mode, True)[2]
        return Effects(mode, *self._precision(problem, self._definite_curvature(problem, curvature)))

    def _point(self, problem: Problem, mode: list[Tensor]) -> _Point:
        rows, gradient, curvature = self._row_derivatives(problem, mode, False)
        return _Point(mode, self._by_step(mode, rows), gradient, curvature)

    def _line_search(self, problem: Problem, point: _Point, direction: list[Tensor]) -> tuple[_Point, Tensor]:
        """Halve the step where it would worsen: for each group, or for each problem where factors cross.

        Also returns for which problems (S,) no step was short enough.
        """
        scale = torch.ones_like(point.value)

        def worsened(value: Tensor) -> Tensor:
            return ~(value >= point.value - 1e-9 * point.value.abs() - 1e-9)

        reached = self._point(problem, [m + d for m, d in zip(point.mode, direction, strict=True)])
        worse, moved = worsened(reached.value), reached.mode
        if not bool(worse.any()):
            return reached, worse.any(-1)
        # From far away the first step with a log link may be too long by many orders of magnitude.
        for _ in range(40):
            scale = torch.where(worse, scale * 0.5, scale)
            moved = [m + d * scale.unsqueeze(-1) for m, d in zip(point.mode, direction, strict=True)]
            worse = worsened(self._by_step(moved, self.log_likelihood(problem, self.eta(problem, moved))))
            if not bool(worse.any()):
                break
        keep = worse.unsqueeze(-1)
        moved = [torch.where(keep, m, p) for m, p in zip(point.mode, moved, strict=True)]
        return self._point(problem, moved), worse.any(-1)

    def _by_step(self, mode: list[Tensor], rows: Tensor) -> Tensor:
        """Log density of what has a step length of its own: (S, C) for one grouping factor, else (S, 1)."""
        if len(self.groups) == 1:
            return self._sum_rows(0, rows) - 0.5 * square_norm(mode[0])
        total = rows.sum(-1)
        for z in mode:
            total = total - 0.5 * z.square().sum((1, 2))
        return total.unsqueeze(-1)

    def _newton(
        self, problem: Problem, mode: list[Tensor], gradient: Tensor, curvature: Tensor
    ) -> tuple[list[Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]:
        scores = [self._score(problem, g, mode, gradient) for g in range(len(self.groups))]
        precision = self._precision(problem, self._definite_curvature(problem, curvature))
        return self._apply_inverse(precision, scores), precision

    def _whole_step(
        self, problem: Problem, mode: list[Tensor], gradient: Tensor, curvature: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Newton's step where the Hessian is positive definite, and the gradient."""
        scores = [self._score(problem, g, mode, gradient) for g in range(len(self.groups))]
        return self._apply_inverse(self._precision(problem, curvature), scores), scores

    def _row_derivatives(
        self, problem: Problem, mode: list[Tensor], differentiable: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log density of the rows (S, N), first (S, N, E) and negative second derivatives (S, N, E, E)."""
        eta = self.eta(problem, mode)
        if (known := self._known_derivatives(eta)) is not None:
            return self.log_likelihood(problem, eta), *known
        with torch.enable_grad():
            # Columns on their own: to take them apart would be differentiated too.
            columns = [eta[..., e] if differentiable else eta[..., e].detach() for e in range(self.n_columns)]
            for column in columns:
                if not column.requires_grad:
                    column.requires_grad_()
            whole = columns[0].unsqueeze(-1) if len(columns) == 1 else torch.stack(columns, dim=-1)
            value = self.log_likelihood(problem, whole)
            first = torch.autograd.grad(value.sum(), columns, create_graph=True)
            second = [self._derivatives_of(part, columns, differentiable) for part in first]
            gradient = torch.stack(first, dim=-1)
            curvature = torch.stack(second, dim=-2).neg()
        if differentiable:
            return value, gradient, curvature
        return value.detach(), gradient.detach(), curvature.detach()

    @staticmethod
    def _derivatives_of(part: Tensor, columns: list[Tensor], differentiable: bool) -> Tensor:
        found = torch.autograd.grad(
            part.sum(), columns, create_graph=differentiable, retain_graph=True, materialize_grads=True
        )
        return torch.stack(found, dim=-1)

    def _known_derivatives(self, eta: Tensor) -> tuple[Tensor, Tensor] | None:
        """First and negative second derivatives where there is a formula for them."""
        return None

    def _definite_curvature(self, problem: Problem, curvature: Tensor) -> Tensor:
        """The curvature itself where the Hessian with it is positive definite, else its positive diagonal.

        Densities with heavy tails or a modelled scale are not concave everywhere; at a mode the Hessian is
        definite all the same, and the derivative of the mode needs it exact.
        """
        if len(self.parameters) == 1 and (self.n_columns > 1 or not bool((curvature < 0).any())):
            return curvature
        concave = torch.diag_embed(curvature.diagonal(dim1=-2, dim2=-1).clamp_min(0.0))
        with torch.no_grad():
            definite = self._is_definite(problem, curvature)
        return torch.where(definite[..., None, None], curvature, concave)

    def _is_definite(self, problem: Problem, curvature: Tensor) -> Tensor:
        """Whether the Hessian is positive definite, of each row's group or of all; shape (S, N or 1)."""
        weighted = self._weighted(problem, curvature)
        blocks = self._blocks(problem, weighted)
        primary, info = torch.linalg.cholesky_ex(blocks)
        definite = info == 0
        if len(self.groups) == 1:
            return definite[:, self.batch.codes[self.groups[0]]]
        primary = torch.where(definite[..., None, None], primary, torch.eye(primary.shape[-1]).to(primary))
        crossed, dense = self._dense_parts(problem, weighted)
        cross = torch.linalg.solve_triangular(
            primary, crossed.reshape(*primary.shape[:3], dense.shape[-1]), upper=False
        ).reshape(crossed.shape)
        _, info = torch.linalg.cholesky_ex(dense - cross.mT @ cross)
        return (definite.all(-1) & (info == 0)).unsqueeze(-1)

    def _score(self, problem: Problem, g: int, mode: list[Tensor], gradient: Tensor) -> Tensor:
        rows = _rows_last(problem.loadings[g]) * gradient.mT.unsqueeze(1)
        return self._sum_rows(g, _summed(rows, 2)).mT - mode[g]

    def _gram(self, left: Tensor, right: Tensor) -> Tensor:
        """Sums of products of rows (S, N, D, E) within the primary factor's groups, (S, C, D, D).

        Symmetric: ``left`` is ``right`` times symmetric matrices (E, E).
        """
        if self._padded is not None:
            return self._padded_gram(self._padded, left, right)
        left, right = _rows_last(left), _rows_last(right)
        width = left.shape[1]
        parts = [self._sum_rows(0, _summed(left[:, d, None] * right[:, d:], 2)) for d in range(width)]
        upper = torch.cat(parts, dim=1)
        position = torch.zeros(width, width, dtype=torch.long)
        row, column = torch.triu_indices(width, width)
        position[row, column] = position[column, row] = torch.arange(len(row))
        return (
            upper[:, position.reshape(-1).to(upper.device)].unflatten(1, (width, width)).permute(0, 3, 1, 2)
        )

    def _padded_gram(self, padded: Tensor, left: Tensor, right: Tensor) -> Tensor:
        size, groups, width = len(left), len(padded), left.shape[2]
        mask = (padded < self.batch.size).to(left.dtype)[:, :, None, None]
        index = padded.clamp_max(self.batch.size - 1)

        def arranged(values: Tensor) -> Tensor:
            return values[:, index].transpose(-1, -2).reshape(size, groups, -1, width)

        return arranged(left).mT @ (
            arranged(right) * mask.expand(-1, -1, left.shape[3], 1).reshape(groups, -1, 1)
        )

    def _padding(self) -> Tensor | None:
        """Rows of each of the primary factor's groups, (C, n), padded with N; None where it would not pay."""
        if not self.groups:
            return None
        width = self.widths[self.groups[0]]
        most = max([slack for least, slack in _PADDING_PAYS if width >= least], default=0.0)
        codes = self.batch.codes[self.groups[0]]
        counts = torch.bincount(codes, minlength=self.counts[self.groups[0]])
        longest = int(counts.max())
        if len(counts) * longest > most * self.batch.size:
            return None
        order = torch.argsort(codes, stable=True)
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)[:-1]])
        position = torch.arange(len(codes), device=codes.device) - starts[codes[order]]
        padded = torch.full((len(counts), longest), self.batch.size, device=codes.device)
        padded[codes[order], position] = order
        return padded

    def _precision(self, problem: Problem, curvature: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Factors of the Hessian: see `Effects`."""
        weighted = self._weighted(problem, curvature)
        return self._eliminate(self._blocks(problem, weighted), *self._dense_parts(problem, weighted))

    def _weighted(self, problem: Problem, curvature: Tensor) -> list[Tensor]:
        inner = curvature.permute(0, 2, 3, 1).unsqueeze(1)
        parts = [_summed(_rows_last(loading).unsqueeze(3) * inner, 2) for loading in problem.loadings]
        return [part.permute(0, 3, 1, 2) for part in parts]

    def _blocks(self, problem: Problem, weighted: list[Tensor]) -> Tensor:
        """The primary factor's blocks of the Hessian, shape (S, C, D, D)."""
        blocks = self._gram(weighted[0], problem.loadings[0])
        return blocks + torch.eye(blocks.shape[-1], dtype=blocks.dtype, device=blocks.device)

    def _dense_parts(self, problem: Problem, weighted: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Primary x rest (S, C D, M) and rest x rest (S, M, M) parts of the Hessian."""
        size = weighted[0].shape[0]
        total = sum(self.counts[name] * self.widths[name] for name in self.groups[1:])
        if not total:
            empty = weighted[0].new_empty(size, self.counts[self.groups[0]] * self.widths[self.groups[0]], 0)
            return empty, empty[:, :0]
        starts, offset = [0], 0
        for name in self.groups[1:]:
            starts.append(offset)
            offset += self.counts[name] * self.widths[name]
        first = self.groups[0]
        crossed = weighted[0].new_zeros(size, self.counts[first] * self.widths[first] * total)
        dense = weighted[0].new_zeros(size, total * total)
        for g in range(1, len(self.groups)):
            rows = torch.einsum("sndf,snkf->sndk", weighted[0], problem.loadings[g])
            index = self._positions(0, 0)[:, :, None] * total + self._positions(g, starts[g])[:, None, :]
            crossed = crossed.index_add(1, index.reshape(-1), rows.reshape(size, -1))
            for h in range(1, len(self.groups)):
                rows = torch.einsum("sndf,snkf->sndk", weighted[g], problem.loadings[h])
                index = (
                    self._positions(g, starts[g])[:, :, None] * total
                    + self._positions(h, starts[h])[:, None, :]
                )
                dense = dense.index_add(1, index.reshape(-1), rows.reshape(size, -1))
        dense = dense.reshape(size, total, total) + torch.eye(total, dtype=dense.dtype, device=dense.device)
        return crossed.reshape(size, -1, total), dense


def square_norm(z: Tensor) -> Tensor:
    """Sums of squares along the last axis, which is short: term by term that is faster."""
    total = z[..., 0].square()
    for d in range(1, z.shape[-1]):
        total = total + z[..., d].square()
    return total


def _rows_last(loading: Tensor) -> Tensor:
    """Loadings (S, N, D, E) as (S, D, E, N)."""
    return loading.permute(0, 2, 3, 1)


def _summed(values: Tensor, dim: int) -> Tensor:
    """The sum along an axis, which is often of length one."""
    return values.squeeze(dim) if values.shape[dim] == 1 else values.sum(dim)
