"""Tables in and out of files: CSV and Parquet, one-sentence errors, never half a file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from pyro_armed.errors import DataError, FileFormatError
from pyro_armed.files import write_whole
from pyro_armed.integers import Integers
from pyro_armed.spec import Group

# What counts as missing in a CSV. Not "None": R's tables have it as a level, and readers that take it for
# missing turn the level into holes.
MISSING = ("", "NA", "N/A", "NaN", "nan", "NULL", "null", "<NA>")
SUFFIXES = (".csv", ".parquet")


def grouping_columns(formula: str, columns: Iterable[str]) -> list[str]:
    """Columns that stand behind a bar of a formula: ``(1 + x | site)``.

    Parameters
    ----------
    formula : str
        The model's formula.
    columns : iterable of str
        Columns of the data.

    Returns
    -------
    list of str
    """
    return [name for name in columns if re.search(rf"\|[^()|]*(?<![\w.]){re.escape(name)}(?![\w.])", formula)]


def read_table(path: Path, formula: str, groups: Iterable[Group] = ()) -> pd.DataFrame:
    """Read a CSV or Parquet file.

    Labels of groups keep the text that the file has where numbers would change them ("01" is not "1"), and
    are matched by their text with the labels that a model knows.

    Parameters
    ----------
    path : Path
        The file; its suffix says what it is.
    formula : str
        Says which columns are grouping factors.
    groups : iterable of Group
        Groups of a fitted model.

    Returns
    -------
    pandas.DataFrame, shape (N, ...)

    Raises
    ------
    FileFormatError
        For a suffix that is not known, and a file that cannot be read as what its suffix says.
    DataError
        For a file that is missing or empty.
    """
    suffix = check_suffix(path, SUFFIXES)
    if not path.is_file():
        raise DataError(f"There is no file '{path}'." if not path.exists() else f"'{path}' is not a file.")
    try:
        frame = _read_csv(path, formula) if suffix == ".csv" else pd.read_parquet(path)
    except pd.errors.EmptyDataError:
        raise DataError(f"'{path}' is empty.") from None
    except (ValueError, OSError) as error:  # pandas' parser errors and pyarrow's are ValueErrors
        reason = " ".join(str(error).split())
        raise FileFormatError(f"'{path}' cannot be read as {suffix[1:].upper()}: {reason}") from error
    return with_known_labels(frame, groups)


def with_known_labels(frame: pd.DataFrame, groups: Iterable[Group]) -> pd.DataFrame:
    """Rows whose group labels are those that a model knows, where their texts are the same.

    Parameters
    ----------
    frame : pandas.DataFrame
        The rows; changed in place.
    groups : iterable of Group
        Groups of a fitted model.

    Returns
    -------
    pandas.DataFrame
    """
    for group in groups:
        if group.name in frame.columns:
            frame[group.name] = _known_labels(frame[group.name], group)
    return frame


def _read_csv(path: Path, formula: str) -> pd.DataFrame:
    options: dict[str, Any] = {"keep_default_na": False, "na_values": list(MISSING)}
    header = pd.read_csv(path, nrows=0, **options).columns
    labels = grouping_columns(formula, header)
    frame = pd.read_csv(path, dtype=dict.fromkeys(labels, str), low_memory=False, **options)
    for name in labels:
        text = frame[name].dropna()
        if not text.str.match(r"[+-]?0\d").any():
            frame[name] = _numbers(frame[name])
    return frame


def _numbers(column: pd.Series) -> pd.Series:
    """Numbers where all of a column's texts are numbers."""
    try:
        return pd.to_numeric(column)
    except (ValueError, TypeError):
        return column


def _known_labels(column: pd.Series, group: Group) -> pd.Series:
    """Labels of a column as the model knows them, matched by their text."""
    if isinstance(group.labels, Integers) and column.dtype.kind in "iu":
        return column
    known = {label_text(label): label for label in group.labels}
    found = column.astype(object)
    return found.map(lambda label: known.get(label_text(label), label))


def label_text(label: Any) -> str:
    """Text of a label; 2.0 and "2.0" read as "2", as a column of whole numbers with gaps has them."""
    text = str(label)
    return text[:-2] if re.fullmatch(r"[+-]?\d+\.0", text) else text


def check_suffix(path: Path, known: tuple[str, ...]) -> str:
    """The suffix of a path, if it is one of those known.

    Parameters
    ----------
    path : Path
        A file to read or to write.
    known : tuple of str
        Suffixes, lower case, with the dot.

    Returns
    -------
    str

    Raises
    ------
    FileFormatError
        For any other suffix.
    """
    suffix = path.suffix.lower()
    if suffix not in known:
        shown = f"has the suffix '{path.suffix}'" if suffix else "has no suffix"
        raise FileFormatError(f"'{path}' {shown}; use {' or '.join(known)}.")
    return suffix


def check_writable(path: Path, known: tuple[str, ...]) -> Path:
    """Refuse an output that cannot be written, before any work is done for it.

    Parameters
    ----------
    path : Path
        The file to be written.
    known : tuple of str
        Suffixes that it may have.

    Returns
    -------
    Path

    Raises
    ------
    FileFormatError
        For another suffix.
    DataError
        Where its folder does not exist or cannot be written to.
    """
    check_suffix(path, known)
    if path.is_dir():
        raise DataError(f"'{path}' is a folder; name a file.")
    if not path.parent.is_dir():
        raise DataError(f"There is no folder '{path.parent}' to write '{path.name}' to; make it first.")
    if not os.access(path.parent, os.W_OK):
        raise DataError(f"The folder '{path.parent}' cannot be written to.")
    return path


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Write a data frame as CSV or Parquet, by the suffix.

    Parameters
    ----------
    path : Path
        Where to.
    frame : pandas.DataFrame
        What; its index is left out.
    """
    if path.suffix.lower() == ".csv":
        write_whole(path, lambda draft: frame.to_csv(draft, index=False))
    else:
        write_whole(path, lambda draft: frame.to_parquet(draft, index=False))
