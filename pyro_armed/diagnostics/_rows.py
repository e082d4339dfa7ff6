"""The rows that a diagnostic looks at."""

from __future__ import annotations

from typing import Any

import torch

from pyro_armed.batch import Batch
from pyro_armed.design import Encoded
from pyro_armed.errors import ArgumentError

__all__ = ["encoded_rows", "some_rows"]


def encoded_rows(
    model: Any, data: Any = None, y: Any = None, groups: Any = None, *, response: bool = False
) -> Encoded:
    """Rows of a fitted model: those given, or the training rows.

    Parameters
    ----------
    model : ARMED
        Fitted.
    data : DataFrame or array-like, optional
        Rows; for a model from arrays the inputs x.
    y, groups : optional
        Responses and group labels, for a model from arrays.
    response : bool
        Whether the response is needed.

    Returns
    -------
    Encoded

    Raises
    ------
    ArgumentError
        Where there are none.
    """
    if data is not None:
        encoded: Encoded = model._encode(data, groups, y, response=response)
        return encoded
    if y is not None or groups is not None:
        raise ArgumentError("y= and groups= belong to data=, which is missing.")
    if model._training is None:
        raise ArgumentError("data is needed: a loaded model does not have its training rows.")
    training: Encoded = model._training
    return training


def some_rows(batch: Batch, most: int, generator: torch.Generator) -> Batch:
    """At most so many rows, drawn at random."""
    if batch.size <= most:
        return batch
    return batch.select(torch.randperm(batch.size, generator=generator)[:most].sort().values)
