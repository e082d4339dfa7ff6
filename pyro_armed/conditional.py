"""The group effects given everything else: modes, curvatures and the marginal likelihood.

Given the global variables theta the standardised effects z (u = D(tau) L z) have the log density

    sum_i log p(y_i | eta_i) - z'z / 2,    eta_i = base_i + sum_g A_{g,i}' z_{g, c(i)}

whose mode Newton's method finds for all groups at once. With one grouping factor the Hessian is block
diagonal; see `pyro_armed.group_gaussian` for several. Sources: Laplace and adaptive Gauss-Hermite
quadrature as in Pinheiro and Bates (1995).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from numpy.polynomial.hermite import hermgauss
from torch import Tensor

from pyro_armed.batch import Batch
from pyro_armed.group_gaussian import Effects, GroupGaussian, Hidden
from pyro_armed.module import MixedEffectsModule
from pyro_armed.spec import EffectBlock

__all__ = ["GroupConditional", "Problem"]


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
        What multiplies z of each grouping factor.
    fixed : mapping of str to Tensor
        Linear predictors without any group effects.
    """

    values: Mapping[str, Tensor]
    base: Tensor
    loadings: list[Tensor]
    fixed: Mapping[str, Tensor]


class GroupConditional(GroupGaussian):
    """Group effects of a model given its global variables.

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
    """

    def __init__(
        self,
        module: MixedEffectsModule,
        batch: Batch,
        hidden: Hidden = None,
        sizes: Mapping[str, int] | None = None,
        only: Sequence[str] | None = None,
    ):
        super().__init__(module, batch, hidden, sizes, only)
        spec = module.spec
        self.parameters = [p.parameter for p in spec.predictors if p.blocks]
        self.columns = {p: self._outputs(p) for p in self.parameters}
        self.n_columns = sum(self.columns.values())
        self._padded = self._padding()

    def problem(self, values: Mapping[str, Tensor]) -> Problem:
        """Linear predictors and loadings at some global values (S, 1, ...)."""
        module, batch = self.module, self.batch
        size = next(iter(values.values())).shape[0]
        fixed = {
            p.parameter: module.linear_predictor(p, values, batch, self.hidden, random=False)
            for p in module.spec.predictors
        }
        columns = [self._as_columns(fixed[p], p).expand(size, -1, -1) for p in self.parameters]
        base = torch.cat(columns, -1) if columns else fixed["mu"].new_zeros(size, batch.size, 0)
        loadings = []
        for name in self.groups:
            parts = [self._loading(block, values, size) for block in self.blocks[name]]
            loadings.append(torch.cat(parts, dim=2))
        return Problem(values, base, loadings, fixed)

    def log_likelihood(self, problem: Problem, eta: Tensor) -> Tensor:
        """Weighted log density of each row, shape (S, N), at linear predictors (S, N, E)."""
        etas = dict(problem.fixed)
        parts = eta.split([self.columns[p] for p in self.parameters], dim=-1) if self.parameters else ()
        for parameter, part in zip(self.parameters, parts, strict=True):
            etas[parameter] = part if self._outputs(parameter) > 1 else part[..., 0]
        distribution = self.module.response_distribution(etas, problem.values, self.batch)
        log_prob = distribution.log_prob(self.batch.response)
        return log_prob if self.batch.weights is None else log_prob * self.batch.weights

    def evidence(self, problem: Problem) -> Tensor:
        """The log density log p(y | theta) of a model without group effects, shape (S,)."""
        return self.log_likelihood(problem, problem.base).sum(-1)

    def eta(self, problem: Problem, effects: list[Tensor]) -> Tensor:
        """Linear predictors (S, N, E) with effects z of each grouping factor."""
        eta = problem.base
        for name, loading, z in zip(self.groups, problem.loadings, effects, strict=True):
            gathered = z[:, self.batch.codes[name]]
            if loading.shape[2] > 4:
                eta = eta + torch.einsum("snde,snd->sne", loading, gathered)
                continue
            # A sum over a handful of effects is faster term by term than along a short axis.
            for d in range(loading.shape[2]):
                eta = eta + loading[:, :, d] * gathered[:, :, d, None]
        return eta

    def joint(self, problem: Problem, effects: list[Tensor]) -> Tensor:
        """The log density log p(y, z | theta), constants included, shape (S,)."""
        total = self.log_likelihood(problem, self.eta(problem, effects)).sum(-1)
        for z in effects:
            total = total - 0.5 * z.square().sum((1, 2)) - 0.5 * math.log(2 * math.pi) * z[0].numel()
        return total

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
            Largest change of z at which to stop.

        Returns
        -------
        Effects
        """
        frozen = Problem(
            {name: value.detach() for name, value in problem.values.items()},
            problem.base.detach(),
            [loading.detach() for loading in problem.loadings],
            {name: value.detach() for name, value in problem.fixed.items()},
        )
        size = problem.base.shape[0]
        if start is None:
            start = [problem.base.new_zeros(1, self.counts[n], self.widths[n]) for n in self.groups]
        mode = [part.expand(size, -1, -1) for part in start]
        differentiable = torch.is_grad_enabled() and any(
            v.requires_grad for v in [problem.base, *problem.loadings]
        )
        current = self._by_step(frozen, mode)
        for _ in range(steps):
            direction = self._newton(frozen, mode, differentiable=False)[0]
            mode, current, change = self._line_search(frozen, mode, current, direction)
            # The attached step that follows squares what is left of the error.
            if change < (math.sqrt(tolerance) if differentiable else tolerance):
                break
        if differentiable:
            # One attached step at the mode: its derivative is that of the implicit function theorem.
            direction, _ = self._newton(problem, mode, differentiable=True)
            mode = [m + d for m, d in zip(mode, direction, strict=True)]
        _, precision = self._newton(problem, mode, differentiable=differentiable)
        return Effects(mode, *precision)

    def _line_search(
        self, problem: Problem, mode: list[Tensor], current: Tensor, direction: list[Tensor]
    ) -> tuple[list[Tensor], Tensor, float]:
        """Halve the step where it would worsen: for each group, or for each problem where factors cross."""
        scale = torch.ones_like(current)
        # From far away the first step with a log link may be too long by many orders of magnitude.
        for _ in range(40):
            proposal = [m + d * scale.unsqueeze(-1) for m, d in zip(mode, direction, strict=True)]
            reached = self._by_step(problem, proposal)
            worse = ~(reached >= current - 1e-9 * current.abs() - 1e-9)
            if not bool(worse.any()):
                break
            scale = torch.where(worse, scale * 0.5, scale)
        else:
            keep = worse.unsqueeze(-1)
            proposal = [torch.where(keep, m, p) for m, p in zip(mode, proposal, strict=True)]
            reached = torch.where(worse, current, reached)
        change = max(float((p - m).abs().max()) for m, p in zip(mode, proposal, strict=True))
        return proposal, reached, change

    def _by_step(self, problem: Problem, mode: list[Tensor]) -> Tensor:
        """Log density of what has a step length of its own: (S, C) for one grouping factor, else (S, 1)."""
        if len(self.groups) == 1:
            return self.by_group(problem, mode)
        return self.joint(problem, mode).unsqueeze(-1)

    def _newton(
        self, problem: Problem, mode: list[Tensor], differentiable: bool
    ) -> tuple[list[Tensor], tuple]:
        gradient, curvature = self._row_derivatives(problem, mode, differentiable)
        scores = [self._score(problem, g, mode, gradient) for g in range(len(self.groups))]
        precision = self._precision(problem, self._definite_curvature(problem, curvature))
        return self._apply_inverse(precision, scores), precision

    def _row_derivatives(
        self, problem: Problem, mode: list[Tensor], differentiable: bool
    ) -> tuple[Tensor, Tensor]:
        """First derivatives (S, N, E) and negative second derivatives (S, N, E, E) of the log density."""
        with torch.enable_grad():
            eta = self.eta(problem, mode)
            if not differentiable:
                eta = eta.detach()
            if not eta.requires_grad:
                eta.requires_grad_()
            total = self.log_likelihood(problem, eta).sum()
            (gradient,) = torch.autograd.grad(total, eta, create_graph=True)
            rows = []
            for e in range(self.n_columns):
                (row,) = torch.autograd.grad(
                    gradient[..., e].sum(), eta, create_graph=differentiable, retain_graph=True
                )
                rows.append(-row)
            curvature = torch.stack(rows, dim=-2)
        return (gradient, curvature) if differentiable else (gradient.detach(), curvature.detach())

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
        rows = (problem.loadings[g] * gradient.unsqueeze(2)).sum(-1)
        return self._sum_by_group(g, rows) - mode[g]

    def _gram(self, left: Tensor, right: Tensor) -> Tensor:
        """Sums of products of rows (S, N, D, E) within the primary factor's groups, (S, C, D, D)."""
        if self._padded is None:
            return self._sum_by_group(0, torch.einsum("sndf,snkf->sndk", left, right))
        size, width = left.shape[0], left.shape[2]
        groups = self._padded.shape[0]
        mask = (self._padded < self.batch.size).to(left.dtype)[:, :, None, None]
        index = self._padded.clamp_max(self.batch.size - 1)

        def arranged(values: Tensor) -> Tensor:
            return values[:, index].transpose(-1, -2).reshape(size, groups, -1, width)

        return arranged(left).mT @ (
            arranged(right) * mask.expand(-1, -1, left.shape[3], 1).reshape(groups, -1, 1)
        )

    def _padding(self) -> Tensor | None:
        """Rows of each of the primary factor's groups, (C, n), padded with N; None where it would not pay.

        Matrix products within groups beat sums over rows of outer products from three effects on.
        """
        if not self.groups or self.widths[self.groups[0]] < 3:
            return None
        codes = self.batch.codes[self.groups[0]]
        counts = torch.bincount(codes, minlength=self.counts[self.groups[0]])
        longest = int(counts.max())
        if len(counts) * longest > 4 * self.batch.size:
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
        return [torch.einsum("snde,snef->sndf", loading, curvature) for loading in problem.loadings]

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

    def integrated(self, problem: Problem, start: list[Tensor] | None = None) -> Tensor:
        """Laplace's approximation of log p(y | theta), Newton steps from ``start``; shape (S,)."""
        return self.laplace(problem, self.solve(problem, start))

    def laplace(self, problem: Problem, effects: Effects) -> Tensor:
        """Laplace's approximation of log p(y | theta), exact for a Gaussian response, shape (S,)."""
        count = sum(mean[0].numel() for mean in effects.mean)
        return self.joint(problem, effects.mean) + 0.5 * (count * math.log(2 * math.pi) - effects.log_det)

    def by_group(self, problem: Problem, z: list[Tensor]) -> Tensor:
        """The log density of y_c and z_c given theta, group by group of the only factor, shape (S, C)."""
        rows = self.log_likelihood(problem, self.eta(problem, z))
        return (
            self._sum_by_group(0, rows)
            - 0.5 * z[0].square().sum(-1)
            - 0.5 * z[0].shape[-1] * math.log(2 * math.pi)
        )

    def quadrature(self, problem: Problem, effects: Effects, order: int) -> Tensor:
        """Adaptive Gauss-Hermite quadrature of log p(y | theta) with one grouping factor, shape (S,).

        Parameters
        ----------
        problem : Problem
            The density.
        effects : Effects
            From `solve`; taken as constants, on which the integral does not depend.
        order : int
            Nodes of each dimension.
        """
        nodes, weights = (torch.as_tensor(a, dtype=problem.base.dtype) for a in hermgauss(order))
        width = effects.mean[0].shape[-1]
        terms = []
        for index in itertools.product(range(order), repeat=width):
            node = nodes[list(index)] * math.sqrt(2.0)
            shift = torch.linalg.solve_triangular(effects.primary.mT, node.unsqueeze(-1), upper=True)[..., 0]
            log_weight = float(weights[list(index)].log().sum() + 0.5 * node.square().sum())
            terms.append(self.by_group(problem, [effects.mean[0] + shift]) + log_weight)
        log_det = effects.primary.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        integrals = torch.logsumexp(torch.stack(terms), dim=0) + 0.5 * width * math.log(2.0) - log_det
        return integrals.sum(-1)

    def quasi_monte_carlo(
        self, problem: Problem, effects: Effects, points: int, spread: float = 1.5
    ) -> Tensor:
        """Importance sampling of log p(y | theta) with one grouping factor, smooth in theta, shape (S,).

        A product of quadrature nodes is slow to converge for three or more skewed effects. Draws from the
        Gaussian, widened, at Sobol points shifted at random for each group, whose errors thus average out.

        Parameters
        ----------
        problem : Problem
            The density.
        effects : Effects
            From `solve`; taken as constants.
        points : int
            Points for each group.
        spread : float
            Factor by which the Gaussian's sds are widened.
        """
        nodes = spread * self._sobol_normals(points)
        width = nodes.shape[-1]
        log_det = effects.primary.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        terms = []
        for node in nodes:
            shift = torch.linalg.solve_triangular(effects.primary.mT, node.unsqueeze(-1), upper=True)[..., 0]
            log_q = -0.5 * (node / spread).square().sum(-1)
            terms.append(self.by_group(problem, [effects.mean[0] + shift]) - log_q)
        integrals = torch.logsumexp(torch.stack(terms), dim=0) - log_det - math.log(points)
        return (integrals + width * (math.log(spread) + 0.5 * math.log(2 * math.pi))).sum(-1)

    def _sobol_normals(self, points: int) -> Tensor:
        """The same (points, C, D) standard normal points at each call."""
        name = self.groups[0]
        sobol = torch.quasirandom.SobolEngine(self.widths[name], scramble=True, seed=0)
        generator = torch.Generator().manual_seed(0)
        shifts = torch.rand(self.counts[name], self.widths[name], generator=generator, dtype=torch.float64)
        uniform = (sobol.draw(points, dtype=torch.float64).unsqueeze(1) + shifts) % 1.0
        normal = math.sqrt(2.0) * torch.erfinv(2.0 * uniform.clamp(1e-9, 1 - 1e-9) - 1.0)
        return normal.to(self.module.priors.device, self.module.priors.dtype)

    def _as_columns(self, eta: Tensor, parameter: str) -> Tensor:
        eta = eta if self._outputs(parameter) > 1 else eta.unsqueeze(-1)
        return eta if eta.dim() == 3 else eta.unsqueeze(0)

    def _loading(self, block: EffectBlock, values: Mapping[str, Tensor], size: int) -> Tensor:
        """A block's rows W D(tau) L, shape (S, N, K R, E), in the order of its standardised effects."""
        columns = self.module.slope_columns(block, self.batch, self.hidden)
        outputs = self._outputs(block.parameter)
        sds = self.module.block_sds(block, values).expand(
            size, *self.module.block_sds(block, values).shape[1:]
        )[:, 0]
        start = sum(self.columns[p] for p in self.parameters[: self.parameters.index(block.parameter)])
        factor = self._factor(block, values)
        parts = []
        for r in range(outputs):
            tau = sds[..., r] if outputs > 1 else sds
            scaled = torch.diag_embed(tau) @ factor if factor is not None else None
            rows = columns @ scaled if scaled is not None else columns * tau.unsqueeze(1)
            full = rows.new_zeros(*rows.shape, self.n_columns)
            full[..., start + r] = rows
            parts.append(full)
        return parts[0] if outputs == 1 else torch.stack(parts, dim=3).flatten(2, 3)
