"""The subcommand predict."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pyro_armed.armed import ARMED
from pyro_armed.cli._fitted_models import (
    load_model,
    model_and_data,
    seed_and_quiet,
    subcommand,
    support_rows,
)
from pyro_armed.cli._streams import add_stream, blocks_of_rows, is_streamed, write_blocks
from pyro_armed.cli._tables import SUFFIXES, check_writable, read_table
from pyro_armed.cli._text import say
from pyro_armed.conformal import INTERVALS
from pyro_armed.errors import ArgumentError
from pyro_armed.membership import Membership
from pyro_armed.predict import KINDS
from pyro_armed.seeds import stream

__all__ = ["add_predict", "prediction_table"]

QUANTILES = (0.05, 0.5, 0.95)

EXAMPLE = """\
example:
  pyro-armed predict women.armed others.csv --new-groups marginal --out predicted.csv
  pyro-armed predict women.armed others.csv --new-groups marginal --intervals conformal \\
      --calibration spare_districts.csv --level 0.9 --out predicted.csv

The output has one line for each row of the data, in its order: what was done for its groups (seen, or
one of --new-groups), mean, sd and the 5, 50 and 95 % quantiles of the predictions; for a categorical or
ordinal response these for each level. With --intervals also where the response itself is expected:
lower and upper, or in_set for each level.
"""


def add_predict(commands: Any) -> None:
    """Add ``predict`` to the parser."""
    parser = subcommand(commands, "predict", "predict the rows of a CSV or Parquet file", EXAMPLE)
    model_and_data(parser, "rows to predict, .csv or .parquet")
    parser.add_argument("--kind", default="mean", choices=KINDS, help="what to predict (%(default)s)")
    parser.add_argument("--draws", type=int, help="posterior draws of each chain to use; all if left out")
    parser.add_argument(
        "--intervals",
        choices=INTERVALS,
        help="add intervals, or sets of levels, of the response: those of the posterior, or conformal ones, "
        "which cover rows of new groups even where the model is wrong and need --calibration",
    )
    parser.add_argument("--level", type=float, default=0.9, help="their probability (%(default)s)")
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="rows with their response of groups that training did not have, .csv or .parquet",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="table, .csv or .parquet")
    add_stream(parser)
    seed_and_quiet(parser)
    parser.set_defaults(run=_predict)


def _predict(options: argparse.Namespace) -> None:
    check_writable(options.out, SUFFIXES)
    model = load_model(options)
    streamed = is_streamed(options.data, options)
    if streamed and options.new_groups == Membership.name:
        raise ArgumentError(
            "--new-groups membership looks at all rows of a new group at once: leave --stream out, or cut "
            "the file between groups."
        )
    calibration = None
    if options.calibration is not None:
        calibration = read_table(options.calibration, model.formula, model.spec.groups)
    how = {"support": support_rows(options, model), "calibration": calibration}
    count = 0

    def tables() -> Iterator[pd.DataFrame]:
        nonlocal count
        for number, frame in enumerate(_frames(options, model, streamed)):
            # The first rows get what they would get alone; later ones other random numbers.
            seed = stream(options.seed, "rows", number) if number else options.seed
            table = prediction_table(_predicted(model, frame, options, seed, how))
            yield table.assign(row=table["row"] + count)
            count += len(frame)

    write_blocks(options.out, tables)
    if not options.quiet:
        say(f"{count} predictions: {options.out}")


def _frames(options: argparse.Namespace, model: ARMED, streamed: bool) -> Iterator[pd.DataFrame]:
    if streamed:
        yield from blocks_of_rows(options.data, model)
    else:
        yield read_table(options.data, model.formula, model.spec.groups)


def _predicted(
    model: ARMED, frame: pd.DataFrame, options: argparse.Namespace, seed: int, how: Mapping[str, Any]
) -> Any:
    return model.predict(
        frame,
        new_groups=options.new_groups,
        kind=options.kind,
        draws=options.draws,
        intervals=options.intervals,
        level=options.level,
        seed=seed,
        **how,
    )


def prediction_table(predicted: Any) -> pd.DataFrame:
    """What each row got: mean, sd and quantiles of its predictions, and its interval.

    Parameters
    ----------
    predicted : arviz.InferenceData or xarray.DataTree
        From `ARMED.predict`.

    Returns
    -------
    pandas.DataFrame, N rows
        ``row`` counts from 0; ``new_groups``, ``mean``, ``sd``, ``q05``, ``q50``, ``q95``; with intervals
        ``lower`` and ``upper``, or ``in_set[level]``. With a further dimension, columns for each of its
        levels: ``mean[level]``.

    Raises
    ------
    ArgumentError
        For drawn labels, which have no mean.
    """
    group = predicted["predictions"]
    (variable,) = (v for v in group.data_vars.values() if {"chain", "draw", "__obs__"} <= set(v.dims))
    levels = [dim for dim in variable.dims if dim not in ("chain", "draw", "__obs__")]
    draws = variable.transpose("chain", "draw", "__obs__", *levels).to_numpy()
    draws = draws.reshape(-1, *draws.shape[2:])
    if draws.dtype.kind not in "fiub":
        raise ArgumentError(
            "Drawn labels have no mean; use --kind mean, which gives each level's probability."
        )
    draws = draws.astype(float)
    low, middle, high = np.quantile(draws, QUANTILES, axis=0)
    statistics = {"mean": draws.mean(0), "sd": draws.std(0), "q05": low, "q50": middle, "q95": high}
    columns: dict[str, Any] = {"row": np.arange(draws.shape[1])}
    if "new_groups" in group.coords:
        columns["new_groups"] = group["new_groups"].to_numpy()
    if levels:
        for position, level in enumerate(variable[levels[0]].to_numpy()):
            columns |= {f"{name}[{level}]": values[:, position] for name, values in statistics.items()}
    else:
        columns |= statistics
    return pd.DataFrame({**columns, **_regions(group)})


def _regions(group: Any) -> dict[str, np.ndarray]:
    """Columns of the intervals or sets, as far as there are any."""
    columns = {name: group[name].to_numpy() for name in ("lower", "upper") if name in group}
    if "in_set" in group:
        (level,) = (dim for dim in group["in_set"].dims if dim != "__obs__")
        members = group["in_set"].transpose("__obs__", level)
        for position, label in enumerate(members[level].to_numpy()):
            columns[f"in_set[{label}]"] = members.to_numpy()[:, position]
    return columns
