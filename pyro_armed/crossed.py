"""Sums over the groups of one factor of products between the groups of others, where few of them meet.

Students rate some dozens of the thousand lecturers: the pairs of lecturers that share a student are far
fewer than students times pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["CrossProducts", "log_determinant"]

_MOST_PAIRS = 20_000_000
_PAYS = 10  # Multiplications of a matrix product that one gathered pair costs.


@dataclass(frozen=True)
class CrossProducts:
    """The products n_ci n_cj of a sparse table n, shape (C, M).

    Attributes
    ----------
    size : int
        M.
    group : Tensor, shape (pairs,)
        c of each product that is not zero.
    target : Tensor, shape (pairs,)
        i M + j.
    product : Tensor, shape (pairs,)
        n_ci n_cj.
    """

    size: int
    group: Tensor
    target: Tensor
    product: Tensor

    @classmethod
    def of(cls, table: Tensor) -> CrossProducts | None:
        """The products of a table (C, M); None where a matrix product is cheaper."""
        rows, columns = table.nonzero(as_tuple=True)
        counts = torch.bincount(rows, minlength=len(table))
        pairs = int(counts.square().sum())
        size = table.shape[1]
        if pairs > _MOST_PAIRS or pairs * _PAYS > len(table) * size * size:
            return None
        starts = counts.cumsum(0) - counts
        left = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), counts[rows])
        group = rows[left]
        # Position of each pair among those of its left entry.
        ends = counts[rows].cumsum(0)
        within = torch.arange(pairs, device=rows.device) - (ends - counts[rows])[left]
        right = starts[group] + within
        values = table[rows, columns]
        return cls(size, group, columns[left] * size + columns[right], values[left] * values[right])

    def weighted(self, weight: Tensor) -> Tensor:
        """Sums over c of w_c n_ci n_cj for weights (S, C), shape (S, M, M)."""
        total = weight.new_zeros(len(weight), self.size * self.size)
        total = total.index_add(1, self.target, weight[:, self.group] * self.product)
        return total.reshape(len(weight), self.size, self.size)


def log_determinant(matrix: Tensor, factor: Tensor) -> Tensor:
    """Log determinant of a symmetric matrix (..., M, M) whose Cholesky factor is known.

    Its derivative is the inverse, which costs a fifth of the derivative of the factorisation.

    Parameters
    ----------
    matrix : Tensor, shape (..., M, M)
        Positive definite.
    factor : Tensor, shape (..., M, M)
        Its lower Cholesky factor; no derivative is taken of it.

    Returns
    -------
    Tensor, shape (...)
    """
    result: Tensor = _LogDeterminant.apply(matrix, factor)
    return result


class _LogDeterminant(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (factor,) = ctx.saved_tensors
        # Matrices of one number are the most frequent, and slow to invert one by one.
        single = factor.shape[-1] == 1
        inverse = factor.square().reciprocal() if single else torch.cholesky_inverse(factor)
        return gradient[..., None, None] * inverse, None
