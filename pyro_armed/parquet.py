"""Rows in Parquet files, read row group by row group: data sets that do not fit into memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from pyro_armed.errors import DataError

__all__ = ["CHUNK", "Distinct", "ParquetRows", "incomplete_rows", "is_parquet"]

CHUNK = 65_536
_PENDING = 2_000_000


def is_parquet(data: Any) -> bool:
    """Whether a ``data`` argument names rows in files: a path or a `pyarrow.dataset.Dataset`.

    Parameters
    ----------
    data : object
        What the user gave.

    Returns
    -------
    bool

    Examples
    --------
    >>> is_parquet("rows.parquet"), is_parquet({"x": [1.0]})
    (True, False)
    """
    return isinstance(data, (str, os.PathLike, pads.Dataset))


class ParquetRows:
    """A Parquet file, a folder of them, or a `pyarrow.dataset.Dataset`.

    Parameters
    ----------
    data : path-like or pyarrow.dataset.Dataset
        What the user gave. Folders named ``column=value`` make a column.

    Attributes
    ----------
    schema : pyarrow.Schema
        Columns and their types.
    pieces : list of pyarrow.dataset.Fragment
        Row groups.
    sizes : list of int
        Rows of each piece.

    Raises
    ------
    DataError
        Where there is no such file, it is no Parquet file, or has no rows.

    Examples
    --------
    >>> pd.DataFrame({"x": range(5)}).to_parquet("rows.parquet", row_group_size=2)
    >>> rows = ParquetRows("rows.parquet")
    >>> rows.n_rows, rows.sizes, [len(table) for table in rows.tables(["x"])]
    (5, [2, 2, 1], [2, 2, 1])
    """

    def __init__(self, data: Any):
        dataset = data if isinstance(data, pads.Dataset) else _open(Path(data))
        self.name = str(data) if not isinstance(data, pads.Dataset) else "the dataset"
        self.schema: pa.Schema = dataset.schema
        self.pieces: list[Any] = []
        self.sizes: list[int] = []
        try:
            fragments = list(dataset.get_fragments())
        except ValueError as error:
            raise DataError(
                "data= is a dataset with a filter; write the rows that it keeps as Parquet."
            ) from error
        for fragment in fragments:
            if not hasattr(fragment, "split_by_row_group"):
                raise DataError("data= is a dataset of another kind than Parquet files; write it as Parquet.")
            for piece in fragment.split_by_row_group():
                self.pieces.append(piece)
                self.sizes.append(sum(group.num_rows for group in piece.row_groups))
        if not self.n_rows:
            raise DataError(f"There are no rows in {self.name}; give at least one.")

    @property
    def n_rows(self) -> int:
        """Rows of all pieces."""
        return sum(self.sizes)

    def empty(self) -> pd.DataFrame:
        """A data frame with all columns and no row."""
        return self.schema.empty_table().to_pandas()

    def tables(
        self, columns: Sequence[str], pieces: Sequence[int] | None = None, size: int = CHUNK
    ) -> Iterator[pa.Table]:
        """Some columns of successive rows.

        Parameters
        ----------
        columns : sequence of str
            Which columns.
        pieces : sequence of int, optional
            Which row groups, in this order; None: all.
        size : int
            Most rows of a table.

        Yields
        ------
        pyarrow.Table
        """
        for position in range(len(self.pieces)) if pieces is None else pieces:
            yield from self.piece(position, columns, size)

    def piece(self, position: int, columns: Sequence[str], size: int = CHUNK) -> Iterator[pa.Table]:
        """Some columns of one row group, ``size`` rows at a time."""
        scanner = self.pieces[position].scanner(
            schema=self.schema,
            columns=list(columns),
            batch_size=size,
            batch_readahead=1,
            fragment_readahead=1,
            use_threads=False,
        )
        for batch in scanner.to_batches():
            if batch.num_rows:
                yield pa.Table.from_batches([batch])


class Distinct:
    """Distinct rows of some columns with their counts, gathered table by table without Python objects.

    Parameters
    ----------
    columns : sequence of str
        One column, or those of an interaction.

    Examples
    --------
    >>> found = Distinct(["g"])
    >>> for labels in (["b", "a"], ["b"]):
    ...     found.add(pa.table({"g": labels}))
    >>> found.frame().sort_values("g").values.tolist()
    [['a', 1], ['b', 2]]
    """

    def __init__(self, columns: Sequence[str]):
        self.columns = list(columns)
        self._pending: list[pa.Table] = []
        self._waiting = 0
        self._order: dict[str, dict[Any, None]] = {name: {} for name in self.columns}

    def add(self, table: pa.Table) -> None:
        """Take in some rows."""
        part = table.select(self.columns)
        for name in self.columns:
            if pa.types.is_dictionary(part.schema.field(name).type):
                position = part.schema.get_field_index(name)
                column = part.column(position)
                for chunk in column.chunks:
                    self._order[name].update(dict.fromkeys(chunk.dictionary.to_pylist()))
                plain = column.cast(part.schema.field(name).type.value_type)
                part = part.set_column(position, name, plain)
        counted = part.group_by(self.columns, use_threads=False).aggregate([([], "count_all")])
        self._pending.append(counted)
        self._waiting += len(counted)
        if self._waiting > _PENDING:
            self._merge()

    def order(self, column: str) -> list[Any] | None:
        """Labels in the order of a dictionary column's own; None for other columns."""
        return list(self._order[column]) or None

    def frame(self) -> pd.DataFrame:
        """Each distinct row once, with the last column ``count_all``."""
        self._merge()
        return self._pending[0].to_pandas()

    def _merge(self) -> None:
        joined = pa.concat_tables(self._pending)
        merged = joined.group_by(self.columns, use_threads=False).aggregate([("count_all", "sum")])
        self._pending = [merged.rename_columns([*self.columns, "count_all"])]
        # What is there counts half, or a table of many groups would be merged for every new one.
        self._waiting = len(merged) // 2


def incomplete_rows(table: pa.Table) -> tuple[np.ndarray, dict[str, int]]:
    """Rows that miss a value in any column, and how many each column misses.

    Parameters
    ----------
    table : pyarrow.Table, N rows
        Some rows.

    Returns
    -------
    rows : numpy.ndarray, shape (N,), bool
    counts : dict of str to int
        Columns without missing values are left out.

    Examples
    --------
    >>> incomplete_rows(pa.table({"x": [1.0, None, float("nan")], "g": [1, 2, 3]}))
    (array([False,  True,  True]), {'x': 2})
    """
    missing, counts = np.zeros(len(table), dtype=bool), {}
    for name in table.column_names:
        column = table.column(name)
        floating = pa.types.is_floating(column.type)
        if not column.null_count and not floating:
            continue
        mask = pc.is_null(column, nan_is_null=floating).to_numpy()
        if number := int(mask.sum()):
            counts[name] = number
            missing |= mask
    return missing, counts


def _open(path: Path) -> Any:
    if not path.exists():
        raise DataError(f"data='{path}' names no file or folder; give a data frame or a Parquet file.")
    try:
        dataset = pads.dataset(path, format="parquet", partitioning="hive")
        next(iter(dataset.get_fragments()), None)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"'{path}' cannot be read as Parquet: {reason}") from error
    return dataset
