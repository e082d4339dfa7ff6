"""Checks of arguments, random streams and labels that all simulations share."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_armed.errors import ArgumentError


def stream(seed: int, first: int = 0) -> np.random.Generator:
    """Return a generator for the groups from number ``first`` on.

    The number of the first group is part of the seed, so that new groups made with the seed of the training
    data are not the training groups over again.
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise ArgumentError(f"seed has to be an integer of at least 0, but is {seed!r}.")
    return np.random.default_rng([int(seed), first])


def positive_integer(name: str, value: Any) -> int:
    """Return ``value`` as an integer of at least 1, or raise an error that names the argument."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ArgumentError(f"{name} has to be an integer of at least 1, but is {value!r}.")
    return int(value)


def number(name: str, value: Any, low: float = -np.inf, *, strict: bool = False) -> float:
    """Return ``value`` as a finite float of at least (``strict``: above) ``low``, or raise an error."""
    okay = isinstance(value, Real) and not isinstance(value, bool) and np.isfinite(float(value))
    if not okay or value < low or (strict and value == low):
        bound = "" if np.isinf(low) else f" {'above' if strict else 'of at least'} {low:g}"
        raise ArgumentError(f"{name} has to be a finite number{bound}, but is {value!r}.")
    return float(value)


def vector(name: str, values: Any, low: float = -np.inf) -> NDArray[np.float64]:
    """Return ``values`` as a non-empty vector of finite numbers of at least ``low``, or raise an error."""
    try:
        result = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        result = np.empty(0)
    if result.ndim != 1 or result.size == 0 or not np.isfinite(result).all() or (result < low).any():
        bound = "" if np.isinf(low) else f" of at least {low:g}"
        raise ArgumentError(
            f"{name} has to be a sequence of one or more finite numbers{bound}, but is {values!r}."
        )
    return result


def labels(prefix: str, count: int, first: int = 0) -> NDArray[np.str_]:
    """Return the labels of groups ``first``, ..., ``first + count - 1``, padded so that they sort."""
    width = max(2, len(str(first + count - 1)))
    return np.array([f"{prefix}{i:0{width}d}" for i in range(first, first + count)])


def group_sizes(
    rng: np.random.Generator, n_groups: int, rows_per_group: int | Sequence[int], unbalanced: bool
) -> NDArray[np.int64]:
    """Return the number of rows of each group (each at least 1), shape (C,)."""
    if not isinstance(rows_per_group, int | Integral):
        sizes = [positive_integer("rows_per_group", n) for n in rows_per_group]
        if len(sizes) != n_groups:
            raise ArgumentError(
                f"rows_per_group has {len(sizes)} entries for {n_groups} groups; give one each or one number."
            )
        return np.array(sizes)
    rows = positive_integer("rows_per_group", rows_per_group)
    if not unbalanced:
        return np.full(n_groups, rows)
    # Uniform on the simplex: sizes vary about as much as they can while the total stays what was asked for.
    shares = rng.dirichlet(np.ones(n_groups))
    return 1 + rng.multinomial(n_groups * (rows - 1), shares)
