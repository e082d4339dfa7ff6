"""Scores of each row."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

from pyro_armed.errors import ArgumentError

__all__ = ["correct", "coverage", "crps", "log_predictive_density", "squared_errors"]

Floats = NDArray[np.float64]


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
