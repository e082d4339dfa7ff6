"""Scores of all rows and their standard errors, over rows or over clusters of rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Estimate", "auroc", "mean_score", "rmse", "widest"]

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


def _share_below(points: Floats, others: Floats, weights: Floats) -> Floats:
    """The weighted share of the others below each point, ties half."""
    order = np.argsort(others, kind="stable")
    ranked, cumulative = others[order], np.concatenate([[0.0], np.cumsum(weights[order])])
    left = cumulative[np.searchsorted(ranked, points, side="left")]
    right = cumulative[np.searchsorted(ranked, points, side="right")]
    return np.asarray((left + right) / (2.0 * cumulative[-1]))
