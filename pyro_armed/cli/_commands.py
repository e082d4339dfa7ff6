"""The subcommands fit and evaluate."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

from pyro_armed.armed import ARMED
from pyro_armed.cli._cross_validate import add_cross_validation, cross_validated, refuse_model_options
from pyro_armed.cli._fitted_models import load_model, model_and_data, seed_and_quiet, subcommand, support_rows
from pyro_armed.cli._models import add_model_options, fit_options, model_of
from pyro_armed.cli._streams import add_stream, blocks_of_rows, is_streamed
from pyro_armed.cli._tables import (
    SUFFIXES,
    check_writable,
    read_table,
    write_table,
)
from pyro_armed.cli._text import say, table_text
from pyro_armed.files import write_netcdf, write_whole
from pyro_armed.streamed_evaluation import evaluate_frames

MODEL, NETCDF = (".armed",), (".nc",)

FIT_EXAMPLE = """\
example:
  pyro-armed fit "use ~ age + urban + (1 + urban | district)" women.csv --family bernoulli \\
      --network 16,16 --adversary 0.5 --out women.armed --netcdf posterior.nc

  pyro-armed fit "y ~ x + (1 + x | g)" rows.parquet --guide mean_field --epochs 5 --batch-size 8192 \\
      --stream --out large.armed

In a CSV, an empty cell, NA, NaN and null are missing; None is a label. Labels of groups such as 01
stay as they are written.
"""
EVALUATE_EXAMPLE = """\
example:
  pyro-armed evaluate women.armed held_out.csv --new-groups marginal --out scores.csv
  pyro-armed evaluate "use ~ age + urban + (1 | district)" women.csv --family bernoulli \\
      --cross-validate both --folds 5 --out scores.csv

With --cross-validate, scores of rows that were left out: of new groups, of groups that training had, or
of both. The file has them for each fold and each group too.
"""


def add_fit(commands: Any) -> None:
    """Add ``fit`` to the parser."""
    parser = subcommand(commands, "fit", "fit a model to a CSV or Parquet file", FIT_EXAMPLE)
    parser.add_argument("formula", metavar="FORMULA", help='such as "y ~ x + (1 + x | site)"')
    parser.add_argument("data", metavar="DATA", type=Path, help="training rows, .csv or .parquet")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.armed", help="the fitted model")
    parser.add_argument("--netcdf", type=Path, metavar="FILE.nc", help="the ArviZ object as netCDF")
    parser.add_argument(
        "--membership",
        action="store_true",
        help="put a classifier of groups in the file, for predict and evaluate --new-groups membership",
    )
    add_model_options(parser)
    add_stream(parser)
    seed_and_quiet(parser)
    parser.set_defaults(run=_fit)


def _fit(options: argparse.Namespace) -> None:
    check_writable(options.out, MODEL)
    if options.netcdf is not None:
        check_writable(options.netcdf, NETCDF)
    # What a file is too large for, and could be streamed, is; other fits need it whole.
    able = options.inference == "svi" and options.guide == "mean_field"
    streamed = is_streamed(options.data, options) and (options.stream or able)
    rows = options.data if streamed else read_table(options.data, options.formula)
    model = model_of(options, options.formula, rows)
    idata = model.fit(**fit_options(options), seed=options.seed, progressbar=not options.quiet)
    if options.membership:
        model.fit_membership(progressbar=not options.quiet)
    write_whole(options.out, model.save)
    if options.netcdf is not None:
        write_netcdf(options.netcdf, idata)
    spec = model.spec
    sizes = [f"{spec.n_rows} rows", *(f"{group.size} groups of {group.name}" for group in spec.groups)]
    say(f"{options.formula}  ({spec.family.name}; {', '.join(sizes)})\n")
    say(summary(model, idata).to_string())
    say(f"\nModel: {options.out}" + (f"\nPosterior: {options.netcdf}" if options.netcdf else ""))


def summary(model: ARMED, idata: Any) -> pd.DataFrame:
    """ArviZ's summary of everything but the groups' own effects, which may be thousands.

    Parameters
    ----------
    model : ARMED
        The model.
    idata : arviz.InferenceData or xarray.DataTree
        Its posterior.

    Returns
    -------
    pandas.DataFrame
    """
    import arviz as az

    posterior = idata["posterior"]
    effects = model.module.effect_names()
    shown: dict[str, xr.DataArray] = {}
    for name, values in posterior.data_vars.items():
        if str(name).endswith("_corr"):
            shown |= _correlations(str(name), values)
        elif name not in effects:
            shown[str(name)] = values
    kind: Any = "all" if posterior.sizes["chain"] > 1 else "stats"
    return az.summary(xr.Dataset(shown), round_to=3, kind=kind)


def _correlations(name: str, matrix: xr.DataArray) -> dict[str, xr.DataArray]:
    """Each correlation once, without the ones on the diagonal."""
    rows, columns = matrix.dims[-2:]
    return {
        f"{name}[{a}, {b}]": matrix.isel({rows: i, columns: j}, drop=True)
        for i, a in enumerate(matrix[rows].to_numpy())
        for j, b in enumerate(matrix[columns].to_numpy())
        if i < j
    }


def add_evaluate(commands: Any) -> None:
    """Add ``evaluate`` to the parser."""
    parser = subcommand(
        commands, "evaluate", "score predictions of a file that has the responses", EVALUATE_EXAMPLE
    )
    model_and_data(parser, "rows with their response, .csv or .parquet")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table too, .csv or .parquet")
    add_cross_validation(parser)
    add_stream(parser)
    seed_and_quiet(parser)
    parser.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> None:
    if options.out is not None:
        check_writable(options.out, SUFFIXES)
    if options.cross_validate is not None:
        scores = cross_validated(options)
        if options.out is not None:
            write_table(options.out, scores.astype({"fold": str, "group": str}))
        overall = scores[(scores["fold"].astype(str) == "all") & (scores["group"].astype(str) == "all")]
        say(table_text(overall[["split", "metric", "value", "se"]], digits=4))
        return
    refuse_model_options(options)
    model = load_model(options)
    how = {"new_groups": options.new_groups, "support": support_rows(options, model), "seed": options.seed}
    if is_streamed(options.data, options):
        scores = evaluate_frames(model, blocks_of_rows(options.data, model), **how)
    else:
        scores = model.evaluate(read_table(options.data, model.formula, model.spec.groups), **how)
    if options.out is not None:
        write_table(options.out, scores)
    say(table_text(scores, digits=4))
