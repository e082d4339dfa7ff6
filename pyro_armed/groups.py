"""Grouping factors: labels to codes and back."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pyro_armed.errors import DataError

__all__ = ["GroupIndex", "combine_columns", "group_labels"]

UNSEEN = -1


def group_labels(values: Any, name: str) -> np.ndarray:
    """Labels of a grouping column as an object array; missing labels become None.

    Parameters
    ----------
    values : array-like, shape (N,)
        A column of any dtype, or a tensor.
    name : str
        The column's name, for messages.

    Returns
    -------
    numpy.ndarray, shape (N,), dtype object

    Raises
    ------
    DataError
        Where labels are not one-dimensional or cannot be hashed.

    Examples
    --------
    >>> group_labels([1, 2, None], "site").tolist()
    [1, 2, None]
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    try:
        series = values if isinstance(values, pd.Series) else pd.Series(list(values), dtype=_dtype_of(values))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"The labels of group '{name}' must be one-dimensional: one label for each row."
        ) from error
    labels = series.astype(object).to_numpy(dtype=object, copy=True)
    if labels.ndim != 1:
        raise DataError(f"The labels of group '{name}' must be one-dimensional: one label for each row.")
    for i, label in enumerate(labels):
        if not isinstance(label, Hashable) or _unhashable_tuple(label):
            raise DataError(
                f"Group '{name}' has a label of type {type(label).__name__} in row {i}; "
                "use numbers, strings or another hashable type."
            )
    missing = pd.isna(series).to_numpy(dtype=bool)
    labels[missing] = None
    return np.array([_plain(label) for label in labels] + [None], dtype=object)[:-1]


def combine_columns(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Labels of an interaction ``a:b``: the parts' texts joined by a colon.

    Parameters
    ----------
    columns : sequence of numpy.ndarray, each of shape (N,)
        Labels from `group_labels`.

    Returns
    -------
    numpy.ndarray, shape (N,)
        None where a part is missing. A single column is returned as it is.

    Examples
    --------
    >>> combine_columns([np.array(["s", "t"], object), np.array([1, 2], object)]).tolist()
    ['s:1', 't:2']
    """
    if len(columns) == 1:
        return columns[0]
    rows = zip(*columns, strict=True)
    return np.array(
        [None if None in row else ":".join(map(str, row)) for row in rows] + [None], dtype=object
    )[:-1]


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
    labels : list
        Labels as they stand in the data, shape (C,).
    """

    def __init__(self, name: str, labels: Sequence[Any], counts: Sequence[int]):
        self.name = name
        self.labels = list(labels)
        self.counts = np.asarray(counts, dtype=np.int64)
        self._codes = {label: code for code, label in enumerate(self.labels)}

    @classmethod
    def from_values(cls, name: str, values: np.ndarray, order: Sequence[Any] | None = None) -> GroupIndex:
        """Collect the distinct labels of a training column.

        Parameters
        ----------
        name : str
            The factor's name.
        values : numpy.ndarray, shape (N,)
            Labels from `group_labels`, none missing.
        order : sequence, optional
            Preferred order (a categorical column's categories); default sorted, else as they appear.

        Returns
        -------
        GroupIndex

        Raises
        ------
        DataError
            Where there are fewer than two groups.
        """
        counts = pd.Series(values, dtype=object).value_counts(sort=False)
        found = list(counts.index)
        if len(found) < 2:
            label = f" ({found[0]!r})" if found else ""
            raise DataError(
                f"Group '{name}' has only one group{label}: effects that vary between groups need at least two. "
                "Leave the term out or use another column."
            )
        if order is not None:
            labels = [label for label in order if label in counts.index]
        else:
            try:
                labels = sorted(found)
            except TypeError:
                labels = found
        return cls(name, labels, [int(counts[label]) for label in labels])

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
        codes, uniques = pd.factorize(pd.Series(values, dtype=object), use_na_sentinel=False)
        table = np.array([self._codes.get(label, UNSEEN) for label in uniques] + [UNSEEN], dtype=np.int64)
        return table[codes]

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
        missing = int(sum(label is None for label in values))
        if missing:
            raise DataError(
                f"Group '{self.name}' has {missing} missing labels. A missing label is not a new group: give the "
                "rows a label, or a label of their own such as 'unknown'."
            )
        codes = self.encode(values)
        unseen = codes == UNSEEN
        positions, new = pd.factorize(pd.Series(values[unseen], dtype=object))
        codes[unseen] = len(self) + positions
        return codes, list(new)

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
        if all(isinstance(label, int) and not isinstance(label, bool) for label in labels):
            return labels
        texts = [str(label) for label in labels]
        return texts if len(set(texts)) == len(texts) else [repr(label) for label in labels]


def _dtype_of(values: Any) -> Any:
    return getattr(values, "dtype", object)


def _unhashable_tuple(label: Any) -> bool:
    try:
        hash(label)
    except TypeError:
        return True
    return False


def _plain(label: Any) -> Any:
    """Python's own scalar for a NumPy one, so that labels can be stored and compared."""
    return label.item() if isinstance(label, np.generic) else label
