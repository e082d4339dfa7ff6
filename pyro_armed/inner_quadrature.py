"""The marginal likelihood where several grouping factors meet and the largest has groups of a few rows.

Laplace's approximation of all effects at once takes the effects of tiny groups as Gaussian, which those of
a mother with one or two children are not: on `mlmRev::guImmun` (2159 children, 1595 mothers, 161
communities; binary) it found an sd of 1.1 between mothers where NUTS finds 2.5. Here the effects z of the
largest factor are integrated out by adaptive Gauss-Hermite quadrature, group by group, for given effects v
of the others, and Laplace's approximation is left to v, of which each has many rows::

    log p(y | theta) = log g(v*) - log det(H) / 2 + const,   g(v) = Normal(v; 0, I) prod_c E_z[p(y_c | z, v)]

with v* the mode of g and H its curvature there, for which

    d log g / d eta_i = E[s_i],    -d2 log g / d eta_i d eta_j = E[W_i] (i = j) - Cov(s_i, s_j) (same group)

where s and W are the rows' scores and curvatures and the moments are those of z given y and v. Nodes as in
Pinheiro and Bates (1995); integrating the innermost level first as in Rabe-Hesketh, Skrondal, Pickles (2005).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from numpy.polynomial.hermite import hermgauss
from torch import Tensor

from pyro_armed.conditional import GroupConditional
from pyro_armed.effect_draws import choose_effects
from pyro_armed.newton import Problem

__all__ = ["InnerQuadrature", "inner_nodes"]

# Families whose log density is concave in the predictor for every link in use: g is then concave in v.
_CONCAVE = ("bernoulli", "binomial", "poisson", "negative_binomial", "gamma", "ordinal")
_MOST_PAIRS, _MOST_OTHERS = 500_000, 1000
# With more rows in a group Laplace's approximation of its effects is good, and far cheaper.
_FEW_ROWS = 12
_STEPS, _HALVINGS, _TOLERANCE = 12, 8, 2e-3


def inner_nodes(conditional: GroupConditional) -> int:
    """Quadrature nodes of each effect of the largest factor that pay; 1: Laplace's approximation suffices.

    Parameters
    ----------
    conditional : GroupConditional
        The effects of a model given its global variables.

    Returns
    -------
    int
    """
    if len(conditional.groups) < 2 or conditional.n_columns != 1:
        return 1
    first, *others = conditional.groups
    width, rows = conditional.widths[first], conditional.batch.size
    if width > 2 or rows > _FEW_ROWS * conditional.counts[first]:
        return 1
    if conditional.module.spec.family.name not in _CONCAVE or conditional.parameters != ["mu"]:
        return 1
    sizes = torch.bincount(conditional.batch.codes[first])
    total = sum(conditional.counts[name] * conditional.widths[name] for name in others)
    if int(sizes.square().sum()) > _MOST_PAIRS or total > _MOST_OTHERS:
        return 1
    # With 9 nodes the integrals of guImmun come out e^27 too large where the sd is twice as large as it is,
    # and such draws of theta then outweigh all others; with 15 they are too small, and do no harm.
    return {1: 15, 2: 7}[width]


@dataclass(frozen=True)
class _Point:
    """Values of v, and what z is like there, for S values of the global variables.

    Attributes
    ----------
    v : Tensor, shape (S, M)
        Effects of all factors but the largest, side by side.
    mean : Tensor, shape (S, C, D)
        Mode of z given y and v.
    primary : Tensor, shape (S, C, D, D)
        Cholesky factor of its curvature there.
    integrals : Tensor, shape (S, C)
        Logs of the groups' integrals.
    score : Tensor, shape (S, N)
        E[s].
    curvature : Tensor, shape (S, N)
        E[W].
    covariance : Tensor, shape (S, pairs)
        Cov(s_i, s_j) of the pairs of rows.
    """

    v: Tensor
    mean: Tensor
    primary: Tensor
    integrals: Tensor
    score: Tensor
    curvature: Tensor
    covariance: Tensor

    @property
    def height(self) -> Tensor:
        """Log g(v) without the Gaussian's constant, which Laplace's takes away again; shape (S,)."""
        return self.integrals.sum(-1) - 0.5 * self.v.square().sum(-1)

    def at(self, which: Tensor) -> _Point:
        """Some of the S."""
        return _Point(*(getattr(self, item.name)[which] for item in fields(self)))

    def with_some(self, which: Tensor, other: _Point) -> _Point:
        """The same with some of the S replaced."""
        pairs = [(getattr(self, item.name), getattr(other, item.name)) for item in fields(self)]
        return _Point(*(mine.index_copy(0, which, theirs) for mine, theirs in pairs))


class InnerQuadrature:
    """Effects of several grouping factors, those of the largest integrated out by quadrature.

    Parameters
    ----------
    conditional : GroupConditional
        All effects given the global variables; the largest factor stands first.
    order : int
        Nodes of each effect.
    """

    def __init__(self, conditional: GroupConditional, order: int):
        self.outer, self.order = conditional, order
        first = conditional.groups[0]
        module, batch = conditional.module, conditional.batch
        self.inner = GroupConditional(module, batch, conditional.hidden, conditional.counts, [first])
        self.codes = batch.codes[first]
        self.pairs = _pairs(self.codes, conditional.counts[first])
        self.total = sum(conditional.counts[n] * conditional.widths[n] for n in conditional.groups[1:])

    @property
    def elements(self) -> int:
        """Numbers that one value of the global variables takes in memory, about."""
        nodes = self.order ** self.inner.widths[self.inner.groups[0]]
        return nodes * (4 * len(self.codes) + 2 * len(self.pairs[0])) + 2 * self.total**2

    # --- log p(y | theta) ----------------------------------------------------------------------------------

    def log_marginal(self, problem: Problem, start: list[Tensor] | None = None) -> Tensor:
        """Log p(y | theta), shape (S,); gradients flow from the global values.

        Parameters
        ----------
        problem : Problem
            The density of all effects.
        start : list of Tensor, optional
            Where Newton's steps begin, by grouping factor.

        Returns
        -------
        Tensor, shape (S,)

        Raises
        ------
        LinAlgError
            Where the curvature is not positive definite.
        """
        differentiable = torch.is_grad_enabled()
        with torch.no_grad():
            point = self.solve(problem, start)
        if differentiable:
            # One attached step at the mode: its derivative is that of the implicit function theorem.
            factor = torch.linalg.cholesky(self._curvature(_frozen(problem), point))
            attached = self._moments(problem, point.v, point.mean, point.primary, True)
            score = self._score(problem, attached).unsqueeze(-1)
            v = point.v + torch.cholesky_solve(score, factor)[..., 0]
            point = self._moments(problem, v, point.mean, point.primary, True)
        factor = torch.linalg.cholesky(self._curvature(problem, point))
        return point.height - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def solve(self, problem: Problem, start: list[Tensor] | None = None) -> _Point:
        """The mode of v by Newton's method, and what z is like there."""
        problem = _frozen(problem)
        size = problem.base.shape[0]
        # The mode of all effects together, from which the guide starts, is near that of v alone.
        start = self.outer.solve(problem, tolerance=0.01).mean if start is None else start
        v = torch.cat([part.flatten(1).expand(size, -1) for part in start[1:]], dim=1)
        point = self._point(problem, v, start[0])
        active = torch.arange(size, device=v.device)
        for _ in range(_STEPS):
            # Far from the mode of theta it takes more steps: only those that need them go on.
            part, here = problem.select(active), point.at(active)
            factor = torch.linalg.cholesky(self._curvature(part, here))
            score = self._score(part, here)
            step = torch.cholesky_solve(score.unsqueeze(-1), factor)[..., 0]
            going = (score * step).sum(-1) > _TOLERANCE
            if not bool(going.any()):
                break
            active = active[going]
            moved = self._line_search(part.select(going), here.at(going), step[going])
            point = point.with_some(active, moved)
        return point

    def _line_search(self, problem: Problem, here: _Point, step: Tensor) -> _Point:
        """Halve steps that lead down, by more than what moving the nodes changes."""
        scale = torch.ones_like(here.v[:, :1])
        for _ in range(_HALVINGS):
            point = self._point(problem, here.v + scale * step, here.mean)
            worse = ~(point.height >= here.height - _TOLERANCE)
            if not bool(worse.any()):
                break
            scale = torch.where(worse.unsqueeze(-1), 0.5 * scale, scale)
        return point

    # --- draws ---------------------------------------------------------------------------------------------

    def draw(
        self, problem: Problem, start: list[Tensor] | None, candidates: int, generator: torch.Generator
    ) -> tuple[list[Tensor], Tensor]:
        """Draws of all effects: v from its Gaussian, z given v chosen among candidates in each group.

        Parameters
        ----------
        problem : Problem
            The density of all effects.
        start : list of Tensor, optional
            Where Newton's steps begin.
        candidates : int
            Draws for each group to choose from.
        generator : torch.Generator
            Source of the draws.

        Returns
        -------
        z : list of Tensor, shape (S, C_g, D_g)
        log_ratio : Tensor, shape (S, C)
            As `choose_effects` gives it, of the largest factor.
        """
        point = self.solve(problem, start)
        factor = torch.linalg.cholesky(self._curvature(problem, point))
        noise = torch.randn(point.v.shape, generator=generator, dtype=point.v.dtype).to(point.v.device)
        v = point.v + torch.linalg.solve_triangular(factor.mT, noise.unsqueeze(-1), upper=True)[..., 0]
        given = self._given(problem, v)
        effects = self.inner.solve(given, [point.mean])
        z, ratio = choose_effects(self.inner, given, effects, candidates, generator)
        return [z[0], *self.outer._split_rest(v)], ratio

    # --- the pieces ----------------------------------------------------------------------------------------

    def _given(self, problem: Problem, v: Tensor) -> Problem:
        """The density of the largest factor's effects given the others'."""
        first = self.outer.groups[0]
        none = v.new_zeros(len(v), self.outer.counts[first], self.outer.widths[first])
        base = self.outer.eta(problem, [none, *self.outer._split_rest(v)])
        return replace(problem, base=base, loadings=problem.loadings[:1])

    def _point(self, problem: Problem, v: Tensor, start: Tensor) -> _Point:
        """The point of v, its nodes around the mode of z there."""
        given = self._given(problem, v)
        inner = self.inner.solve(given, [start], tolerance=0.01)
        return self._moments(problem, v, inner.mean[0], inner.primary, False)

    def _nodes(self, mean: Tensor, primary: Tensor) -> Iterator[tuple[Tensor, float]]:
        """Nodes of z, (S, C, D), around a Gaussian, and their log weights less its log density."""
        nodes, weights = (torch.as_tensor(a, dtype=mean.dtype) for a in hermgauss(self.order))
        width = mean.shape[-1]
        spread = (1 / primary) if width == 1 else torch.linalg.inv(primary).mT
        for index in itertools.product(range(self.order), repeat=width):
            node = math.sqrt(2.0) * nodes[list(index)]
            yield mean + spread @ node, float(weights[list(index)].log().sum() + 0.5 * node.square().sum())

    def _moments(
        self, problem: Problem, v: Tensor, mean: Tensor, primary: Tensor, differentiable: bool
    ) -> _Point:
        """The point of v for nodes around a given Gaussian of z."""
        given = self._given(problem, v)
        terms, scores, curvatures = [], [], []
        for z, weight in self._nodes(mean, primary):
            value, score, curvature = self.inner._row_derivatives(given, [z], differentiable)
            terms.append(self.inner._sum_rows(0, value) + self.inner._log_prior(z) + weight)
            scores.append(score[..., 0])
            curvatures.append(curvature[..., 0, 0])
        stacked = torch.stack(terms)
        total = torch.logsumexp(stacked, dim=0)
        log_det = primary.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        shares = (stacked - total).exp()
        rows = shares[..., self.codes]
        score = (rows * torch.stack(scores)).sum(0)
        left, right = self.pairs
        covariance = torch.zeros_like(score[:, left])
        for share, one in zip(shares, scores, strict=True):
            product = (one[:, left] - score[:, left]) * (one[:, right] - score[:, right])
            covariance = covariance + share[:, self.codes[left]] * product
        integrals = total + 0.5 * mean.shape[-1] * math.log(2.0) - log_det
        curvature = (rows * torch.stack(curvatures)).sum(0)
        return _Point(v, mean, primary, integrals, score, curvature, covariance)

    def _score(self, problem: Problem, point: _Point) -> Tensor:
        """Gradient of log g, shape (S, M)."""
        parts = []
        for g in range(1, len(self.outer.groups)):
            rows = self._rows(problem, g) * point.score.unsqueeze(-1)
            parts.append(self.outer._sum_by_group(g, rows).reshape(len(point.v), -1))
        return torch.cat(parts, dim=1) - point.v

    def _curvature(self, problem: Problem, point: _Point) -> Tensor:
        """H, shape (S, M, M): curvatures of rows, less the covariances of their scores, plus the prior's."""
        size, left, right = len(point.score), *self.pairs
        rows, positions, start = [], [], 0
        for g in range(1, len(self.outer.groups)):
            rows.append(self._rows(problem, g))
            positions.append(self.outer._positions(g, start))
            start += self.outer.counts[self.outer.groups[g]] * self.outer.widths[self.outer.groups[g]]
        loading, position = torch.cat(rows, dim=-1), torch.cat(positions, dim=-1)
        own = point.curvature[..., None, None] * loading.unsqueeze(-1) * loading.unsqueeze(-2)
        index = position.unsqueeze(-1) * self.total + position.unsqueeze(-2)
        shared = point.covariance[..., None, None] * (
            loading[:, left].unsqueeze(-1) * loading[:, right].unsqueeze(-2)
        )
        across = position[left].unsqueeze(-1) * self.total + position[right].unsqueeze(-2)
        flat = loading.new_zeros(size, self.total**2)
        flat = flat.index_add(1, index.reshape(-1), own.reshape(size, -1))
        flat = flat.index_add(1, across.reshape(-1), -shared.reshape(size, -1))
        identity = torch.eye(self.total, dtype=flat.dtype, device=flat.device)
        return flat.reshape(size, self.total, self.total) + identity

    def _rows(self, problem: Problem, g: int) -> Tensor:
        """What multiplies the effects of a factor in each row, shape (S, N, D)."""
        return problem.loadings[g][..., 0]


def _frozen(problem: Problem) -> Problem:
    detached: Any = {name: value.detach() for name, value in problem.values.items()}
    fixed = {name: value.detach() for name, value in problem.fixed.items()}
    return Problem(detached, problem.base.detach(), [part.detach() for part in problem.loadings], fixed)


def _pairs(codes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """All ordered pairs of rows of one group, a row with itself included."""
    order = torch.argsort(codes, stable=True)
    sizes = torch.bincount(codes, minlength=count)
    each = sizes[codes[order]]
    left = torch.repeat_interleave(torch.arange(len(codes), device=codes.device), each)
    starts = (sizes.cumsum(0) - sizes)[codes[order]]
    first = each.cumsum(0) - each
    right = starts[left] + torch.arange(len(left), device=codes.device) - first[left]
    return order[left], order[right]
