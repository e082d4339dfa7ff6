"""Pareto-smoothed importance sampling (Vehtari, Simpson, Gelman, Yao, Gabry, JMLR 25, 2024)."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor

__all__ = ["KHAT_LIMIT", "effective_size", "pareto_smooth", "systematic_resample"]

KHAT_LIMIT = 0.7
_FEW = 25  # Fewer draws have no tail to fit: ArviZ 1.x raises an error.


def pareto_smooth(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Smooth the largest importance weights, and say how heavy their tail is.

    Parameters
    ----------
    log_weights : Tensor, shape (..., S)
        Log ratios of target and proposal, up to a constant.

    Returns
    -------
    log_weights : Tensor, shape (..., S)
        Smoothed, summing to one.
    khat : Tensor, shape (...)
        Shape of the generalised Pareto tail: below 0.7 the weights can be used, above they cannot.

    Examples
    --------
    >>> _, khat = pareto_smooth(torch.zeros(100))
    >>> bool(khat < KHAT_LIMIT)
    True
    """
    values = log_weights.detach().cpu().double()
    finite = torch.where(torch.isfinite(values), values, torch.full_like(values, -1e10)).numpy()
    flat = finite.reshape(-1, finite.shape[-1])
    # A constant row has no tail to fit.
    rows = [(_normalised(row), -np.inf) if np.ptp(row) < 1e-10 else _psis(row) for row in flat]
    smoothed = np.stack([row for row, _ in rows]).reshape(finite.shape)
    khat = np.array([k for _, k in rows]).reshape(finite.shape[:-1])
    return torch.as_tensor(smoothed), torch.as_tensor(khat)


def effective_size(log_weights: Tensor) -> Tensor:
    """Effective number of draws of normalised log weights, shape (...)."""
    return torch.exp(-torch.logsumexp(2 * log_weights, dim=-1))


def systematic_resample(log_weights: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """Indices of draws resampled in proportion to their weights, with the least possible noise.

    Parameters
    ----------
    log_weights : Tensor, shape (S,)
        Normalised.
    draws : int
        How many.
    generator : torch.Generator
        Source of the one random number.

    Returns
    -------
    Tensor, shape (draws,), in random order
    """
    start = torch.rand((), generator=generator, dtype=torch.float64)
    points = (torch.arange(draws, dtype=torch.float64) + start) / draws
    edges = log_weights.double().exp().cumsum(0)
    indices = torch.searchsorted(edges / edges[-1], points).clamp_max(len(log_weights) - 1)
    return indices[torch.randperm(draws, generator=generator)]


def _psis(row: np.ndarray) -> tuple[np.ndarray, float]:
    """ArviZ's smoothing, from wherever this version keeps it."""
    if len(row) < _FEW:
        return _normalised(row), np.inf
    with np.errstate(all="ignore"):
        if int(version("arviz").split(".")[0]) >= 1:
            from arviz_stats.base import array_stats

            # ArviZ 1.x takes log likelihoods, whose negatives are the log weights of leaving a row out.
            smoothed, khat = array_stats.psislw(-row)
        else:
            import arviz

            smoothed, khat = arviz.psislw(row)
    return _normalised(np.asarray(smoothed)), float(khat)


def _normalised(row: np.ndarray) -> np.ndarray:
    return row - np.logaddexp.reduce(row)
