"""Rows of a Gaussian response that differ in nothing else, as one.

Their sum of squares around their mean and the mean itself are all that the likelihood knows of them: of
InstEval's 73,421 ratings one in six is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_armed.batch import Batch

__all__ = ["PooledRows", "equal_rows", "pool_rows"]

# Larger shares of different rows are not worth the sorting.
_MOST = 0.7
_TRIED = 2000


@dataclass(frozen=True)
class PooledRows:
    """Rows with their multiplicities.

    Attributes
    ----------
    batch : Batch
        K of the N rows: the response is the mean over those alike, the weight their sum.
    within : Tensor, 0-dim, or None
        Weighted sum of squares around these means; None where each row stands for itself.
    """

    batch: Batch
    within: Tensor | None = None


def pool_rows(data: Batch) -> PooledRows:
    """Pool the rows that are alike in predictors, groups and offset.

    Parameters
    ----------
    data : Batch
        Rows of a Gaussian response with one noise scale.

    Returns
    -------
    PooledRows
        The rows as they are where few are alike, or where inputs are images and the like.
    """
    y: Any = data.response
    predictors = _predictors(data)
    if any(part.dim() > 2 for part in predictors):
        return PooledRows(data)
    if data.size > 2 * _TRIED:
        # Rows that differ in their predictors among a few differ among all.
        some = torch.linspace(0, data.size - 1, _TRIED, device=data.device).long()
        if len(equal_rows([part[some] for part in predictors])[0]) > _MOST * _TRIED:
            return PooledRows(data)
    first, which = equal_rows([*predictors, *data.codes.values()])
    if len(first) > _MOST * data.size:
        return PooledRows(data)
    weights = torch.ones_like(y) if data.weights is None else data.weights.to(y.dtype)
    total = y.new_zeros(len(first)).index_add(0, which, weights)
    mean = y.new_zeros(len(first)).index_add(0, which, weights * y)
    mean = torch.where(total > 0, mean / total, y[first])
    within = (weights * (y - mean[which]).square()).sum()
    return PooledRows(replace(data.select(first), response=mean, weights=total), within)


def equal_rows(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The different rows of some tables side by side.

    Parameters
    ----------
    parts : sequence of Tensor, shape (N,) or (N, ...)
        At least one.

    Returns
    -------
    first : Tensor, shape (U,)
        A row of each kind.
    which : Tensor, shape (N,)
        The kind of each row.

    Examples
    --------
    >>> first, which = equal_rows([torch.tensor([5, 7, 5]), torch.tensor([[0.5], [0.0], [0.5]])])
    >>> first[which]
    tensor([0, 1, 0])
    """
    size, device = len(parts[0]), parts[0].device
    generator = torch.Generator().manual_seed(0)
    # Equal rows have equal sums; that different ones have different sums is checked.
    sums = torch.zeros(size, dtype=torch.float64, device=device)
    for part in parts:
        table = part.reshape(size, -1).double()
        sums += table @ torch.randn(table.shape[1], generator=generator, dtype=torch.float64).to(device)
    values, which = torch.unique(sums, return_inverse=True)
    everyone = torch.arange(size, device=device)
    first = torch.zeros_like(values, dtype=torch.long)
    first = first.scatter_reduce(0, which, everyone, "amin", include_self=False)
    alike = first[which]
    if all(torch.equal(part.index_select(0, alike), part) for part in parts):
        return first, which
    return everyone, everyone


def _predictors(data: Batch) -> list[Tensor]:
    parts = [*data.columns.values(), *data.slopes.values(), *data.offsets.values()]
    return parts if data.inputs is None else [*parts, data.inputs]
