"""How far predicted probabilities are from what comes true."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyro_armed.errors import ArgumentError
from pyro_armed.metrics._estimates import Estimate

__all__ = ["expected_calibration_error", "interval_calibration_error"]

Floats = NDArray[np.float64]


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

    def error(rows: NDArray[Any]) -> float:
        return _binned_error(p[rows], y[rows], w[rows], bins)

    return _bootstrapped(error, w, clusters, replicates, seed)


def interval_calibration_error(
    covered: ArrayLike,
    probabilities: Sequence[float],
    weights: ArrayLike | None = None,
    clusters: ArrayLike | None = None,
    *,
    replicates: int = 200,
    seed: int = 0,
) -> Estimate:
    """Mean distance between the probability of intervals and their coverage.

    Like `expected_calibration_error` it is above zero for a calibrated model too.

    Parameters
    ----------
    covered : array-like, shape (N, L)
        Of each row for each interval, from `coverage`.
    probabilities : sequence of float
        Of the L intervals.
    weights, clusters : array-like, shape (N,), optional
        As for `mean_score`.
    replicates, seed : int
        As for `expected_calibration_error`.

    Returns
    -------
    Estimate

    Examples
    --------
    >>> round(interval_calibration_error([[1.0, 1.0], [0.0, 1.0]], [0.5, 0.8]).value, 3)
    0.1
    """
    inside = np.asarray(covered, dtype=np.float64)
    w = np.ones(len(inside)) if weights is None else np.asarray(weights, dtype=np.float64)

    def error(rows: NDArray[Any]) -> float:
        return float(np.abs(w[rows] @ inside[rows] / w[rows].sum() - np.asarray(probabilities)).mean())

    return _bootstrapped(error, w, clusters, replicates, seed)


def _bootstrapped(
    error: Callable[[NDArray[Any]], float], w: Floats, clusters: Any, replicates: int, seed: int
) -> Estimate:
    """A function of rows for all of them, and its sd over resampled rows or clusters."""
    value = error(np.arange(len(w)))
    units = None if clusters is None else _rows_by_cluster(clusters)
    size = len(w) if units is None else len(units)
    if np.count_nonzero(w) < 2 or size < 2 or not replicates:
        return Estimate(value, math.nan)
    rng = np.random.default_rng(seed)
    repeated = []
    for _ in range(replicates):
        rows: NDArray[Any] = rng.integers(size, size=size)
        if units is not None:
            rows = np.concatenate([units[unit] for unit in rows])
        if w[rows].any():
            repeated.append(error(rows))
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
