"""Reading arrays of any kind: numbers and responses, or a sentence about what is wrong with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

from pyro_armed import frames
from pyro_armed.errors import DataError

__all__ = ["number_array", "response_column", "row_numbers"]


def number_array(values: Any, what: str) -> np.ndarray:
    """An array of floating numbers of any shape, missing ones NaN.

    Parameters
    ----------
    values : array-like
        NumPy array, tensor, data frame, nested lists.
    what : str
        The argument's name, for messages.

    Returns
    -------
    numpy.ndarray
        Single precision stays single; integers become double.

    Raises
    ------
    DataError
        For complex numbers, objects, text, sparse matrices and ragged lists.
    """
    if isinstance(values, pd.DataFrame):
        columns = [frames.clean_column(values.iloc[:, i], str(name)) for i, name in enumerate(values.columns)]
        for name, column in zip(values.columns, columns, strict=True):
            if isinstance(column.dtype, pd.CategoricalDtype):
                raise DataError(
                    f"Column '{name}' of {what} holds labels; make numbers of them, or use a formula."
                )
        return (
            np.stack([column.to_numpy() for column in columns], axis=1) if columns else np.empty(values.shape)
        )
    if isinstance(values, (pd.Series, pd.Index, pd.api.extensions.ExtensionArray)):
        return row_numbers(values, what)
    array = _plain_array(values, what)
    if array.dtype.kind == "c":
        raise DataError(f"{what} is complex; use its real and imaginary parts, or its modulus.")
    if array.dtype.kind not in "fiub":
        raise DataError(
            f"{what} has dtype {array.dtype}, not numbers; convert it, such as with {what}.astype(float)."
        )
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)


def row_numbers(values: Any, what: str) -> np.ndarray:
    """One number for each row, missing ones NaN.

    Parameters
    ----------
    values : array-like, shape (N,)
        Any dtype that holds numbers.
    what : str
        The argument's name, for messages.

    Returns
    -------
    numpy.ndarray, shape (N,), dtype float64

    Raises
    ------
    DataError
        For other shapes, labels, infinite values.
    """
    if isinstance(values, (pd.Series, pd.Index, pd.api.extensions.ExtensionArray)):
        column = frames.clean_column(pd.Series(values).reset_index(drop=True), what)
        if isinstance(column.dtype, pd.CategoricalDtype) and not column.isna().all():
            raise DataError(f"{what} holds labels; give numbers.")
        array = column.astype(float).to_numpy()
    else:
        array = number_array(values, what).astype(np.float64)
    if array.ndim != 1:
        raise DataError(f"{what} has shape {array.shape}; give one number for each row.")
    if infinite := int(np.isinf(array).sum()):
        raise DataError(f"{what} has {frames.counted(infinite, 'infinite value')}; mend or remove them.")
    return array


def response_column(values: Any, what: str) -> pd.Series:
    """Responses as a column with its own dtype.

    Parameters
    ----------
    values : array-like, shape (N,) or (N, 1)
        Numbers or labels.
    what : str
        The argument's name, for messages.

    Returns
    -------
    pandas.Series, shape (N,)

    Raises
    ------
    DataError
        For other shapes.
    """
    if isinstance(values, pd.DataFrame) and values.shape[1] == 1:
        values = values.iloc[:, 0]
    if isinstance(values, (pd.Series, pd.Index, pd.api.extensions.ExtensionArray)):
        return pd.Series(values).reset_index(drop=True)
    if isinstance(values, (list, tuple)) and not any(
        isinstance(v, (list, tuple, np.ndarray)) for v in values
    ):
        return pd.Series(list(values), dtype=object).infer_objects()
    array = _plain_array(values, what)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise DataError(f"{what} has shape {array.shape}; give one response for each row.")
    return pd.Series(array)


def _plain_array(values: Any, what: str) -> np.ndarray:
    if hasattr(values, "toarray"):
        raise DataError(f"{what} is a sparse matrix; give a dense one, {what}.toarray().")
    try:
        if isinstance(values, torch.Tensor):
            values = values.detach().cpu()
            return (values.float() if values.dtype in (torch.bfloat16, torch.float16) else values).numpy()
        if isinstance(values, np.ma.MaskedArray):
            return np.ma.filled(values.astype(np.float64), np.nan)
        if isinstance(values, (list, tuple)):
            values = [v.detach().cpu().numpy() if isinstance(v, torch.Tensor) else v for v in values]
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise DataError(f"{what} cannot be made an array: {error}.") from error
