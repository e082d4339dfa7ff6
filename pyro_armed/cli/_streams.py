"""Parquet files that are read some rows at a time."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as arrow
import pyarrow.parquet as parquet

from pyro_armed.armed import ARMED
from pyro_armed.cli._tables import SUFFIXES, check_suffix, with_known_labels
from pyro_armed.errors import ArgumentError
from pyro_armed.files import write_whole
from pyro_armed.parquet import ParquetRows
from pyro_armed.streamed_evaluation import frames_of

__all__ = ["add_stream", "blocks_of_rows", "is_streamed", "write_blocks"]

# Bytes of a Parquet file beyond which it is not read whole; in memory it takes several times as much.
LARGE = 500_000_000


def add_stream(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--stream``.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        Of a subcommand.
    """
    parser.add_argument(
        "--stream",
        action="store_true",
        help="read Parquet, a file or a folder, some rows at a time, as is done anyway beyond "
        f"{LARGE // 1_000_000} MB",
    )


def is_streamed(path: Path, options: argparse.Namespace) -> bool:
    """Whether rows are to be read some at a time.

    Parameters
    ----------
    path : Path
        The rows.
    options : argparse.Namespace
        With ``stream``.

    Returns
    -------
    bool

    Raises
    ------
    ArgumentError
        For ``--stream`` with a CSV.
    """
    suffix = check_suffix(path, SUFFIXES)
    if options.stream and suffix != ".parquet":
        raise ArgumentError(f"--stream reads Parquet only; write '{path}' as .parquet, or leave it out.")
    return options.stream or (suffix == ".parquet" and path.is_file() and path.stat().st_size > LARGE)


def blocks_of_rows(path: Path, model: ARMED) -> Iterator[pd.DataFrame]:
    """Successive rows of Parquet, so many that the draws of their predictions fit into memory.

    Parameters
    ----------
    path : Path
        The rows.
    model : ARMED
        A fitted model.

    Yields
    ------
    pandas.DataFrame

    Raises
    ------
    ArgumentError
        For a model with within_between, which needs all rows of a group at once.
    """
    for frame in frames_of(model, ParquetRows(path)):
        yield with_known_labels(frame, model.spec.groups)


def write_blocks(path: Path, frames: Callable[[], Iterator[pd.DataFrame]]) -> None:
    """Write tables one below the other as CSV or Parquet; the file is whole or not there.

    Parameters
    ----------
    path : Path
        Where to; its suffix says what.
    frames : callable
        Makes an iterator of tables with the same columns.
    """

    def write(draft: Any) -> None:
        if path.suffix.lower() == ".csv":
            for number, frame in enumerate(frames()):
                frame.to_csv(draft, mode="a" if number else "w", header=not number, index=False)
            return
        writer = None
        try:
            for frame in frames():
                table = arrow.Table.from_pandas(frame, preserve_index=False)
                writer = writer or parquet.ParquetWriter(draft, table.schema)
                writer.write_table(table)
        finally:
            if writer is not None:
                writer.close()

    write_whole(path, write)
