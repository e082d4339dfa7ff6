"""Normal draws spread evenly over the distribution."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["stratified_normal"]


def stratified_normal(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Standard normal draws, one in each of S intervals of probability 1/S, in random order.

    A Latin hypercube sample: each draw is standard normal, and draws of different columns are independent;
    but means over the S draws, of a new group's prediction for example, vary far less than of independent
    draws (McKay, Beckman, Conover, Technometrics 21, 1979; Stein, Technometrics 29, 1987).

    Parameters
    ----------
    shape : tuple of int
        (S, ...); each column along the first axis is a sample of its own.
    generator : torch.Generator
        Source of the draws.
    dtype : torch.dtype
        Of the result.

    Returns
    -------
    Tensor, shape (S, ...)

    Examples
    --------
    >>> draws = stratified_normal((1000, 2), torch.Generator().manual_seed(0), torch.float64)
    >>> bool((draws.mean(0).abs() < 0.003).all()), bool((draws.std(0) - 1 < 0.01).all())
    (True, True)
    """
    strata = torch.rand(shape, generator=generator, dtype=torch.float64).argsort(0)
    within = torch.rand(shape, generator=generator, dtype=torch.float64)
    # 0 and 1 have no finite normal quantile.
    uniform = ((strata + within) / max(shape[0], 1)).clamp(1e-300, 1 - 2**-53)
    return torch.special.ndtri(uniform).to(dtype)
