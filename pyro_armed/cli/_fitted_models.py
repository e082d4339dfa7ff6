"""What the subcommands share: their parsers, and reading a fitted model and its rows."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd

from pyro_armed.armed import ARMED, load
from pyro_armed.cli._tables import SUFFIXES, check_suffix, read_table
from pyro_armed.cli._text import HelpFormatter
from pyro_armed.errors import ArgumentError
from pyro_armed.new_groups import MODES

__all__ = ["load_model", "model_and_data", "seed_and_quiet", "subcommand", "support_rows"]


def subcommand(commands: Any, name: str, what: str, example: str) -> argparse.ArgumentParser:
    """Add a subcommand.

    Parameters
    ----------
    commands : argparse action
        Of all subcommands.
    name : str
        What the user types.
    what : str
        What it does, a few words without a capital or a full stop.
    example : str
        Shown below its options.

    Returns
    -------
    argparse.ArgumentParser
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=what,
        description=what[0].upper() + what[1:] + ".",
        epilog=example,
        formatter_class=HelpFormatter,
    )
    return parser


def model_and_data(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the file of a model and that of rows, and what to do with their new groups.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        Of a subcommand.
    what : str
        What the rows are for.
    """
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


def seed_and_quiet(parser: argparse.ArgumentParser) -> None:
    """Add the options of everything that draws and takes its time.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        Of a subcommand.
    """
    parser.add_argument(
        "--seed", type=int, default=0, help="the same seed gives the same numbers (%(default)s)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def load_model(options: argparse.Namespace) -> ARMED:
    """The model that the options name.

    Parameters
    ----------
    options : argparse.Namespace
        With those of `model_and_data`.

    Returns
    -------
    ARMED

    Raises
    ------
    ArgumentError, FileFormatError
        For files that are not there or cannot be read, and data of a kind that is not read.
    """
    check_suffix(options.data, SUFFIXES)
    path = Path(options.model)
    if not path.is_file():
        raise ArgumentError(f"There is no model file '{options.model}'.")
    return load(path)


def support_rows(options: argparse.Namespace, model: ARMED) -> pd.DataFrame | None:
    """The rows of ``--support``.

    Parameters
    ----------
    options : argparse.Namespace
        With those of `model_and_data`.
    model : ARMED
        Knows its grouping factors.

    Returns
    -------
    pandas.DataFrame or None
    """
    if options.support is None:
        return None
    return read_table(options.support, model.formula, model.spec.groups)
