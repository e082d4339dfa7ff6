"""Cleaning data frames: dtypes that models understand, missing values counted, never dropped in silence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from pandas.api import types

from pyro_armed.errors import ArgumentError, DataError

__all__ = ["check_columns", "check_frame", "clean_column", "missing_rows", "refuse_missing"]

MISSING_POLICIES = ("error", "drop", "indicator")


def check_frame(frame: Any, what: str = "data") -> pd.DataFrame:
    """A data frame with rows, or a sentence that says what is wrong.

    Parameters
    ----------
    frame : object
        What the user gave.
    what : str
        The argument's name, for messages.

    Returns
    -------
    pandas.DataFrame

    Raises
    ------
    DataError
        Where it is not a data frame or has no rows.
    """
    if isinstance(frame, dict):
        frame = pd.DataFrame(frame)
    elif not isinstance(frame, pd.DataFrame) and hasattr(frame, "to_pandas"):
        frame = frame.to_pandas()
    if not isinstance(frame, pd.DataFrame):
        raise DataError(f"'{what}' must be a pandas DataFrame, not {type(frame).__name__}.")
    if len(frame) == 0:
        raise DataError(f"'{what}' has no rows.")
    return frame


def check_columns(frame: pd.DataFrame, names: Iterable[str], formula: str) -> None:
    """Refuse names that the frame does not have, or has twice.

    Parameters
    ----------
    frame : pandas.DataFrame
        The data.
    names : iterable of str
        Columns that the formula uses.
    formula : str
        Quoted in the message.

    Raises
    ------
    DataError
        Naming the column and the nearest existing one.
    """
    columns = [str(column) for column in frame.columns]
    for name in sorted(names):
        if name not in frame.columns:
            near = difflib.get_close_matches(name, columns, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else f" Columns: {', '.join(columns[:20])}."
            raise DataError(f"Column '{name}' of the formula {formula!r} is not in the data.{hint}")
        if columns.count(name) > 1:
            raise DataError(
                f"Column '{name}' stands {columns.count(name)} times in the data; rename or drop one."
            )


def clean_column(series: pd.Series, name: str) -> pd.Series:
    """A predictor as float64 or as an ordered categorical of strings; missing values stay missing.

    Parameters
    ----------
    series : pandas.Series, shape (N,)
        Any dtype: nullable, Arrow, object, boolean, categorical, string.
    name : str
        The column's name, for messages.

    Returns
    -------
    pandas.Series, shape (N,)

    Raises
    ------
    DataError
        For dates, complex numbers and other values that are neither numbers nor labels.
    """
    dtype = series.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        present = [c for c in dtype.categories if c in set(series.dropna())]
        return _categorical(series.astype(object), present, name)
    if types.is_complex_dtype(dtype):
        raise DataError(f"Column '{name}' is complex; use its real part, imaginary part or modulus.")
    if types.is_datetime64_any_dtype(dtype) or types.is_timedelta64_dtype(dtype):
        raise DataError(f"Column '{name}' holds dates; turn it into numbers, such as days since a start.")
    if types.is_bool_dtype(dtype) or types.is_numeric_dtype(dtype):
        return pd.Series(_to_float(series), index=series.index)
    values = series.astype(object)
    known = values[~pd.isna(values)]
    if len(known) and all(isinstance(v, (int, float, np.number, np.bool_)) for v in known):
        return pd.Series(_to_float(values), index=series.index)
    if not all(isinstance(v, (str, bytes, int, float, bool, np.generic)) for v in known):
        kinds = sorted({type(v).__name__ for v in known})
        raise DataError(f"Column '{name}' holds {', '.join(kinds)}; use numbers or text labels.")
    try:
        levels = sorted(set(known))
    except TypeError:
        levels = list(dict.fromkeys(known))
    return _categorical(values, levels, name)


def missing_rows(frame: pd.DataFrame, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Rows with missing values, for each column that has any.

    Parameters
    ----------
    frame : pandas.DataFrame
        The data.
    names : sequence of str
        Columns to look at.

    Returns
    -------
    dict of str to numpy.ndarray
        Boolean masks of shape (N,).
    """
    masks = {name: pd.isna(frame[name]).to_numpy(dtype=bool) for name in names}
    return {name: mask for name, mask in masks.items() if mask.any()}


def refuse_missing(masks: dict[str, np.ndarray], mend: str) -> None:
    """Raise the error that counts missing values, if there are any.

    Parameters
    ----------
    masks : dict of str to numpy.ndarray
        From `missing_rows`.
    mend : str
        The sentence that says what to do.

    Raises
    ------
    DataError
        Naming each column with its count and first rows.
    """
    if not masks:
        return
    parts = []
    for name, mask in masks.items():
        rows = ", ".join(map(str, np.flatnonzero(mask)[:5]))
        parts.append(
            f"'{name}' has {int(mask.sum())} missing values (rows {rows}{', ...' if mask.sum() > 5 else ''})"
        )
    raise DataError(f"Column {'; '.join(parts)}. {mend}")


def check_policy(missing: str) -> str:
    """Check the ``missing`` argument.

    Parameters
    ----------
    missing : str
        One of "error", "drop", "indicator".

    Returns
    -------
    str

    Raises
    ------
    ArgumentError
        For any other value.
    """
    if missing not in MISSING_POLICIES:
        raise ArgumentError(f"missing={missing!r} is not one of {', '.join(map(repr, MISSING_POLICIES))}.")
    return missing


def refuse_infinite(values: np.ndarray, name: str) -> None:
    """Raise if a numeric column has infinite values.

    Parameters
    ----------
    values : numpy.ndarray
        Numbers, any shape.
    name : str
        The column's name.

    Raises
    ------
    DataError
        With the count.
    """
    count = int(np.isinf(values).sum())
    if count:
        raise DataError(f"Column '{name}' has {count} infinite values; mend or remove them.")


def _to_float(series: pd.Series) -> np.ndarray:
    return series.astype(object).where(~pd.isna(series), np.nan).to_numpy(dtype=np.float64)


def _categorical(values: pd.Series, levels: Sequence[Any], name: str) -> pd.Series:
    texts = [text_of(level) for level in levels]
    if len(set(texts)) < len(texts):
        raise DataError(
            f"Column '{name}' has different labels with the same text, such as 1 and '1'; rename them."
        )
    labels = values.map(lambda v: v if v is None or v is pd.NA or v != v else text_of(v))
    return pd.Series(pd.Categorical(labels, categories=texts, ordered=True), index=values.index)


def text_of(label: Any) -> str:
    """A categorical label as text; 2.0 reads as "2"."""
    if isinstance(label, float) and label.is_integer():
        return str(int(label))
    return label.decode() if isinstance(label, bytes) else str(label)
