"""How much the prediction hangs on each input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from pyro_armed.batch import Batch
from pyro_armed.diagnostics._access import fitted
from pyro_armed.diagnostics._rows import encoded_rows, some_rows
from pyro_armed.errors import ArgumentError
from pyro_armed.local import local_parameters
from pyro_armed.module import MixedEffectsModule
from pyro_armed.posterior import Chain, with_row_axis
from pyro_armed.seeds import generator_for
from pyro_armed.spec import FEATURES, EffectBlock, Predictor

__all__ = ["Importance", "importance"]

_ROWS = 500
_DRAWS = 100
_ELEMENTS = 4_000_000


@dataclass(frozen=True, eq=False)
class Importance:
    """Expected absolute gradients. Prints its table.

    Attributes
    ----------
    dataset : xarray.Dataset
        ``importance`` with dimensions (chain, draw, column), or (chain, draw, and the shape of one input)
        for images and the like; ``group_sd|GROUP``, of the same dimensions, for each grouping factor.
    """

    dataset: xr.Dataset

    @property
    def table(self) -> pd.DataFrame:
        """One row for each input column, the most important first.

        Index ``column``; columns ``mean``, ``sd``, ``q5``, ``q95`` of the importance over draws, ``share``,
        the mean share in the sum over columns, and ``group_sd|GROUP``, posterior means.
        """
        values = self.dataset["importance"]
        draws = values.to_numpy().reshape(values.sizes["chain"] * values.sizes["draw"], -1)
        labels: Any = list(np.ndindex(*values.shape[2:]))
        if "column" in values.dims:
            labels = values["column"].to_numpy()
        table = pd.DataFrame(
            {
                "mean": draws.mean(0),
                "sd": draws.std(0, ddof=1) if len(draws) > 1 else np.nan,
                "q5": np.quantile(draws, 0.05, axis=0),
                "q95": np.quantile(draws, 0.95, axis=0),
                "share": (draws / draws.sum(1, keepdims=True).clip(1e-300)).mean(0),
            },
            index=pd.Index(labels, name="column", tupleize_cols=False),
        )
        for name, sds in self.dataset.data_vars.items():
            if name != "importance":
                table[name] = sds.mean(["chain", "draw"]).to_numpy().ravel()
        return table.sort_values("mean", ascending=False, kind="stable")

    def share(self, columns: list[str]) -> np.ndarray:
        """The share of some columns together in the sum over all, for each draw, shape (chain * draw,)."""
        values = self.dataset["importance"]
        if values.ndim != 3:
            raise ArgumentError("share is for columns; images have none.")
        known = values["column"].to_numpy().tolist()
        if missing := [name for name in columns if name not in known]:
            raise ArgumentError(f"There is no column {missing[0]!r}; there are {', '.join(known)}.")
        part = values.sel(column=columns).sum("column") / values.sum("column")
        return np.asarray(part.to_numpy().ravel())

    def __str__(self) -> str:
        return self.table.to_string(float_format=lambda value: f"{value:.3f}")

    __repr__ = __str__


def importance(
    model: Any,
    data: Any = None,
    *,
    groups: Mapping[str, Any] | None = None,
    kind: str = "linear",
    rows: int = _ROWS,
    draws: int = _DRAWS,
    seed: int = 0,
) -> Importance:
    """Expected absolute gradient of the fixed-effects prediction by each input, over rows and draws.

    For an input column k and a posterior draw s it is the mean over rows of

        | d eta_i / d x_ik | * sd(x_k),

    with eta the prediction without group effects: by how much it moves with one standard deviation of the
    column, so that columns compare. Beside it stands
    the mean over rows of the standard deviation, between the groups of the training data, of the gradient of
    the *group's* part: sd(x_k) times that of the slopes of x, where x has random slopes; where hidden
    features have, their gradients carry over.

    Parameters
    ----------
    model : ARMED
        Fitted.
    data : DataFrame or array-like, optional
        Rows to average over; None: the training rows.
    groups : mapping of str to array-like, shape (N,), optional
        Labels of the groups of ``data``, for a model from arrays.
    kind : {"linear", "mean"}
        The prediction: the linear predictor (on the scale of the link), or the expected response, whose
        gradient counts little where the response is all but certain.
    rows : int
        Most rows to use, drawn at random.
    draws : int
        Most posterior draws of each chain to use, evenly spaced.
    seed : int
        Seed of the choice of rows.

    Returns
    -------
    Importance
        Prints as a table; ``.table`` and ``.dataset``. For images (inputs of more than one dimension) the
        gradients are per unit of the input as given and ``.dataset["importance"]`` is a saliency map.

    Raises
    ------
    ArgumentError
        For models without predictors, a loaded model without ``data``, ``kind="mean"`` of a categorical or
        ordinal response, and counts below one.

    Notes
    -----
    Expected gradients without a baseline: Erion et al., Nature Machine Intelligence 3, 2021; the input
    gradient of Nguyen et al. (arXiv 2202.11783) is that of one draw at the mean input. A column is one of the
    model's: a factor has one for each level but the first, an interaction or a spline its own. Several
    outcomes of a categorical response are averaged over.

    Examples
    --------
    >>> import pyro_armed as pa
    >>> data = pa.simulate.mixed_model(8, 20, seed=0)
    >>> model = pa.ARMED("y ~ x1 + (1 + x1 | group)", data.frame)
    >>> _ = model.fit(restarts=1, draws=50, progressbar=False)
    >>> importance(model).table.columns.tolist()
    ['mean', 'sd', 'q5', 'q95', 'share', 'group_sd|group']
    """
    model = fitted(model, "importance")
    for name, value in (("rows", rows), ("draws", draws)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ArgumentError(f"{name}={value!r} must be a whole number of at least 1.")
    mu = model.spec.mu
    if kind not in ("linear", "mean"):
        raise ArgumentError(f"kind={kind!r} is not 'linear' or 'mean'.")
    if kind == "mean" and model.spec.family.response in ("categorical", "ordinal"):
        raise ArgumentError("kind='mean' needs a response with one mean; use kind='linear'.")
    if not mu.network and not mu.terms:
        raise ArgumentError("importance needs predictors; the model has none.")
    whole = encoded_rows(model, data, groups=groups).batch
    batch = some_rows(whole, rows, generator_for(seed, "importance"))
    scale = _column_sds(whole, mu)
    found = [_of_chain(chain, batch, scale, draws, kind) for chain in model._fitted().chains]
    names = _column_names(mu, scale)
    dims = ("column",) if names is not None else tuple(f"x{i}" for i in range(1, scale.dim() + 1))
    coords = {"column": names} if names is not None else {}
    arrays = {
        name: (("chain", "draw", *dims), np.stack([one[name].double().cpu().numpy() for one in found]))
        for name in found[0]
    }
    return Importance(xr.Dataset(arrays, coords=coords))


def _column_sds(batch: Batch, mu: Predictor) -> Tensor:
    """The sd of each column of what the gradient is taken by, over all rows; ones for images."""
    columns: Tensor = batch.inputs if mu.network else batch.columns["mu"]  # type: ignore[assignment]
    if columns.dim() > 2:
        return torch.ones(columns.shape[1:], dtype=torch.float64)
    return columns.double().std(0, unbiased=False)


def _column_names(mu: Predictor, scale: Tensor) -> list[str] | None:
    names = [
        f"{t.name}[{label}]" if t.is_vector else t.name for t in mu.terms for label in (t.labels or ("",))
    ]
    if len(names) == scale.numel():
        return names
    return [f"x{i}" for i in range(scale.numel())] if scale.dim() == 1 else None


def _of_chain(chain: Chain, batch: Batch, scale: Tensor, draws: int, kind: str) -> dict[str, Tensor]:
    """Mean absolute gradients and sds between groups, (S, K...), over all rows."""
    kept = torch.linspace(0, chain.n_draws - 1, min(draws, chain.n_draws), dtype=torch.float64).round().long()
    values = {name: value[kept] for name, value in chain.values.items()}
    module = chain.module.eval()
    mu = module.spec.mu
    width = max(1, scale.numel() * max(1, module.spec.n_features, len(kept)) * module.spec.n_predictors)
    size = max(1, _ELEMENTS // width)
    totals: dict[str, Tensor] = {}
    with local_parameters():
        for part in torch.arange(batch.size).split(size):
            here = batch.select(part)
            jacobians = _Jacobians(module, here, scale) if mu.network else None
            found = {"importance": _fixed_gradients(module, values, scale, jacobians)}
            for group in dict.fromkeys(block.group for block in mu.blocks):
                found[f"group_sd|{group}"] = _group_sds(module, values, scale, group, jacobians)
            slope = _slope_of_mean(module, values, here) if kind == "mean" else torch.ones(1, here.size)
            for name, gradients in found.items():
                mean = (gradients * slope.double()[:, :, None]).mean(1)
                totals[name] = totals.get(name, 0.0) + mean * (len(part) / batch.size)
    return {name: total.reshape(len(kept), *scale.shape) for name, total in totals.items()}


class _Jacobians:
    """Gradients of hidden features (B, F, K) and of the network's output (B, R, K), times columns' sds."""

    def __init__(self, module: MixedEffectsModule, batch: Batch, scale: Tensor):
        mu, spec = module.spec.mu, module.spec
        inputs = batch.inputs.detach().clone().requires_grad_()  # type: ignore[union-attr]
        features, output = module.hidden(replace(batch, inputs=inputs))  # type: ignore[misc]
        used = mu.common_name(FEATURES) in module.priors or any(block.uses_features for block in mu.blocks)
        self.features = self._rows(features, inputs, scale) if used else None
        own = mu.common_name(FEATURES) not in module.priors
        self.output = self._rows(output, inputs, scale) * spec.response_scale if own else None

    @staticmethod
    def _rows(values: Tensor, inputs: Tensor, scale: Tensor) -> Tensor:
        columns = []
        for column in values.unbind(1):
            (gradient,) = torch.autograd.grad(column.sum(), inputs, retain_graph=True, allow_unused=True)
            gradient = torch.zeros_like(inputs) if gradient is None else gradient
            columns.append((gradient * scale).double().flatten(1))
        return torch.stack(columns, dim=1)


def _slope_of_mean(module: MixedEffectsModule, values: dict[str, Tensor], batch: Batch) -> Tensor:
    """Absolute derivative of the expected response by the linear predictor, shape (S, B)."""
    spec, drawn = module.spec, with_row_axis(module, values)
    with torch.no_grad():
        hidden = module.hidden(batch)
        etas = {
            p.parameter: module.linear_predictor(p, drawn, batch, hidden, random=False)
            for p in spec.predictors
        }
    draws = len(next(iter(values.values())))
    eta = etas["mu"].expand(draws, batch.size).clone().requires_grad_()
    mean = spec.family.mean(eta, batch.trials, **module.auxiliaries({**etas, "mu": eta}, drawn))
    return torch.autograd.grad(mean.sum(), eta)[0].abs()


def _fixed_gradients(
    module: MixedEffectsModule, values: dict[str, Tensor], scale: Tensor, jacobians: _Jacobians | None
) -> Tensor:
    """Absolute gradients of each draw, the mean over outcomes, shape (S, B, K); B = 1 where rows agree."""
    mu = module.spec.mu
    draws = len(next(iter(values.values())))
    total: Any = 0.0
    if jacobians is None:
        coefficients = torch.cat([_columns_of(values[t.name], t, module) for t in mu.terms], dim=1)
        units = torch.tensor([s for term in mu.terms for s in term.scale], dtype=torch.float64)
        return (coefficients * (units * scale)[:, None]).abs().mean(-1)[:, None]
    if jacobians.output is not None:
        total = jacobians.output.expand(draws, *jacobians.output.shape)
    name = mu.common_name(FEATURES)
    if name in module.priors:
        beta = values[name].double()
        beta = beta if module.spec.n_predictors > 1 else beta[..., None]
        total = total + torch.einsum("sfr,bfk->sbrk", beta, jacobians.features)
    return total.abs().mean(2)


def _columns_of(value: Tensor, term: Any, module: MixedEffectsModule) -> Tensor:
    """A term's coefficients as (S, K, R)."""
    value = value.double()
    value = value if module.spec.n_predictors > 1 else value[..., None]
    return value if term.is_vector else value[:, None, :]


def _group_sds(
    module: MixedEffectsModule,
    values: dict[str, Tensor],
    scale: Tensor,
    group: str,
    jacobians: _Jacobians | None,
) -> Tensor:
    """The sd between groups of their part of the gradient, the mean over outcomes, shape (S, B, K)."""
    slopes, features = _slopes_by_column(module, values, scale, group)
    if features is None or jacobians is None or jacobians.features is None:
        return slopes.std(1, unbiased=False).mean(-1)[:, None]
    # The group's gradient at row b is slope_ck + sum_f u_cf J_bfk: its variance from the covariance of both.
    joined = torch.cat([slopes, features], dim=2)
    centred = joined - joined.mean(1, keepdim=True)
    covariance = torch.einsum("scir,scjr->sijr", centred, centred) / centred.shape[1]
    k = slopes.shape[2]
    own = covariance[:, :k, :k].diagonal(dim1=1, dim2=2).permute(0, 2, 1)[:, None]
    cross = torch.einsum("skfr,bfk->sbkr", covariance[:, :k, k:], jacobians.features)
    # Feature by feature: all at once would take (S, B, F, K).
    both: Any = 0.0
    for f in range(jacobians.features.shape[1]):
        row = torch.einsum("sgr,bgk->sbkr", covariance[:, k + f, k:], jacobians.features)
        both = both + row * jacobians.features[:, f, :, None]
    return (own + 2 * cross + both).clamp_min(0.0).sqrt().mean(3)


def _slopes_by_column(
    module: MixedEffectsModule, values: dict[str, Tensor], scale: Tensor, group: str
) -> tuple[Tensor, Tensor | None]:
    """Slopes of the columns, (S, C, K, R), zero where there are none; of the features, (S, C, F, R)."""
    mu = module.spec.mu
    blocks = [block for block in mu.blocks if block.group == group]
    first = values[blocks[0].effect_name(blocks[0].terms[0])]
    outcomes = module.spec.n_predictors
    slopes = torch.zeros(*first.shape[:2], scale.numel(), outcomes, dtype=torch.float64)
    features = None
    units = [s for term in mu.terms for s in term.scale]
    for block in blocks:
        for term in block.terms:
            effect = values[block.effect_name(term)].double()
            effect = effect if outcomes > 1 else effect[..., None]
            if term.name == FEATURES:
                features = effect
                continue
            effect = effect if term.is_vector else effect[:, :, None, :]
            for column, position in _shared_columns(mu, block, term):
                slopes[:, :, position] += effect[:, :, column] * units[position] * scale[position]
    return slopes, features


def _shared_columns(mu: Predictor, block: EffectBlock, term: Any) -> list[tuple[int, int]]:
    """Columns of a group effect's term that are inputs too: their number in the term and among the inputs."""
    shared, start = [], 0
    for common in mu.terms:
        for column in range(common.size):
            if common.name == term.name and (
                not term.is_vector or common.labels[column : column + 1] == term.labels[column : column + 1]
            ):
                shared.append((column, start + column))
        start += common.size
    return shared
