"""The subcommands fit, predict and evaluate."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from pyro_armed.armed import ARMED, load
from pyro_armed.cli._cross_validate import add_cross_validation, cross_validated, refuse_model_options
from pyro_armed.cli._models import add_model_options, fit_options, model_of
from pyro_armed.cli._tables import (
    SUFFIXES,
    check_suffix,
    check_writable,
    read_table,
    write_table,
)
from pyro_armed.cli._text import HelpFormatter, say, table_text
from pyro_armed.errors import ArgumentError
from pyro_armed.files import write_netcdf, write_whole
from pyro_armed.new_groups import MODES
from pyro_armed.predict import KINDS

MODEL, NETCDF = (".armed",), (".nc",)
QUANTILES = (0.05, 0.5, 0.95)

FIT_EXAMPLE = """\
example:
  pyro-armed fit "use ~ age + urban + (1 + urban | district)" women.csv --family bernoulli \\
      --network 16,16 --adversary 0.5 --out women.armed --netcdf posterior.nc

In a CSV, an empty cell, NA, NaN and null are missing; None is a label. Labels of groups such as 01
stay as they are written.
"""
PREDICT_EXAMPLE = """\
example:
  pyro-armed predict women.armed others.csv --new-groups marginal --out predicted.csv

The output has one line for each row of the data, in its order: mean, sd and the 5, 50 and 95 %
quantiles of the predictions; for a categorical or ordinal response these for each level.
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
    parser = _subcommand(commands, "fit", "fit a model to a CSV or Parquet file", FIT_EXAMPLE)
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
    _seed_and_quiet(parser)
    parser.set_defaults(run=_fit)


def _fit(options: argparse.Namespace) -> None:
    check_writable(options.out, MODEL)
    if options.netcdf is not None:
        check_writable(options.netcdf, NETCDF)
    frame = read_table(options.data, options.formula)
    model = model_of(options, options.formula, frame)
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


def add_predict(commands: Any) -> None:
    """Add ``predict`` to the parser."""
    parser = _subcommand(commands, "predict", "predict the rows of a CSV or Parquet file", PREDICT_EXAMPLE)
    _model_and_data(parser, "rows to predict, .csv or .parquet")
    parser.add_argument("--kind", default="mean", choices=KINDS, help="what to predict (%(default)s)")
    parser.add_argument("--draws", type=int, help="posterior draws of each chain to use; all if left out")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="table, .csv or .parquet")
    _seed_and_quiet(parser)
    parser.set_defaults(run=_predict)


def _predict(options: argparse.Namespace) -> None:
    check_writable(options.out, SUFFIXES)
    model, frame = _load_both(options)
    predicted = model.predict(
        frame,
        new_groups=options.new_groups,
        support=_support(options, model),
        kind=options.kind,
        draws=options.draws,
        seed=options.seed,
    )
    write_table(options.out, prediction_table(predicted))
    if not options.quiet:
        say(f"{len(frame)} predictions: {options.out}")


def prediction_table(predicted: Any) -> pd.DataFrame:
    """Mean, sd and quantiles of each row's predictions.

    Parameters
    ----------
    predicted : arviz.InferenceData or xarray.DataTree
        From `ARMED.predict`.

    Returns
    -------
    pandas.DataFrame, shape (N, 6)
        ``row`` counts from 0. With a further dimension, columns for each of its levels: ``mean[level]``.
    """
    variables = predicted["predictions"].data_vars.values()
    (variable,) = (v for v in variables if "__obs__" in v.dims)
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
    if not levels:
        return pd.DataFrame({**columns, **statistics})
    for position, level in enumerate(variable[levels[0]].to_numpy()):
        columns |= {f"{name}[{level}]": values[:, position] for name, values in statistics.items()}
    return pd.DataFrame(columns)


def add_evaluate(commands: Any) -> None:
    """Add ``evaluate`` to the parser."""
    parser = _subcommand(
        commands, "evaluate", "score predictions of a file that has the responses", EVALUATE_EXAMPLE
    )
    _model_and_data(parser, "rows with their response, .csv or .parquet")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table too, .csv or .parquet")
    add_cross_validation(parser)
    _seed_and_quiet(parser)
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
    model, frame = _load_both(options)
    support = _support(options, model)
    scores = model.evaluate(frame, new_groups=options.new_groups, support=support, seed=options.seed)
    if options.out is not None:
        write_table(options.out, scores)
    say(table_text(scores, digits=4))


def _load_both(options: argparse.Namespace) -> tuple[ARMED, pd.DataFrame]:
    check_suffix(options.data, SUFFIXES)
    path = Path(options.model)
    if not path.is_file():
        raise ArgumentError(f"There is no model file '{options.model}'.")
    model = load(path)
    return model, read_table(options.data, model.formula, model.spec.groups)


def _support(options: argparse.Namespace, model: ARMED) -> pd.DataFrame | None:
    if options.support is None:
        return None
    return read_table(options.support, model.formula, model.spec.groups)


def _subcommand(commands: Any, name: str, what: str, example: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=what,
        description=what[0].upper() + what[1:] + ".",
        epilog=example,
        formatter_class=HelpFormatter,
    )
    return parser


def _model_and_data(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("model", metavar="MODEL", help="a file that `pyro-armed fit` has written")
    parser.add_argument("data", metavar="DATA", type=Path, help=what)
    parser.add_argument(
        "--new-groups",
        default="error",
        choices=MODES,
        help="groups that training did not have: error refuses them, population takes the average group, "
        "marginal draws their effects, membership takes those of seen groups that the rows resemble (fit "
        "--membership), adapt draws them given the rows of --support (%(default)s)",
    )
    parser.add_argument(
        "--support",
        type=Path,
        metavar="FILE",
        help="rows of new groups with their response, .csv or .parquet, for --new-groups adapt",
    )


def _seed_and_quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seed", type=int, default=0, help="the same seed gives the same numbers (%(default)s)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
