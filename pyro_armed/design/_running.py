"""Means and sds of rows that come some at a time."""

from __future__ import annotations

import numpy as np

from pyro_armed.design._structure import Moments

__all__ = ["RunningMoments"]


class RunningMoments:
    """Moments of columns, joined by the update of Chan, Golub and LeVeque (1979).

    Examples
    --------
    >>> running = RunningMoments()
    >>> for part in ([[1.0]], [[3.0], [5.0]]):
    ...     running.add(np.array(part))
    >>> running.moments().center.tolist(), running.moments().scale.round(3).tolist()
    ([3.0], [1.633])
    """

    def __init__(self) -> None:
        self.weight = 0.0
        self._mean: np.ndarray | None = None

    def add(self, columns: np.ndarray, weights: np.ndarray | None = None) -> None:
        """Take in some rows.

        Parameters
        ----------
        columns : numpy.ndarray, shape (B, K)
            Values.
        weights : numpy.ndarray, shape (B,), optional
            Row weights.
        """
        weight = float(len(columns) if weights is None else weights.sum())
        largest = np.abs(columns).max(axis=0, initial=0.0)
        plain = np.isin(columns, (0.0, 1.0)).all(axis=0)
        if self._mean is None:
            width = columns.shape[1]
            self._first, self._largest, self._plain = columns[0].copy(), np.zeros(width), np.ones(width, bool)
            self._mean, self._squares = np.zeros(width), np.zeros(width)
        self._largest, self._plain = np.maximum(self._largest, largest), self._plain & plain
        if weight == 0.0:
            return
        with np.errstate(over="ignore", invalid="ignore"):
            mean = np.average(columns, axis=0, weights=weights)
            squares = np.average((columns - mean) ** 2, axis=0, weights=weights) * weight
            total, shift = self.weight + weight, mean - self._mean
            self._squares = self._squares + squares + shift**2 * (self.weight * weight / total)
            self._mean = self._mean + shift * (weight / total)
            self.weight = total

    def moments(self) -> Moments:
        """What has been found."""
        if self._mean is None:
            raise RuntimeError("no rows have been added")
        with np.errstate(over="ignore", invalid="ignore"):
            scale = np.sqrt(self._squares / self.weight)
            constant = scale <= 1e-12 * self._largest
        return Moments(self._mean, scale, constant, constant & (self._first == 0), self._plain)
