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
from dataclasses import replace

import torch
from numpy.polynomial.hermite import hermgauss
from torch import Tensor

from pyro_armed.batch import Batch
from pyro_armed.group_gaussian import Effects, Hidden, solve_transposed
from pyro_armed.module import MixedEffectsModule
from pyro_armed.newton import NewtonSolver, Problem, square_norm
from pyro_armed.spec import EffectBlock

__all__ = ["GroupConditional", "Problem"]

# Families and links whose predictor is the natural parameter.
_NATURAL = {("bernoulli", "logit"), ("binomial", "logit"), ("poisson", "log")}


class GroupConditional(NewtonSolver):
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
        fixed = {p: self._with_draws(eta, p) for p, eta in fixed.items()}
        columns = [self._as_columns(fixed[p], p).expand(size, -1, -1) for p in self.parameters]
        base = torch.cat(columns, -1) if columns else fixed["mu"].new_zeros(size, batch.size, 0)
        loadings = []
        for name in self.groups:
            parts = [self._loading(block, values, size) for block in self.blocks[name]]
            loadings.append((parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)).permute(0, 3, 1, 2))
        return Problem(values, base, loadings, fixed)

    def log_likelihood(self, problem: Problem, eta: Tensor) -> Tensor:
        """Weighted log density of each row, shape (S, N), at linear predictors (S, N, E)."""
        etas = dict(problem.fixed)
        if self.n_columns == 1 and self._outputs(self.parameters[0]) == 1:
            etas[self.parameters[0]] = eta.squeeze(-1)
            return self._row_density(problem, etas)
        parts = eta.split([self.columns[p] for p in self.parameters], dim=-1) if self.parameters else ()
        for parameter, part in zip(self.parameters, parts, strict=True):
            etas[parameter] = part if self._outputs(parameter) > 1 else part[..., 0]
        return self._row_density(problem, etas)

    def _row_density(self, problem: Problem, etas: Mapping[str, Tensor]) -> Tensor:
        distribution = self.module.response_distribution(etas, problem.values, self.batch)
        log_prob = distribution.log_prob(self.batch.response)
        return log_prob if self.batch.weights is None else log_prob * self.batch.weights

    def _known_derivatives(self, eta: Tensor) -> tuple[Tensor, Tensor] | None:
        """Those of natural parameters: the response minus its mean, and its variance."""
        family, batch = self.module.spec.family, self.batch
        if self.parameters != ["mu"] or (family.name, family.link.name) not in _NATURAL:
            return None
        mean = family.link.inverse(eta[..., 0])
        variance = mean if family.name == "poisson" else mean * (1 - mean)
        if family.name == "binomial" and batch.trials is not None:
            mean, variance = mean * batch.trials, variance * batch.trials
        gradient = torch.as_tensor(batch.response) - mean
        if batch.weights is not None:
            gradient, variance = gradient * batch.weights, variance * batch.weights
        return gradient.unsqueeze(-1), variance[..., None, None]

    def evidence(self, problem: Problem) -> Tensor:
        """The log density log p(y | theta) of a model without group effects, shape (S,)."""
        return self.log_likelihood(problem, problem.base).sum(-1)

    def joint(self, problem: Problem, effects: list[Tensor]) -> Tensor:
        """The log density log p(y, z | theta), constants included, shape (S,)."""
        total = self.log_likelihood(problem, self.eta(problem, effects)).sum(-1)
        for z in effects:
            total = total - 0.5 * z.square().sum((1, 2)) - 0.5 * math.log(2 * math.pi) * z[0].numel()
        return total

    def integrated(self, problem: Problem, start: list[Tensor] | None = None) -> Tensor:
        """Laplace's approximation of log p(y | theta), Newton steps from ``start``; shape (S,)."""
        return self.laplace(problem, self.solve(problem, start))

    def laplace(self, problem: Problem, effects: Effects) -> Tensor:
        """Laplace's approximation of log p(y | theta), exact for a Gaussian response, shape (S,)."""
        count = sum(mean[0].numel() for mean in effects.mean)
        return self.joint(problem, effects.mean) + 0.5 * (count * math.log(2 * math.pi) - effects.log_det)

    def by_group(self, problem: Problem, z: list[Tensor]) -> Tensor:
        """The log density of y_c and z_c given theta, group by group of the only factor, shape (S, C)."""
        return self._group_density(problem, self.eta(problem, z), z[0])

    def _group_density(self, problem: Problem, eta: Tensor, z: Tensor) -> Tensor:
        return self._sum_rows(0, self.log_likelihood(problem, eta)) + self._log_prior(z)

    @staticmethod
    def _log_prior(z: Tensor) -> Tensor:
        """Log density of standard normal effects, (S, C)."""
        return -0.5 * square_norm(z) - 0.5 * z.shape[-1] * math.log(2 * math.pi)

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
        width = effects.mean[0].shape[-1]
        points, weights = (torch.as_tensor(a, dtype=problem.base.dtype) for a in hermgauss(order))
        index = torch.tensor(list(itertools.product(range(order), repeat=width)))
        nodes = points[index] * math.sqrt(2.0)
        log_weights = (
            weights[index].log().sum(-1) + 0.5 * nodes.square().sum(-1) + 0.5 * width * math.log(2.0)
        )
        nodes = nodes.unsqueeze(1).to(problem.base.device)
        return self._weighted_sum(problem, effects, nodes, log_weights.to(problem.base.device)[:, None])

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
        normal = self._sobol_normals(points)
        constant = normal.shape[-1] * (math.log(spread) + 0.5 * math.log(2 * math.pi)) - math.log(points)
        return self._weighted_sum(problem, effects, spread * normal, 0.5 * normal.square().sum(-1) + constant)

    def _weighted_sum(self, problem: Problem, effects: Effects, nodes: Tensor, log_weights: Tensor) -> Tensor:
        """The log of a weighted sum of the density at nodes, summed over groups, shape (S,).

        Parameters
        ----------
        problem : Problem
            The density.
        effects : Effects
            The Gaussian in whose units the nodes are.
        nodes : Tensor, shape (Q, C or 1, D)
            Standardised nodes.
        log_weights : Tensor, shape (Q, C or 1)
            Log weights of the nodes.
        """
        codes = self.batch.codes[self.groups[0]]
        unit = torch.eye(nodes.shape[-1], dtype=nodes.dtype, device=nodes.device)
        inverse = solve_transposed(effects.primary, unit.expand_as(effects.primary))
        centre = self.eta(problem, effects.mean)
        # The predictor is linear in the node: one pass over the rows for each direction, not for each node.
        flat = replace(problem, base=torch.zeros_like(problem.base))
        columns = inverse.unbind(-1)
        along = [self.eta(flat, [column]) for column in columns]
        terms = []
        for node, log_weight in zip(nodes, log_weights, strict=True):
            eta, z = centre, effects.mean[0]
            for direction, column, size in zip(along, columns, node.unbind(-1), strict=True):
                by_row = size[codes] if len(size) > 1 else size
                eta = torch.addcmul(eta, direction, by_row.unsqueeze(-1))
                z = torch.addcmul(z, column, size.unsqueeze(-1))
            terms.append(self._group_density(problem, eta, z) + log_weight)
        log_det = effects.primary.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return (torch.logsumexp(torch.stack(terms), dim=0) - log_det).sum(-1)

    def _sobol_normals(self, points: int) -> Tensor:
        """The same (points, C, D) standard normal points at each call."""
        name = self.groups[0]
        sobol = torch.quasirandom.SobolEngine(self.widths[name], scramble=True, seed=0)
        generator = torch.Generator().manual_seed(0)
        shifts = torch.rand(self.counts[name], self.widths[name], generator=generator, dtype=torch.float64)
        uniform = (sobol.draw(points, dtype=torch.float64).unsqueeze(1) + shifts) % 1.0
        normal = math.sqrt(2.0) * torch.erfinv(2.0 * uniform.clamp(1e-9, 1 - 1e-9) - 1.0)
        return normal.to(self.module.priors.device, self.module.priors.dtype)

    def _with_draws(self, eta: Tensor, parameter: str) -> Tensor:
        """A predictor of shape (S, N) or (S, N, R), S = 1 where it is the same for all."""
        return eta if eta.dim() > 1 + (self._outputs(parameter) > 1) else eta.unsqueeze(0)

    def _as_columns(self, eta: Tensor, parameter: str) -> Tensor:
        eta = eta if self._outputs(parameter) > 1 else eta.unsqueeze(-1)
        return eta if eta.dim() == 3 else eta.unsqueeze(0)

    def _loading(self, block: EffectBlock, values: Mapping[str, Tensor], size: int) -> Tensor:
        """A block's rows W D(tau) L, shape (S, K R, E, N), in the order of its standardised effects."""
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
            rows = columns.mT * tau.unsqueeze(-1) if scaled is None else scaled.mT @ columns.mT
            if self.n_columns == 1:
                return rows.unsqueeze(2)
            full = rows.new_zeros(*rows.shape[:2], self.n_columns, rows.shape[2])
            full[:, :, start + r] = rows
            parts.append(full)
        return parts[0] if outputs == 1 else torch.stack(parts, dim=2).flatten(1, 2)
