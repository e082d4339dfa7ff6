"""Training a network by the marginal likelihood of a Gaussian response.

Where the response is Gaussian and the network does not enter the group effects, these can be integrated out
in closed form at the cost of a few sums: the density of all rows needs one pass of the network, and L-BFGS on
it needs some tens of passes where Adam on the ELBO of minibatches needs thousands of steps. Rows with the
same predictors pass the network once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from pyro_armed.batch import Batch
from pyro_armed.gaussian_conditional import GaussianConditional, has_gaussian_conditional
from pyro_armed.minimise import curvature_scale, minimise
from pyro_armed.module import MixedEffectsModule
from pyro_armed.networks import untouched
from pyro_armed.pooled_rows import PooledRows, equal_rows
from pyro_armed.structured import StructuredGuide
from pyro_armed.structured_fit import find_mode, rough_hessian

__all__ = ["MarginalTraining", "can_train_marginally", "train_marginally"]

# Rows for each weight from which the mode of the weights is as good as the noise of minibatches: with 13, the
# held-out density of a smooth function was .01 to .02 a row worse, with 56 up to .003, on InstEval with 90 it
# was better.
_ROWS_EACH = 75
# Multiplications of one pass over the distinct rows.
_MOST_WORK = 200_000_000
# The search ends where nine passes add less than this to the log density of a row.
_GAIN, _WINDOW, _MOST_PASSES = 5e-4, 9, 500
# Coefficients and standard deviations move in steps of so many posterior sds of the fit without training: the
# network changes what they are for.
_WIDER = 10.0
# Slope at which the fit without training ends.
_ROUGH = 5.0
_TRIED_ROWS = 5


def can_train_marginally(module: MixedEffectsModule, rows: PooledRows) -> bool:
    """Whether `train_marginally` applies and pays.

    Parameters
    ----------
    module : MixedEffectsModule
        The model; its network is run on a few rows.
    rows : PooledRows
        Training rows.

    Returns
    -------
    bool
        True for a Gaussian response, many rows, and a network beside a linear path (so that its weights have
        a prior) whose activations have no group effects, which takes rows one by one and draws nothing.
    """
    spec, network, data = module.spec, module.network, rows.batch
    if network is None or not spec.mu.linear_path or not has_gaussian_conditional(module):
        return False
    if spec.layers or spec.reconstruction is not None or any(b.uses_features for b in spec.blocks):
        return False
    weights = sum(p.numel() for p in network.parameters())
    if data.n_rows < _ROWS_EACH * weights or not spec.blocks:
        return False
    if len(_distinct_rows(data)[0]) * weights > _MOST_WORK:
        return False
    return _row_by_row(module, network, data)


@torch.no_grad()
def _row_by_row(module: MixedEffectsModule, network: nn.Module, data: Batch) -> bool:
    """Whether the network in training treats each row by itself, always in the same way."""
    with untouched(network):
        module.train()
        some = data.select(torch.arange(2 * _TRIED_ROWS) % data.size)
        first, again = module.passed(some), module.passed(some)
        alone = module.passed(some.select(torch.arange(_TRIED_ROWS)))
    module.eval()
    pairs = [(first.output, again.output), (first.output[:_TRIED_ROWS], alone.output)]
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in pairs)


def _distinct_rows(data: Batch) -> tuple[Tensor, Tensor]:
    """One row for each combination of predictors, shape (U,), and which each row has, shape (N,)."""
    inputs: Any = data.inputs
    return equal_rows([inputs, data.columns["mu"], *data.offsets.values()])


@dataclass(frozen=True)
class _Sums:
    """Sums over rows that the residuals' squares and products with a factor's columns are made of.

    Attributes
    ----------
    square : Tensor, shape ()
        Weighted sum of squares of the response, its mean taken off.
    response, weight : Tensor, shape (U,)
        Weighted sums of the response and of ones over the rows of each kind.
    products : list of Tensor, shape (C, D)
        Of each factor's columns with the response.
    cells : list of tuple of Tensor
        For each factor groups (K,), kinds (K,) and the columns' sums (K, D) of the cells that have rows.
    """

    square: Tensor
    response: Tensor
    weight: Tensor
    products: list[Tensor]
    cells: list[tuple[Tensor, Tensor, Tensor]]

    @classmethod
    def of(cls, conditional: GaussianConditional, which: Tensor, kinds: int, center: Tensor) -> _Sums:
        data: Any = conditional.batch
        y = data.response - center
        weight = torch.ones_like(y) if data.weights is None else data.weights
        products, cells = [], []
        for name in conditional.groups:
            columns = weight[:, None] * conditional.columns_of(name)
            codes, count = data.codes[name], conditional.counts[name]
            keys, place = torch.unique(codes * kinds + which, return_inverse=True)
            sums = columns.new_zeros(len(keys), columns.shape[1]).index_add(0, place, columns)
            cells.append((keys // kinds, keys % kinds, sums))
            product = columns.new_zeros(count, columns.shape[1])
            products.append(product.index_add(0, codes, columns * y[:, None]))
        return cls(
            (weight * y.square()).sum() + conditional.within,
            y.new_zeros(kinds).index_add(0, which, weight * y),
            y.new_zeros(kinds).index_add(0, which, weight),
            products,
            cells,
        )

    def residuals(self, fixed: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Sum of squares, and products (C, D), of the response minus the predictor (U,) of each kind."""
        square = self.square - 2 * (fixed @ self.response) + self.weight @ fixed.square()
        products = [
            product.index_add(0, groups, -sums * fixed[kinds][:, None])
            for product, (groups, kinds, sums) in zip(self.products, self.cells, strict=True)
        ]
        return square, products


class MarginalTraining:
    """The log density of response, global variables and weights, the group effects integrated out.

    Parameters
    ----------
    guide : StructuredGuide
        Of the model with the network as it is.
    """

    def __init__(self, guide: StructuredGuide):
        self.space, self.conditional = guide.space, guide.conditional
        self.module: MixedEffectsModule = self.conditional.module
        data: Any = self.conditional.batch
        first, which = _distinct_rows(data)
        kinds = data.select(first)
        self.kinds = replace(kinds, n_rows=len(first), rows=None, codes={}, slopes={}, response=None)
        weight = torch.ones_like(data.response) if data.weights is None else data.weights
        self.center = (weight * data.response).sum() / weight.sum()
        self.sums = _Sums.of(self.conditional, which, len(first), self.center)
        network: Any = self.module.network
        self.weights = [p for p in network.parameters() if p.requires_grad]
        self._precision, self._constant = self._weight_prior()

    @torch.enable_grad()
    def _weight_prior(self) -> tuple[Tensor, Tensor]:
        """The weights' log prior, a sum of squares: their precisions (W,), and its value at zero."""
        kept = self.flat_weights()
        self.set_weights(torch.ones_like(kept))
        value = self.module.log_prior_of_weights()
        slopes = torch.autograd.grad(value, self.weights, materialize_grads=True)
        self.set_weights(kept)
        precision = -torch.cat([slope.reshape(-1).double() for slope in slopes])
        return precision, value.detach() + 0.5 * precision.sum()

    def log_density(self, theta: Tensor) -> Tensor:
        """Of the unconstrained global variables theta (P,) and the weights as they are; 0-dim."""
        squares = self._precision @ self.flat_weights().square()
        return self._log_density_given_weights(theta) + self._constant - 0.5 * squares

    def _log_density_given_weights(self, theta: Tensor) -> Tensor:
        values, log_prior = self.space.evaluate(theta.unsqueeze(0))
        fixed = self._fixed(values) - self.center
        square, products = self.sums.residuals(fixed)
        known = self.conditional.given_residuals(square, products)
        log_likelihood = known.integrated(known.problem(values))
        return (log_prior + log_likelihood)[0]

    def _fixed(self, values: Mapping[str, Tensor]) -> Tensor:
        one = self.module.passed(self.kinds)
        hidden = (one.features, one.output)
        return self.module.linear_predictor(self.module.spec.mu, values, self.kinds, hidden, random=False)[0]

    @torch.no_grad()
    def set_weights(self, flat: Tensor) -> None:
        """Put new weights, one after another, in the network."""
        for weight, part in zip(self.weights, flat.split([w.numel() for w in self.weights]), strict=True):
            weight.copy_(part.reshape(weight.shape))

    def flat_weights(self) -> Tensor:
        """The weights one after another, shape (W,), in double precision."""
        return torch.cat([weight.detach().reshape(-1).double() for weight in self.weights])

    def gradient(self, theta: Tensor) -> tuple[float, Tensor, Tensor]:
        """The log density, and its gradient in theta (P,) and in the weights (W,)."""
        theta, weights = theta.clone().requires_grad_(), self.flat_weights()
        value = self._log_density_given_weights(theta)
        own, *others = torch.autograd.grad(value, [theta, *self.weights], materialize_grads=True)
        pull = self._precision * weights
        density = value.detach() + self._constant - 0.5 * pull @ weights
        return float(density), own, torch.cat([g.reshape(-1).double() for g in others]) - pull


@dataclass(frozen=True)
class MarginalFit:
    """What training left.

    Attributes
    ----------
    theta : Tensor, shape (P,)
        Global variables at the mode beside the trained weights, unconstrained.
    trace : Tensor, shape (passes,)
        Log density per row, the weights' prior included.
    converged : bool
        Whether passes had stopped to add to it.
    """

    theta: Tensor
    trace: Tensor
    converged: bool


def train_marginally(
    module: MixedEffectsModule, rows: PooledRows, *, progressbar: bool = True, label: str = "network"
) -> MarginalFit:
    """Train the network's weights in place, to the mode of the density with the group effects integrated out.

    Parameters
    ----------
    module : MixedEffectsModule
        A model that `can_train_marginally`.
    rows : PooledRows
        Training rows.
    progressbar : bool
        Whether to show progress.
    label : str
        Text beside the bar.

    Returns
    -------
    MarginalFit

    Notes
    -----
    The linear part comes first, the network's activations as they are; then everything together.
    """
    module.eval()
    with torch.no_grad():
        guide = StructuredGuide(module, rows.batch, module.hidden(rows.batch), rows.within)
    start, _ = find_mode(guide, guide.space.start, slope=_ROUGH)
    scale = _WIDER * curvature_scale(rough_hessian(guide, start))
    training, size = MarginalTraining(guide), len(start)
    weights = training.flat_weights()

    with tqdm(total=_MOST_PASSES, desc=label, disable=not progressbar, leave=False, mininterval=0.5) as bar:

        def loss(x: Tensor) -> tuple[float, Tensor]:
            training.set_weights(x[size:])
            value, own, others = training.gradient(start + scale @ x[:size])
            bar.update()
            return -value, -torch.cat([scale.mT @ own, others])

        module.train()
        found = minimise(
            loss,
            torch.cat([torch.zeros_like(start), weights]),
            iterations=_MOST_PASSES,
            slope=1e-3,
            gain=_GAIN * rows.batch.n_rows,
            window=_WINDOW,
        )
    module.eval()
    training.set_weights(found.x[size:])
    trace = -torch.tensor(found.trace or [found.value], dtype=torch.float64) / rows.batch.n_rows
    settled = found.settled and math.isfinite(found.value)
    return MarginalFit(start + scale @ found.x[:size], trace, settled)
