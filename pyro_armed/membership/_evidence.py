"""What a group's rows say together about which seen group they are like.

Rows of a group share it, so their log likelihood ratios add up: sum_i log q(c | x_i) / pi_c, with pi_c the
share of c in training. They do not add up at face value, because the rows of a group also share the
classifier's errors: n rows count as n / (1 + (n - 1) rho) do, the design effect of cluster samples (Kish,
Survey Sampling, 1965), with rho learned from held-out rows of seen groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor, nn

from pyro_armed.membership._classifier import log_probabilities

__all__ = ["Evidence", "Reference", "Tempering", "none_features", "pool"]

Floats = NDArray[np.float64]
# Pseudo-rows by which a group's variances are drawn towards those of all groups.
_PRIOR_ROWS = 5.0
_SMALLEST_VARIANCE = 1e-8


@dataclass(frozen=True)
class Evidence:
    """Pooled log likelihood ratios.

    Attributes
    ----------
    sums : numpy.ndarray, shape (E, C)
        Sum over a group's rows of log q(c | x) / pi_c; -inf where c is not to be considered.
    counts : numpy.ndarray, shape (E,)
        Rows summed.
    """

    sums: Floats
    counts: Floats

    def without(self, own: NDArray[np.int64]) -> Evidence:
        """The same rows seen as a stranger's: each one's own group is not among the candidates.

        The softmax over the others is that of a classifier that knows only them: renormalising a row shifts
        all its log ratios alike, and the shift cancels.
        """
        sums = self.sums.copy()
        sums[np.arange(len(own)), own] = -np.inf
        return Evidence(sums, self.counts)


def pool(
    networks: Sequence[nn.Module], inputs: Tensor, codes: Tensor, n_groups: int, log_shares: Floats
) -> Evidence:
    """Sum the rows' log likelihood ratios by group, some rows at a time.

    Parameters
    ----------
    networks : sequence of nn.Module
        Classifiers; their log probabilities are averaged.
    inputs : Tensor, shape (N, K)
        Standardised columns.
    codes : Tensor, shape (N,)
        0, ..., ``n_groups`` - 1.
    n_groups : int
        Groups E.
    log_shares : numpy.ndarray, shape (C,)
        log pi_c.

    Returns
    -------
    Evidence
    """
    sums = torch.zeros(n_groups, len(log_shares), dtype=torch.float64)
    for network in networks:
        for chosen, part in log_probabilities(network, inputs, torch.arange(len(inputs))):
            sums.index_add_(0, codes[chosen], part.double())
    counts = torch.bincount(codes, minlength=n_groups).double().numpy()
    return Evidence(sums.numpy() / len(networks) - counts[:, None] * log_shares, counts)


@dataclass(frozen=True)
class Tempering:
    """How much the pooled evidence of n rows counts: ``scale / (1 + (n - 1) * correlation)``.

    Attributes
    ----------
    scale : float
        1 where a single row's probabilities are right as they are; the inverse of a temperature.
    correlation : float
        0 where rows are independent given their group, 1 where n rows say no more than one.
    """

    scale: float = 1.0
    correlation: float = 0.0

    @classmethod
    def fit(cls, evidence: Evidence, own: NDArray[np.int64]) -> Tempering:
        """Minimise the cross-entropy of the seen groups that the rows come from.

        Parameters
        ----------
        evidence : Evidence
            Of held-out rows of seen groups.
        own : numpy.ndarray, shape (E,)
            The groups that they come from.

        Returns
        -------
        Tempering
        """
        rows = np.arange(len(own))

        def loss(parameters: Floats) -> float:
            tempering = cls(float(np.exp(parameters[0])), float(np.exp(parameters[1])))
            logits = tempering._logits(evidence)
            return float(0.001 * parameters[0] ** 2 - np.mean(logits[rows, own] - _logsumexp(logits)))

        found = minimize(loss, [0.0, np.log(0.05)], bounds=[(-5.0, 1.0), (np.log(1e-4), 0.0)])
        return cls(float(np.exp(found.x[0])), float(np.exp(found.x[1])))

    def _logits(self, evidence: Evidence) -> Floats:
        counts = np.maximum(evidence.counts, 1.0)
        return (self.scale / (1.0 + (counts - 1.0) * self.correlation))[:, None] * evidence.sums

    def weights(self, evidence: Evidence) -> Floats:
        """Probabilities of the seen groups, each as likely as another before the rows are seen.

        Parameters
        ----------
        evidence : Evidence
            Of E groups.

        Returns
        -------
        numpy.ndarray, shape (E, C)
            Rows sum to one.
        """
        logits = self._logits(evidence)
        return np.asarray(np.exp(logits - _logsumexp(logits)[:, None]))


@dataclass(frozen=True)
class Reference:
    """What the evidence of each seen group's own rows looks like.

    Attributes
    ----------
    sums : numpy.ndarray, shape (C, C)
        Log likelihood ratios summed over held-out rows of the group.
    counts : numpy.ndarray, shape (C,)
        Rows summed.
    variances : numpy.ndarray, shape (C, C)
        Variances over a group's rows of the log ratios to its own.
    """

    sums: Floats
    counts: Floats
    variances: Floats

    @classmethod
    def from_rows(cls, rows: Floats, codes: NDArray[np.int64], n_groups: int) -> Reference:
        """Collect from held-out rows.

        Parameters
        ----------
        rows : numpy.ndarray, shape (N, C)
            Log likelihood ratios.
        codes : numpy.ndarray, shape (N,)
            Their groups.
        n_groups : int
            Groups C.

        Returns
        -------
        Reference
        """
        sums, squares = np.zeros((n_groups, n_groups)), np.zeros((n_groups, n_groups))
        counts = np.bincount(codes, minlength=n_groups).astype(float)
        for code in range(n_groups):
            own = rows[codes == code]
            sums[code] = own.sum(0)
            ratios = own - own[:, [code]]
            squares[code] = ((ratios - ratios.mean(0)) ** 2).sum(0) if len(own) else 0.0
        common = squares.sum() / max(1.0, (counts.sum() - n_groups) * (n_groups - 1))
        variances = (squares + _PRIOR_ROWS * common) / (counts[:, None] + _PRIOR_ROWS)
        return cls(sums, counts, np.maximum(variances, _SMALLEST_VARIANCE))


def none_features(
    evidence: Evidence, weights: Floats, reference: Reference, own: NDArray[np.int64] | None = None
) -> Floats:
    """What tells a stranger: three numbers for each group.

    Parameters
    ----------
    evidence : Evidence
        Of E groups.
    weights : numpy.ndarray, shape (E, C)
        From `Tempering.weights`.
    reference : Reference
        Of the seen groups.
    own : numpy.ndarray, shape (E,), optional
        Seen groups whose reference has these very rows in it; they are taken out.

    Returns
    -------
    numpy.ndarray, shape (E, 3)
        Log of the mean squared standardised deviation of the log ratios from those of the likeliest seen
        group's own rows; log of the number of rows; entropy of the weights.
    """
    each = np.arange(len(weights))
    top = weights.argmax(1)
    known = np.isfinite(evidence.sums)
    sums = np.where(known, evidence.sums, 0.0)
    shared = np.zeros(len(top)) if own is None else (top == own).astype(float)
    typical = reference.sums[top] - shared[:, None] * sums
    typical_counts = np.maximum(reference.counts[top] - shared * evidence.counts, 1.0)
    counts = np.maximum(evidence.counts, 1.0)
    found = (sums - sums[each, top][:, None]) / counts[:, None]
    expected = (typical - typical[each, top][:, None]) / typical_counts[:, None]
    squared = (found - expected) ** 2 / reference.variances[top]
    known[each, top] = False
    deviation = np.where(known, squared, 0.0).sum(1) / known.sum(1) / (1.0 / counts + 1.0 / typical_counts)
    entropy = -(weights * np.log(np.maximum(weights, 1e-300))).sum(1)
    return np.stack([np.log(deviation + 1e-6), np.log(counts), entropy], axis=1)


def _logsumexp(logits: Floats) -> Floats:
    top = logits.max(1, keepdims=True)
    return np.asarray(top[:, 0] + np.log(np.exp(logits - top).sum(1)))
