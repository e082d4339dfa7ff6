"""Rows that users pass after training: a data frame, or arrays with their labels beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from pyro_armed.arrays import ArrayDesign
from pyro_armed.design import Encoded, FormulaDesign
from pyro_armed.errors import ArgumentError
from pyro_armed.parquet import ParquetRows

__all__ = ["encode_rows", "encode_support", "weights_column"]

_WEIGHTS = "__weights__"
_SUPPORT = ("x", "y", "groups", "weights", "offset", "trials")


def encode_rows(
    design: FormulaDesign | ArrayDesign,
    data: Any,
    y: Any = None,
    *,
    response: bool = False,
    unseen_levels: str = "error",
    **beside: Any,
) -> Encoded:
    """Encode rows for a model that has been made.

    Parameters
    ----------
    design : FormulaDesign or ArrayDesign
        The model's.
    data : pandas.DataFrame or array-like
        Rows; for a model from arrays the inputs x.
    y : array-like, shape (N,), optional
        Responses, for a model from arrays.
    response : bool
        Whether responses are needed.
    unseen_levels : {"error", "baseline"}
        What to do with levels of predictors that training did not have.
    **beside : array-like, shape (N,), optional
        ``groups``, ``weights``, ``offset`` and ``trials``, for a model from arrays.

    Returns
    -------
    Encoded

    Raises
    ------
    ArgumentError, DataError
        For arguments of the other kind of model, and rows that cannot be used.
    """
    given = {"y": y, **beside}
    if isinstance(design, FormulaDesign):
        if unused := [f"{name}=" for name, value in given.items() if value is not None]:
            raise ArgumentError(
                f"Arguments such as {unused[0]} are for models from arrays; a formula reads all from the "
                "data frame."
            )
        if response and design.weights == _WEIGHTS and isinstance(data, pd.DataFrame):
            data = data.assign(**{_WEIGHTS: 1.0})  # weights were given as numbers: new rows have none
        return design.encode(data, response=response, unseen_levels=unseen_levels)
    if response and y is None:
        raise ArgumentError("A model from arrays needs the responses y beside x, and groups=...")
    return design.encode(data, beside.pop("groups", None), y, **beside)


def encode_support(design: FormulaDesign | ArrayDesign, support: Any) -> Encoded:
    """Encode the labelled rows of new groups.

    Parameters
    ----------
    design : FormulaDesign or ArrayDesign
        The model's.
    support : pandas.DataFrame, tuple or mapping
        For a model from arrays ``(x, y, groups)``, or a dictionary of these, ``weights``, ``offset`` and
        ``trials``.

    Returns
    -------
    Encoded

    Raises
    ------
    ArgumentError, DataError
        For anything else, and rows that cannot be used.
    """
    if isinstance(design, FormulaDesign):
        if not isinstance(support, pd.DataFrame):
            raise ArgumentError(
                f"support has type {type(support).__name__}; give a data frame with labelled rows of the new "
                "groups."
            )
        return encode_rows(design, support, response=True)
    if isinstance(support, (tuple, list)) and len(support) == 3:
        support = dict(zip(_SUPPORT, support, strict=False))
    if not isinstance(support, Mapping) or not {"x", "y"} <= set(support) <= set(_SUPPORT):
        raise ArgumentError(
            "support must be (x, y, groups), or a dictionary of 'x', 'y', 'groups' and, where the model "
            "needs them, 'weights', 'offset' and 'trials'."
        )
    arguments = dict(support)
    return encode_rows(design, arguments.pop("x"), response=True, **arguments)


def weights_column(data: Any, weights: Any) -> tuple[Any, str | None]:
    """Row weights as a column of the data.

    Parameters
    ----------
    data : pandas.DataFrame, shape (N, ...)
        Training rows.
    weights : str or array-like, shape (N,), optional
        A column's name, or numbers.

    Returns
    -------
    data : pandas.DataFrame
    column : str or None

    Raises
    ------
    ArgumentError
        For anything else.
    """
    if weights is None or isinstance(weights, str):
        return data, weights
    try:
        values = np.asarray(weights, dtype=float)
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"weights must be the name of a column, or one number per row: {error}."
        ) from error
    if isinstance(data, ParquetRows):
        raise ArgumentError("weights must be the name of a column where the rows are in files.")
    if not isinstance(data, pd.DataFrame) or values.shape != (len(data),):
        rows = len(data) if hasattr(data, "__len__") else "?"
        raise ArgumentError(
            f"weights has shape {values.shape}; the data have {rows} rows: give one weight per row."
        )
    if (values < 0).any() or np.isinf(values).any():
        raise ArgumentError("weights must be finite numbers, zero or more.")
    return data.assign(**{_WEIGHTS: values}), _WEIGHTS
