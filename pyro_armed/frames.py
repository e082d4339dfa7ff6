"""Cleaning data frames: dtypes that models understand, missing values counted, never dropped in silence."""

from __future__ import annotations

import datetime
import difflib
from collections.abc import Iterable, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
from pandas.api import types

from pyro_armed.errors import ArgumentError, DataError

__all__ = ["check_columns", "check_frame", "clean_column", "missing_rows", "refuse_missing"]

MISSING_POLICIES = ("error", "drop", "indicator")
_NUMBERS = (int, float, np.number, np.bool_, Decimal, Fraction)
_ORDERED = {
    Decimal,
    Fraction,
    datetime.date,
    datetime.datetime,
    pd.Timestamp,
    datetime.timedelta,
    pd.Timedelta,
    pd.Interval,
}


def check_frame(frame: Any, what: str = "data") -> pd.DataFrame:
    """A data frame with rows and column names that are text, or a sentence that says what is wrong.

    Parameters
    ----------
    frame : pandas.DataFrame, dict of columns, or anything with ``to_pandas``
        What the user gave.
    what : str
        The argument's name, for messages.

    Returns
    -------
    pandas.DataFrame
        Column names that were not text, such as 0, have become text: ``"0"``.

    Raises
    ------
    DataError
        Where it is not a data frame, has no rows, or has columns of several levels.

    Examples
    --------
    >>> check_frame({"x": [1, 2], 3: [4, 5]}).columns.tolist()
    ['x', '3']
    """
    if not isinstance(frame, pd.DataFrame):
        try:
            if isinstance(frame, dict):
                frame = pd.DataFrame(frame)
            elif hasattr(frame, "to_pandas"):
                frame = frame.to_pandas()
        except Exception as error:
            raise DataError(f"'{what}' cannot be made a pandas DataFrame: {error}.") from error
    if not isinstance(frame, pd.DataFrame):
        raise DataError(f"'{what}' must be a pandas DataFrame, not {type(frame).__name__}.")
    if len(frame) == 0:
        raise DataError(f"'{what}' has no rows.")
    if isinstance(frame.columns, pd.MultiIndex):
        raise DataError(
            f"'{what}' has columns of {frame.columns.nlevels} levels; give each column one name, such as "
            "data.columns = ['_'.join(map(str, names)) for names in data.columns]."
        )
    if not all(isinstance(column, str) for column in frame.columns):
        frame = frame.set_axis([str(column) for column in frame.columns], axis=1)
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
    columns = list(frame.columns)
    for name in sorted(set(names)):
        if name not in columns:
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
        return _categorical(series.cat.remove_unused_categories(), name)
    if types.is_complex_dtype(dtype):
        raise DataError(f"Column '{name}' is complex; use its real part, imaginary part or modulus.")
    if types.is_datetime64_any_dtype(dtype) or types.is_timedelta64_dtype(dtype):
        raise DataError(f"Column '{name}' holds dates; turn it into numbers, such as days since a start.")
    if types.is_bool_dtype(dtype) or types.is_numeric_dtype(dtype):
        return pd.Series(_to_float(series, name), index=series.index)
    try:
        codes, found = pd.factorize(series.astype(object).to_numpy(dtype=object))
    except TypeError as error:
        kinds = sorted({type(value).__name__ for value in series.dropna()})
        raise DataError(f"Column '{name}' holds {', '.join(kinds)}; use numbers or text labels.") from error
    if len(found) and all(isinstance(value, _NUMBERS) for value in found):
        numbers = _to_float(pd.Series(found, dtype=object), name)
        return pd.Series(np.append(numbers, np.nan)[codes], index=series.index)
    if not all(isinstance(value, (*_NUMBERS, str, bytes)) for value in found):
        kinds = sorted({type(value).__name__ for value in found})
        raise DataError(f"Column '{name}' holds {', '.join(kinds)}; use numbers or text labels.")
    order = ordered(found)
    labels = pd.Categorical.from_codes(codes, pd.Index(found, dtype=object)).reorder_categories(
        pd.Index(order, dtype=object)
    )
    return _categorical(pd.Series(labels, index=series.index), name)


def ordered(labels: Iterable[Any]) -> list[Any]:
    """Distinct labels in an order that does not depend on how the rows stand.

    Parameters
    ----------
    labels : iterable
        Distinct labels of any types.

    Returns
    -------
    list
        Sorted; labels that cannot be compared by type and text.

    Examples
    --------
    >>> ordered([2, "b", 1, "a"])
    [1, 2, 'a', 'b']
    """
    labels = list(labels)
    kinds = {type(label) for label in labels}
    try:
        plain = all(issubclass(kind, (str, bytes, int, float)) for kind in kinds)
        if plain or (len(kinds) == 1 and kinds <= _ORDERED):
            return sorted(labels)
    except TypeError:
        pass
    return sorted(labels, key=lambda label: (type(label).__name__, str(label), repr(label)))


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
        count = int(mask.sum())
        rows = ", ".join(map(str, np.flatnonzero(mask)[:5])) + (", ..." if count > 5 else "")
        parts.append(f"'{name}' has {counted(count, 'missing value')} (rows {rows})")
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
        raise DataError(f"Column '{name}' has {counted(count, 'infinite value')}; mend or remove them.")


def counted(number: int, noun: str) -> str:
    """``"1 row"``, ``"2 rows"``."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def text_of(label: Any) -> str:
    """A categorical label as text; 2.0 reads as "2"."""
    if isinstance(label, (float, np.floating)) and float(label).is_integer():
        return str(int(label))
    return label.decode(errors="backslashreplace") if isinstance(label, bytes) else str(label)


def _to_float(series: pd.Series, name: str) -> np.ndarray:
    try:
        return series.to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"Column '{name}' cannot be read as numbers: {error}.") from error


def _categorical(series: pd.Series, name: str) -> pd.Series:
    """A categorical column whose levels are texts, in the same order."""
    texts = [text_of(level) for level in series.cat.categories]
    if len(set(texts)) < len(texts):
        raise DataError(
            f"Column '{name}' has different labels with the same text, such as 1 and '1'; rename them."
        )
    return series.cat.set_categories(series.cat.categories, ordered=True).cat.rename_categories(
        pd.Index(texts, dtype=object)
    )
