"""Predictive checks of groups, and calibration of predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from pyro_armed import metrics
from pyro_armed.diagnostics._access import dataset_of, fitted, idata_of
from pyro_armed.errors import ArgumentError
from pyro_armed.evaluation import clusters_of
from pyro_armed.export import variable_name
from pyro_armed.predict import predict_draws

__all__ = ["calibration", "group_check"]

_STATISTICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda y: y.mean(axis=-1),
    "sd": lambda y: y.std(axis=-1),
    "min": lambda y: y.min(axis=-1),
    "max": lambda y: y.max(axis=-1),
    "median": lambda y: np.median(y, axis=-1),
    "zeros": lambda y: (y == 0).mean(axis=-1),
}
_ELEMENTS = 50_000_000
_REPLICATES = 400
_PROBABILITIES = (0.5, 0.8, 0.9, 0.95)


def group_check(
    model: Any,
    statistic: str | Callable[[np.ndarray], np.ndarray] = "mean",
    *,
    group: str | None = None,
    kind: str = "posterior",
) -> pd.DataFrame:
    """Compare each group's responses with those that the model predicts for it.

    Parameters
    ----------
    model : ARMED or ArviZ object
        Fitted with its predictive draws.
    statistic : {"mean", "sd", "min", "max", "median", "zeros"} or callable
        Of a group's responses; a function maps an array (..., rows) to (...).
    group : str, optional
        Grouping factor; None: the only one.
    kind : {"posterior", "prior"}
        Which predictive distribution. The posterior one keeps each group's own effects.

    Returns
    -------
    pandas.DataFrame
        One row for each group, indexed by its label: ``rows``, ``observed``, ``mean``, ``q5``, ``q50``,
        ``q95`` of the replicated statistic, and ``p``, the probability of a replicated one above the observed
        (ties count half). Of many calibrated groups few have p near 0 or 1.

    Raises
    ------
    ArgumentError
        For an unknown statistic, kind or grouping factor, and where the predictive draws were left out.

    Examples
    --------
    >>> import pyro_armed as pa
    >>> data = pa.simulate.mixed_model(4, 10, seed=0)
    >>> model = pa.ARMED("y ~ x1 + (1 | group)", data.frame)
    >>> _ = model.fit(restarts=1, draws=50, progressbar=False)
    >>> group_check(model, "sd").columns.tolist()
    ['rows', 'observed', 'mean', 'q5', 'q50', 'q95', 'p']
    """
    idata = idata_of(model)
    if kind not in ("posterior", "prior"):
        raise ArgumentError(f"kind={kind!r} is not 'posterior' or 'prior'.")
    if isinstance(statistic, str) and statistic not in _STATISTICS:
        raise ArgumentError(f"statistic={statistic!r} is not one of {', '.join(map(repr, _STATISTICS))}.")
    function = _STATISTICS[statistic] if isinstance(statistic, str) else statistic
    replicated = dataset_of(idata, f"{kind}_predictive")
    if not replicated.data_vars:
        raise ArgumentError(f"There is no {kind}_predictive; fit with log_likelihood=True.")
    name = next(iter(replicated.data_vars))
    drawn = replicated[name].stack(sample=("chain", "draw")).transpose("sample", ...).to_numpy()
    y = dataset_of(idata, "observed_data")[name].to_numpy()
    labels = _labels(idata, group)
    rows = {}
    for label in pd.unique(labels):
        here = np.flatnonzero(labels == label)
        observed, values = float(function(y[here])), np.asarray(function(drawn[:, here]), dtype=float)
        above = (values > observed).mean() + 0.5 * (values == observed).mean()
        rows[label] = (len(here), observed, values.mean(), *np.quantile(values, [0.05, 0.5, 0.95]), above)
    columns = ["rows", "observed", "mean", "q5", "q50", "q95", "p"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis(labels.name)


def _labels(idata: Any, group: str | None) -> pd.Series:
    constant = dataset_of(idata, "constant_data")
    names = [
        str(name)
        for name in constant.data_vars
        if f"{name}__factor_dim" in dataset_of(idata, "posterior").dims
    ]
    if group is None and len(names) == 1:
        group = names[0]
    if group is None or variable_name(group) not in names:
        raise ArgumentError(f"group={group!r} must be one of the grouping factors: {', '.join(names)}.")
    return pd.Series(constant[variable_name(group)].to_numpy(), name=group)


def calibration(
    model: Any,
    data: Any = None,
    y: Any = None,
    *,
    groups: Any = None,
    new_groups: str = "error",
    bins: int = 10,
    probabilities: Sequence[float] = _PROBABILITIES,
    seed: int = 0,
) -> pd.DataFrame:
    """Whether predicted probabilities come true.

    Parameters
    ----------
    model : ARMED
        Fitted.
    data : DataFrame or array-like, optional
        Rows with their response; for a model from arrays the inputs x. None: the training rows, which
        flatter the model.
    y, groups, new_groups
        As for `ARMED.evaluate`.
    bins : int
        Bins of the reliability table, of as equal numbers of rows as ties allow.
    probabilities : sequence of float
        Of the central predictive intervals.
    seed : int
        Seed of predictive draws and new groups' effects.

    Returns
    -------
    pandas.DataFrame
        For a binary response a reliability table: ``bin``, ``rows``, mean ``predicted`` probability,
        ``observed`` frequency and its 90 % Jeffreys interval ``q5``, ``q95``, each row counting once; for
        categorical and ordinal ones the same for each ``level`` against all others. A binary table also has
        ``calibrated_q5`` and ``calibrated_q95``, between which the frequency would be were the model right,
        and in its ``attrs`` the expected calibration error ``ece``, its value ``ece_q95`` that a right model
        exceeds once in twenty times, and ``p``, how often it would have as large a one. For numbers
        ``probability``, ``coverage`` and its standard error ``se``, which allows for groups (see
        `ARMED.evaluate`); a binomial response is scored as a count.

    Raises
    ------
    ArgumentError
        For bins or probabilities that cannot be used, and for a loaded model without data.

    Notes
    -----
    What a right model would show is found by a parametric bootstrap from the joint predictive distribution:
    rows of a group share its effect, and all rows the parameters. With independent rows the band is too
    narrow, and calibrated models would be blamed.

    Examples
    --------
    >>> import pyro_armed as pa
    >>> data = pa.simulate.mixed_model(4, 10, seed=0)
    >>> model = pa.ARMED("y ~ x1 + (1 | group)", data.frame)
    >>> _ = model.fit(restarts=1, draws=50, progressbar=False)
    >>> calibration(model)["probability"].tolist()
    [0.5, 0.8, 0.9, 0.95]
    """
    model = fitted(model, "calibration")
    if not isinstance(bins, int) or isinstance(bins, bool) or bins < 1:
        raise ArgumentError(f"bins={bins!r} must be a whole number of at least 1.")
    if data is not None:
        encoded = model._encode(data, groups, y, response=True)
    elif model._training is None:
        raise ArgumentError("data is needed: a loaded model does not have its training rows.")
    else:
        encoded = model._training
    posterior, family = model._fitted(), model.spec.family
    observed = encoded.batch.response.double().cpu().numpy()
    numeric = family.response not in ("binary", "categorical", "ordinal")
    most = _ELEMENTS // max(1, len(posterior.chains) * len(observed) * max(1, len(model.spec.levels)))
    draws = min(posterior.n_draws, max(1, most))
    kind = "response" if numeric else "mean"
    predicted = predict_draws(posterior, encoded, new_groups, kind=kind, seed=seed, draws=draws)
    values = predicted.flatten(0, 1).double().cpu().numpy()
    if numeric:
        w = encoded.batch.weights
        weights = None if w is None else w.double().cpu().numpy()
        clusters = clusters_of(model.spec, encoded.batch)
        rows = []
        for p in probabilities:
            covered = metrics.coverage(values, observed, p)
            mean = partial(metrics.mean_score, covered, weights)
            rows.append((p, *metrics.widest(mean, clusters)))
        return pd.DataFrame(rows, columns=["probability", "coverage", "se"])
    mean = values.mean(axis=0)
    if family.response == "binary":
        count = min(draws, -(-_REPLICATES // len(posterior.chains)))
        drawn = predict_draws(posterior, encoded, new_groups, kind="response", seed=seed, draws=count)
        return _beside_calibrated(mean, observed, drawn.flatten(0, 1).cpu().numpy(), bins)
    tables = [
        _reliability(mean[:, k], (observed == k).astype(float), bins).assign(level=level)
        for k, level in enumerate(model.spec.levels)
    ]
    return pd.concat(tables, ignore_index=True)[["level", *tables[0].columns.drop("level")]]


def _bins(predicted: np.ndarray, bins: int) -> np.ndarray:
    rank = stats.rankdata(predicted, method="average") - 0.5
    return np.minimum((rank / len(predicted) * bins).astype(int), bins - 1)


def _beside_calibrated(
    predicted: np.ndarray, observed: np.ndarray, drawn: np.ndarray, bins: int
) -> pd.DataFrame:
    """A reliability table with what it would be for responses (S, N) drawn from the model."""
    table, which = _reliability(predicted, observed, bins), _bins(predicted, bins)
    frequency = np.stack([drawn[:, which == place].mean(axis=1) for place in table["bin"]], axis=1)
    low, high = np.quantile(frequency, [0.05, 0.95], axis=0)
    share = table["rows"].to_numpy() / len(predicted)
    errors = np.abs(frequency - table["predicted"].to_numpy()) @ share
    error = float(np.abs(table["observed"] - table["predicted"]) @ share)
    table = table.assign(calibrated_q5=low, calibrated_q95=high)
    # The model's own responses and those observed are alike if it is right: both count.
    p = (1 + np.count_nonzero(errors >= error)) / (1 + len(errors))
    table.attrs |= {"ece": error, "ece_q95": float(np.quantile(errors, 0.95)), "p": float(p)}
    return table


def _reliability(predicted: np.ndarray, observed: np.ndarray, bins: int) -> pd.DataFrame:
    """A reliability table; equal probabilities stay in one bin."""
    which = _bins(predicted, bins)
    table = pd.DataFrame({"bin": which, "predicted": predicted, "observed": observed})
    table = table.groupby("bin").agg(
        rows=("observed", "size"), predicted=("predicted", "mean"), observed=("observed", "mean")
    )
    ones = table["rows"] * table["observed"]
    posterior = stats.beta(ones + 0.5, table["rows"] - ones + 0.5)
    return table.assign(q5=posterior.ppf(0.05), q95=posterior.ppf(0.95)).reset_index()
