"""Scores of predictions: pure functions of NumPy arrays, each row's score apart from their mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

from pyro_armed.errors import ArgumentError

__all__ = [
    "Estimate",
    "auroc",
    "correct",
    "coverage",
    "crps",
    "expected_calibration_error",
    "log_predictive_density",
    "mean_score",
    "rmse",
    "squared_errors",
    "widest",
]

Floats = NDArray[np.float64]


class Estimate(NamedTuple):
    """A score and its standard error; NaN where it does not exist.

    Attributes
    ----------
    value : float
        The score.
    se : float
        Its standard error over rows, or over clusters of rows, that are taken as independent.
    """

    value: float
    se: float


def log_predictive_density(log_prob: ArrayLike) -> Floats:
    """Log of the mean density over draws.

    Parameters
    ----------
    log_prob : array-like, shape (S, N)
        Log density of each row's response under each draw.

    Returns
    -------
    numpy.ndarray, shape (N,)

    Examples
    --------
    >>> log_predictive_density(np.log([[0.2], [0.4]])).round(4)
    array([-1.204])
    """
    values = np.asarray(log_prob, dtype=np.float64)
    return np.asarray(logsumexp(values, axis=0) - math.log(len(values)))


def crps(draws: ArrayLike, y: ArrayLike, fair: bool = True) -> Floats:
    """Continuous ranked probability score of each row, from draws.

    ``E|X - y| - E|X - X'| / 2`` over the draws X, by sorting them (Hersbach, Weather and Forecasting 15,
    2000; Jordan, Krueger, Lerch, arXiv 1709.04743).

    Parameters
    ----------
    draws : array-like, shape (S, N)
        Draws of the predictive distribution.
    y : array-like, shape (N,)
        Responses.
    fair : bool
        True scores the distribution that the draws come from (Ferro, QJRMS 140, 2014): no bias for any S,
        and possibly a little below zero. False scores the empirical distribution of the draws. One draw has
        its absolute error either way.

    Returns
    -------
    numpy.ndarray, shape (N,)

    Examples
    --------
    >>> crps([[0.0], [1.0]], [0.5], fair=False)
    array([0.25])
    """
    ordered = np.sort(np.asarray(draws, dtype=np.float64), axis=0)
    n_draws = len(ordered)
    error = np.abs(ordered - np.asarray(y, dtype=np.float64)).mean(axis=0)
    if n_draws == 1:
        return np.asarray(error)
    # sum over i < j of (x_j - x_i), the i-th smallest of S being larger than i and smaller than S - 1 - i.
    factors = 2.0 * np.arange(n_draws) - (n_draws - 1)
    spread = factors @ (ordered - ordered[n_draws // 2])
    return np.asarray(error - spread / (n_draws * (n_draws - 1 if fair else n_draws)))


def coverage(draws: ArrayLike, y: ArrayLike, probability: float) -> Floats:
    """How much of each response lies within the central interval of its predictive distribution.

    1 within, 0 outside. A response that ties with draws stands for a range of probabilities, from that of
    less to that of no more, and counts by the part of that range within the interval: the expected value
    of the randomised probability integral transform (Czado, Gneiting, Held, Biometrics 65, 2009). So the
    mean over rows of a calibrated model is ``probability`` for counts too, where a closed interval of whole
    numbers would cover more. The response takes one of S + 1 ranks, which makes this exact for any S.

    Parameters
    ----------
    draws : array-like, shape (S, N)
        Draws of the predictive distribution.
    y : array-like, shape (N,)
        Responses.
    probability : float
        Of the interval, between 0 and 1.

    Returns
    -------
    numpy.ndarray, shape (N,)

    Raises
    ------
    ArgumentError
        Where the probability is not between 0 and 1.

    Examples
    --------
    >>> coverage(np.arange(99.0)[:, None] * np.ones(3), [-5.0, 50.5, 97.5], 0.8)
    array([0., 1., 0.])
    """
    if not 0.0 < probability < 1.0:
        raise ArgumentError(f"probability={probability!r} must lie between 0 and 1.")
    values, y = np.asarray(draws, dtype=np.float64), np.asarray(y, dtype=np.float64)
    less, equal = (values < y).sum(axis=0), (values == y).sum(axis=0)
    slot = 1.0 / (len(values) + 1)
    low, high = less * slot, (less + equal + 1) * slot
    tail = (1.0 - probability) / 2.0
    inside = np.minimum(high, 1.0 - tail) - np.maximum(low, tail)
    return np.asarray(np.clip(inside / (high - low), 0.0, 1.0))


def squared_errors(expected: ArrayLike, y: ArrayLike) -> Floats:
    """Squared error of each row's expected response; for probabilities it is the Brier score.

    Parameters
    ----------
    expected : array-like, shape (N,) or (N, K)
        Expected response, which is the probability of the second of two outcomes; or the probability of each
        of K levels.
    y : array-like, shape (N,)
        Responses, 0 or 1, or codes of the levels.

    Returns
    -------
    numpy.ndarray, shape (N,)
        For K levels, summed over levels: between 0 and 2.

    Examples
    --------
    >>> squared_errors([0.5, 1.0], [1, 1])
    array([0.25, 0.  ])
    """
    mean, y = np.asarray(expected, dtype=np.float64), np.asarray(y)
    if mean.ndim == 1:
        return np.asarray((mean - y) ** 2)
    observed = y.astype(np.int64)[:, None] == np.arange(mean.shape[1])
    return np.asarray(((mean - observed) ** 2).sum(axis=1))


def correct(probabilities: ArrayLike, y: ArrayLike) -> Floats:
    """Whether the most probable level is the observed one: 1 or 0, shape (N,).

    Parameters
    ----------
    probabilities : array-like, shape (N, K)
        Probability of each level.
    y : array-like, shape (N,)
        Codes of the levels.

    Examples
    --------
    >>> correct([[0.2, 0.8], [0.6, 0.4]], [1, 1])
    array([1., 0.])
    """
    return np.asarray(np.argmax(probabilities, axis=1) == np.asarray(y), dtype=np.float64)


def mean_score(
    scores: ArrayLike, weights: ArrayLike | None = None, clusters: ArrayLike | None = None
) -> Estimate:
    """Weighted mean of rows' scores and its standard error.

    Parameters
    ----------
    scores : array-like, shape (N,)
        One score per row.
    weights : array-like, shape (N,), optional
        Row weights, of any scale; rows of weight zero do not count.
    clusters : array-like, shape (N,), optional
        Codes of groups, int64: rows of one group may depend on each other in any way.

    Returns
    -------
    Estimate
        Without clusters the standard error is sd / sqrt(N) where the weights are equal. With G clusters it is
        that of the sandwich, from the sums of each cluster's deviations, times sqrt(G / (G - 1)) (Liang and
        Zeger, Biometrika 73, 1986). It is NaN for one cluster, and too small by some percent for few.

    Examples
    --------
    >>> mean_score([1.0, 3.0])
    Estimate(value=2.0, se=1.0)
    >>> mean_score([1.0, 1.0, 3.0, 3.0], clusters=[0, 0, 1, 1])
    Estimate(value=2.0, se=1.0)
    """
    values = np.asarray(scores, dtype=np.float64)
    w = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
    kept = w > 0.0
    values, w = values[kept], w[kept]
    if not len(values):
        return Estimate(math.nan, math.nan)
    value = float(w @ values / w.sum())
    if not math.isfinite(value):
        return Estimate(value, math.nan)
    deviations = w * (values - value) / w.sum()
    return Estimate(value, _spread(deviations, None if clusters is None else np.asarray(clusters)[kept]))


def widest(estimate: Callable[[Any], Estimate], clusters: Iterable[Any]) -> Estimate:
    """The estimate whose standard error is largest, of rows taken as independent and of each clustering.

    With crossed grouping factors no single clustering is right; for few groups their standard error may come
    out far too small by chance, and that of the rows is a floor.

    Parameters
    ----------
    estimate : callable
        Takes codes of groups, shape (N,), or None; the value does not depend on them.
    clusters : iterable of array-like, shape (N,)
        Codes for each grouping factor.

    Returns
    -------
    Estimate

    Examples
    --------
    >>> scores = [1.0, 1.0, 3.0, 3.0]
    >>> widest(lambda codes: mean_score(scores, clusters=codes), [[0, 0, 1, 1]])
    Estimate(value=2.0, se=1.0)
    """
    estimates = [estimate(None), *map(estimate, clusters)]
    return max(estimates, key=lambda one: -math.inf if math.isnan(one.se) else one.se)


def _spread(deviations: Floats, clusters: Any) -> float:
    """Standard error of a sum of deviations that are independent between clusters."""
    if clusters is not None:
        _, codes = np.unique(clusters, return_inverse=True)
        deviations = np.asarray(np.bincount(codes, deviations), dtype=np.float64)
    n = len(deviations)
    return math.sqrt(n / (n - 1) * float(deviations @ deviations)) if n > 1 else math.nan


def rmse(
    squared_errors: ArrayLike, weights: ArrayLike | None = None, clusters: ArrayLike | None = None
) -> Estimate:
    """Root of the mean squared error; the standard error by the delta method.

    Parameters
    ----------
    squared_errors : array-like, shape (N,)
        One per row.
    weights, clusters : array-like, shape (N,), optional
        As for `mean_score`.

    Examples
    --------
    >>> rmse([1.0, 9.0, 2.0]).value
    2.0
    """
    mean = mean_score(squared_errors, weights, clusters)
    root = math.sqrt(mean.value)
    return Estimate(root, mean.se / (2.0 * root) if root > 0.0 else math.nan)


def auroc(
    scores: ArrayLike,
    y: ArrayLike,
    weights: ArrayLike | None = None,
    clusters: ArrayLike | None = None,
) -> Estimate:
    """Area under the receiver operating characteristic: P(score of a 1 > score of a 0), ties half.

    Parameters
    ----------
    scores : array-like, shape (N,)
        Larger for what is more likely a 1.
    y : array-like, shape (N,)
        0 or 1.
    weights, clusters : array-like, shape (N,), optional
        As for `mean_score`.

    Returns
    -------
    Estimate
        The standard error is that of DeLong, DeLong, Clarke-Pearson (Biometrics 44, 1988), with clusters that
        of Obuchowski (Biometrics 53, 1997). NaN where there is only one outcome.

    Examples
    --------
    >>> auroc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]).value
    0.75
    """
    y = np.asarray(y)
    ones, zeros = y == 1, y == 0
    w = np.ones(len(y)) if weights is None else np.asarray(weights, dtype=np.float64)
    if not (w[ones].sum() > 0.0 and w[zeros].sum() > 0.0):
        return Estimate(math.nan, math.nan)
    values = np.asarray(scores, dtype=np.float64)
    above = _share_below(values[ones], values[zeros], w[zeros])
    below = _share_below(-values[zeros], -values[ones], w[ones])
    first, second = mean_score(above, w[ones]), mean_score(below, w[zeros])
    if clusters is None:
        return Estimate(first.value, math.hypot(first.se, second.se))
    deviations = np.zeros(len(y))
    deviations[ones] = w[ones] * (above - first.value) / w[ones].sum()
    deviations[zeros] = w[zeros] * (below - first.value) / w[zeros].sum()
    counted = (ones | zeros) & (w > 0.0)
    return Estimate(first.value, _spread(deviations[counted], np.asarray(clusters)[counted]))


def expected_calibration_error(
    probabilities: ArrayLike,
    y: ArrayLike,
    weights: ArrayLike | None = None,
    clusters: ArrayLike | None = None,
    *,
    bins: int = 10,
    replicates: int = 200,
    seed: int = 0,
) -> Estimate:
    """Mean distance between predicted and observed frequency, over bins of equal mass.

    Rows of one probability stay in one bin, so that the order of rows does not matter. The score is
    above zero for a calibrated model too, by the order of sqrt(bins / N).

    Parameters
    ----------
    probabilities : array-like, shape (N,)
        Probability of a 1.
    y : array-like, shape (N,)
        0 or 1.
    weights, clusters : array-like, shape (N,), optional
        As for `mean_score`.
    bins : int
        Most bins.
    replicates : int
        Bootstrap samples for the standard error: of rows, or of clusters with all their rows; 0 for none.
    seed : int
        Their seed.

    Raises
    ------
    ArgumentError
        For fewer than one bin.

    Examples
    --------
    >>> round(expected_calibration_error([0.2, 0.2, 0.7, 0.7], [0, 0, 1, 1], bins=2).value, 4)
    0.25
    """
    if bins < 1:
        raise ArgumentError(f"bins={bins!r} must be a whole number of at least 1.")
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(y, dtype=np.float64)
    w = np.ones(len(p)) if weights is None else np.asarray(weights, dtype=np.float64)
    value = _binned_error(p, y, w, bins)
    units = None if clusters is None else _rows_by_cluster(clusters)
    rows: NDArray[Any]
    size = len(p) if units is None else len(units)
    if np.count_nonzero(w) < 2 or size < 2 or not replicates:
        return Estimate(value, math.nan)
    rng = np.random.default_rng(seed)
    repeated = []
    for _ in range(replicates):
        chosen = rng.integers(size, size=size)
        rows = chosen if units is None else np.concatenate([units[unit] for unit in chosen])
        if w[rows].any():
            repeated.append(_binned_error(p[rows], y[rows], w[rows], bins))
    return Estimate(value, float(np.std(repeated, ddof=1)))


def _rows_by_cluster(clusters: ArrayLike) -> list[NDArray[np.int64]]:
    _, codes, counts = np.unique(clusters, return_inverse=True, return_counts=True)
    return np.split(np.argsort(codes, kind="stable"), np.cumsum(counts)[:-1])


def _binned_error(p: Floats, y: Floats, w: Floats, bins: int) -> float:
    total = w.sum()
    order = np.argsort(p, kind="stable")
    below = np.concatenate([[0.0], np.cumsum(w[order])])
    first = np.searchsorted(p[order], p, side="left")
    last = np.searchsorted(p[order], p, side="right")
    position = (below[first] + below[last]) / (2.0 * total)
    index = np.minimum((position * bins).astype(np.int64), bins - 1)
    return float(np.abs(np.bincount(index, w * (p - y), minlength=bins)).sum() / total)


def _share_below(points: Floats, others: Floats, weights: Floats) -> Floats:
    """The weighted share of the others below each point, ties half."""
    order = np.argsort(others, kind="stable")
    ranked, cumulative = others[order], np.concatenate([[0.0], np.cumsum(weights[order])])
    left = cumulative[np.searchsorted(ranked, points, side="left")]
    right = cumulative[np.searchsorted(ranked, points, side="right")]
    return np.asarray((left + right) / (2.0 * cumulative[-1]))
