"""Grouping factors: labels to codes and back."""

from __future__ import annotations

import base64
import datetime
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from pyro_armed import frames
from pyro_armed.errors import DataError, FileFormatError
from pyro_armed.integers import Integers

__all__ = ["GroupIndex", "combine_columns", "decode_labels", "encode_labels", "group_labels"]

UNSEEN = -1
_INT64 = np.iinfo(np.int64)


def group_labels(values: Any, name: str) -> np.ndarray:
    """Labels of a grouping column as an object array, or of whole numbers; missing labels become None.

    Parameters
    ----------
    values : array-like, shape (N,)
        A column of any dtype, or a tensor.
    name : str
        The column's name, for messages.

    Returns
    -------
    numpy.ndarray, shape (N,), dtype object or int64
        Python's own scalars for NumPy's. Columns of integers stay integers: as objects they would take ten
        times the memory.

    Raises
    ------
    DataError
        Where labels are not one-dimensional or cannot be hashed.

    Examples
    --------
    >>> group_labels([1, 2, None], "site").tolist()
    [1, 2, None]
    """
    column = _column(values, name)
    if isinstance(column, np.ndarray) and column.dtype.kind in "iu" and column.dtype != np.uint64:
        return column.astype(np.int64, copy=False)
    try:
        codes, found = pd.factorize(column)
    except (TypeError, ValueError) as error:
        raise DataError(_unhashable(column, name)) from error
    if isinstance(column, np.ndarray) and column.dtype == object:
        kinds = set(map(type, column))
        truths = {kind for kind in kinds if issubclass(kind, (bool, np.bool_))}
        if truths and any(issubclass(kind, (int, float, np.number)) for kind in kinds - truths):
            raise DataError(
                f"Group '{name}' mixes True or False with numbers, of which True is 1; use one kind."
            )
    labels = np.empty(len(found) + 1, dtype=object)
    for code, label in enumerate(found):
        labels[code] = label = _plain(label)
        if isinstance(label, tuple) and any(_is_missing(part) for part in label):
            raise DataError(
                f"Group '{name}' has the label {label!r}, a part of which is missing; fill it in."
            )
    return labels[codes]


def combine_columns(columns: Sequence[np.ndarray]) -> np.ndarray:
    r"""Labels of an interaction ``a:b``: the parts' texts joined by a colon.

    Parameters
    ----------
    columns : sequence of numpy.ndarray, each of shape (N,)
        Labels from `group_labels`.

    Returns
    -------
    numpy.ndarray, shape (N,)
        None where a part is missing. A single column is returned as it is. A colon inside a part becomes
        ``\:``, so that different combinations have different labels.

    Raises
    ------
    DataError
        Where different labels of one column have the same text, such as 1 and "1".

    Examples
    --------
    >>> combine_columns([np.array(["s", "t"], object), np.array([1, 2], object)]).tolist()
    ['s:1', 't:2']
    """
    if len(columns) == 1:
        return columns[0]
    combined = np.zeros(len(columns[0]), dtype=np.int64)
    parts: list[np.ndarray] = []
    texts: list[list[str]] = []
    for column in columns:
        codes, found = pd.factorize(column)
        parts.append(codes)
        texts.append([frames.text_of(label).replace("\\", "\\\\").replace(":", "\\:") for label in found])
        if len(set(texts[-1])) < len(found):
            raise DataError(
                "A column of an interaction of groups has different labels with the same text, such as 1 "
                "and '1'; rename them."
            )
        # Compressed after each column: the product of many sizes would overflow.
        combined = pd.factorize(combined * (len(found) + 1) + codes + 1)[0]
    first = np.unique(combined, return_index=True)[1]
    labels = np.empty(len(first), dtype=object)
    for position, row in enumerate(first):
        codes_here = [codes[row] for codes in parts]
        if min(codes_here) >= 0:
            labels[position] = ":".join(text[code] for text, code in zip(texts, codes_here, strict=True))
    return labels[combined]


class GroupIndex:
    """The groups of one grouping factor.

    Parameters
    ----------
    name : str
        The factor's name.
    labels : sequence
        Distinct labels in the order of their codes.
    counts : sequence of int
        Rows per group in training, shape (C,).

    Attributes
    ----------
    labels : list or Integers
        Labels as they stand in the data, shape (C,).
    counts : numpy.ndarray
        Rows per group in training, shape (C,).

    Examples
    --------
    >>> index = GroupIndex.from_values("site", group_labels(["b", "a", "b"], "site"))
    >>> index.labels, index.encode(group_labels(["b", "c"], "site")).tolist()
    (['a', 'b'], [1, -1])
    """

    def __init__(self, name: str, labels: Sequence[Any], counts: Sequence[int]):
        self.name = name
        self.labels = labels if isinstance(labels, Integers) else list(labels)
        self.counts = counts.array if isinstance(counts, Integers) else np.asarray(counts, dtype=np.int64)

    @classmethod
    def from_values(cls, name: str, values: np.ndarray, order: Sequence[Any] | None = None) -> GroupIndex:
        """Collect the distinct labels of a training column.

        Parameters
        ----------
        name : str
            The factor's name.
        values : numpy.ndarray, shape (N,)
            Labels from `group_labels`.
        order : sequence, optional
            Preferred order (a categorical column's categories); default sorted.

        Returns
        -------
        GroupIndex

        Raises
        ------
        DataError
            Where there are fewer than two groups, or missing labels.
        """
        if values.dtype == np.int64 and order is None:
            found, counted = np.unique(values, return_counts=True)
            _refuse_single(name, found)
            return cls(name, Integers(found), Integers(counted))
        codes, found = pd.factorize(values)
        refuse_missing_labels(name, int((codes < 0).sum()))
        _refuse_single(name, found)
        position = {label: code for code, label in enumerate(found)}
        labels = frames.ordered(found) if order is None else [label for label in order if label in position]
        counts = np.bincount(codes, minlength=len(found))
        return cls(name, labels, counts[[position[label] for label in labels]].tolist())

    def __len__(self) -> int:
        return len(self.labels)

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Codes of labels; `UNSEEN` (-1) for labels that training did not have.

        Parameters
        ----------
        values : numpy.ndarray, shape (N,)
            Labels from `group_labels`.

        Returns
        -------
        numpy.ndarray, shape (N,), dtype int64
        """
        if values.dtype == np.int64 and isinstance(self.labels, Integers):
            return self._table.get_indexer(values)
        codes, found = pd.factorize(values)
        known = self._codes
        table = np.array([known.get(label, UNSEEN) for label in found] + [UNSEEN], dtype=np.int64)
        return table[codes]

    @cached_property
    def _codes(self) -> dict[Any, int]:
        return {label: code for code, label in enumerate(self.labels)}

    @cached_property
    def _table(self) -> pd.Index:
        """A hash table of labels that are integers."""
        return pd.Index(self.labels.array)  # type: ignore[union-attr]

    def encode_with_new(self, values: np.ndarray) -> tuple[np.ndarray, list[Any]]:
        """Codes of labels, new labels numbered after the known ones.

        Parameters
        ----------
        values : numpy.ndarray, shape (N,)
            Labels from `group_labels`, None where missing.

        Returns
        -------
        codes : numpy.ndarray, shape (N,)
        new : list
            New labels in the order of their codes.

        Raises
        ------
        DataError
            For missing labels: a missing label is not a new one.
        """
        refuse_missing_labels(self.name, int(pd.isna(values).sum()))
        codes = self.encode(values)
        unseen = codes == UNSEEN
        positions, new = pd.factorize(values[unseen])
        codes[unseen] = len(self) + positions
        return codes, new.tolist()

    def coordinates(self, extra: Sequence[Any] = ()) -> list[Any]:
        """Labels as an ArviZ coordinate: integers or strings, each different.

        Parameters
        ----------
        extra : sequence, optional
            Labels of new groups to append.

        Returns
        -------
        list
        """
        labels = [*self.labels, *extra]
        if all(type(label) is int and _INT64.min <= label <= _INT64.max for label in labels):
            return labels
        texts = [str(label) for label in labels]
        if len(set(texts)) < len(texts):
            texts = [repr(label) for label in labels]
        if len(set(texts)) < len(texts):
            texts = [f"{text} ({code})" for code, text in enumerate(texts)]
        return texts


def _refuse_single(name: str, found: Sequence[Any] | np.ndarray) -> None:
    if len(found) < 2:
        label = f" ({_plain(found[0])!r})" if len(found) else ""
        raise DataError(
            f"Group '{name}' has only one group{label}: effects that vary between groups need at least "
            "two. Leave the term out or use another column."
        )


def refuse_missing_labels(name: str, count: int) -> None:
    """Raise if labels of a grouping factor are missing.

    Parameters
    ----------
    name : str
        The factor.
    count : int
        Missing labels.

    Raises
    ------
    DataError
        With the count.
    """
    if count:
        raise DataError(
            f"Group '{name}' has {frames.counted(count, 'missing label')}. A missing label is not a new "
            "group: give the rows a label, or a label of their own such as 'unknown'."
        )


def encode_labels(labels: Sequence[Any], name: str) -> list[Any]:
    """Labels as JSON stores them: numbers, text and booleans as they are, others with a tag.

    Parameters
    ----------
    labels : sequence
        Python scalars, tuples of them, bytes, dates.
    name : str
        The grouping factor, for messages.

    Returns
    -------
    list

    Raises
    ------
    DataError
        For labels of other types.

    Examples
    --------
    >>> encode_labels(["a", ("b", 1)], "site")
    ['a', {'tuple': ['b', 1]}]
    """
    return [_encode_label(label, name) for label in labels]


def decode_labels(stored: Sequence[Any]) -> list[Any]:
    """Labels from what `encode_labels` gave.

    Parameters
    ----------
    stored : sequence
        From JSON.

    Returns
    -------
    list

    Raises
    ------
    FileFormatError
        For tags that are not known.

    Examples
    --------
    >>> decode_labels(["a", {"tuple": ["b", 1]}])
    ['a', ('b', 1)]
    """
    return [_decode_label(label) for label in stored]


def _encode_label(label: Any, name: str) -> Any:
    # By exact type: a subclass, such as an enumeration, would come back as something else.
    if type(label) in (str, int, float, bool):
        return label
    if type(label) is tuple:
        return {"tuple": [_encode_label(part, name) for part in label]}
    if type(label) is bytes:
        return {"bytes": base64.b64encode(label).decode()}
    for tag, kind in (("timestamp", pd.Timestamp), ("datetime", datetime.datetime), ("date", datetime.date)):
        if type(label) is kind:
            return {tag: label.isoformat()}
    raise DataError(
        f"Group '{name}' has labels of type {type(label).__name__}, which a file cannot keep; use text, "
        "numbers or dates to save the model."
    )


def _decode_label(stored: Any) -> Any:
    if not isinstance(stored, dict):
        return stored
    (tag, value), *rest = stored.items()
    known = {
        "tuple": lambda parts: tuple(_decode_label(part) for part in parts),
        "bytes": base64.b64decode,
        "timestamp": pd.Timestamp,
        "datetime": datetime.datetime.fromisoformat,
        "date": datetime.date.fromisoformat,
    }
    if rest or tag not in known:
        raise FileFormatError(f"The file has a group label of the unknown kind {tag!r}.")
    return known[tag](value)


def _column(values: Any, name: str) -> Any:
    """Labels as one column that pandas can factorise."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    elif hasattr(values, "to_pandas"):
        values = values.to_pandas()
    if isinstance(values, (str, bytes, dict, pd.MultiIndex)) or not hasattr(values, "__len__"):
        raise DataError(
            f"The labels of group '{name}' must be one-dimensional, one label for each row, not "
            f"{type(values).__name__}."
        )
    if getattr(values, "ndim", 1) != 1:
        raise DataError(
            f"The labels of group '{name}' have shape {values.shape}; give one label for each row."
        )
    if isinstance(values, (pd.Series, pd.Index, pd.api.extensions.ExtensionArray)):
        dtype = values.dtype
        if not isinstance(dtype, (np.dtype, pd.SparseDtype, pd.CategoricalDtype)):
            return values.array if isinstance(values, (pd.Series, pd.Index)) else values
        values = (
            values.to_numpy()
            if isinstance(dtype, np.dtype) and dtype.kind in "iufb"
            else values.astype(object)
        )
        values = np.asarray(values)
    if isinstance(values, np.ndarray):
        return values if values.dtype.kind in "iufbO" else values.astype(object)
    labels = np.empty(len(values), dtype=object)
    for row, label in enumerate(values):
        labels[row] = label
    return labels


def _unhashable(labels: Any, name: str) -> str:
    for row, label in enumerate(labels):
        try:
            hash(label)
        except TypeError:
            return (
                f"Group '{name}' has a label of type {type(label).__name__} in row {row}; "
                "use numbers, strings or another hashable type."
            )
    return f"Group '{name}' has labels that cannot be compared; use numbers or strings."


def _is_missing(part: Any) -> bool:
    return part is None or part is pd.NA or part is pd.NaT or (isinstance(part, float) and part != part)


def _plain(label: Any) -> Any:
    """Python's own scalar for a NumPy one, so that labels can be stored and compared."""
    if isinstance(label, tuple):
        return tuple(_plain(part) for part in label)
    if isinstance(label, (np.datetime64, np.timedelta64)):
        return pd.Timestamp(label) if isinstance(label, np.datetime64) else pd.Timedelta(label)
    return label.item() if isinstance(label, np.generic) else label
