"""Options that say what a model is and how it is fitted."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd

from pyro_armed import families
from pyro_armed.adversary import Adversary
from pyro_armed.armed import ARMED
from pyro_armed.networks import MLP

__all__ = ["add_model_options", "fit_options", "model_of"]


def add_model_options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Add the options of a model and of its inference.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        Of a subcommand.

    Returns
    -------
    list of argparse.Action
        Those options.
    """
    model = parser.add_argument_group("model")
    model.add_argument(
        "--family", default="gaussian", help=f"response family: {', '.join(families.FAMILIES)} (%(default)s)"
    )
    model.add_argument("--link", help="the family's link; its usual one if left out")
    model.add_argument(
        "--network",
        type=_units,
        metavar="UNITS",
        help='hidden units of an MLP, such as "16,16"; none: linear',
    )
    model.add_argument(
        "--adversary", type=float, metavar="WEIGHT", help="weight of the adversary; none without it"
    )
    model.add_argument(
        "--missing", default="error", help="rows with missing values: error, drop or indicator (%(default)s)"
    )
    inference = parser.add_argument_group("inference")
    inference.add_argument("--inference", default="svi", help="svi or nuts (%(default)s)")
    inference.add_argument("--guide", default="structured", help="structured or mean_field (%(default)s)")
    inference.add_argument("--restarts", type=int, default=4, help="restarts or chains (%(default)s)")
    inference.add_argument("--draws", type=int, default=500, help="draws of each chain (%(default)s)")
    inference.add_argument("--epochs", type=int, help="most passes over the data")
    inference.add_argument("--batch-size", type=int, help="rows per step")
    inference.add_argument("--learning-rate", type=float, help="first learning rate")
    inference.add_argument(
        "--schedule", default="plateau", help="how the rate falls: plateau or cosine (%(default)s)"
    )
    inference.add_argument("--device", help="where networks are trained, such as cuda; the CPU if left out")
    return [*model._group_actions, *inference._group_actions]


def model_of(options: argparse.Namespace, formula: str, frame: pd.DataFrame | Path) -> ARMED:
    """The model that the options ask for.

    Parameters
    ----------
    options : argparse.Namespace
        With those of `add_model_options`.
    formula : str
        Its formula.
    frame : pandas.DataFrame or Path
        Training rows, or a Parquet file of them to be streamed.

    Returns
    -------
    ARMED
        Unfitted.
    """
    return ARMED(
        formula,
        frame,
        family=options.family,
        link=options.link,
        network=None if options.network is None else MLP(hidden=options.network),
        adversary=None if options.adversary is None else Adversary(weight=options.adversary),
        missing=options.missing,
    )


def fit_options(options: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `ARMED.fit`, but for the seed and the progress bar.

    Parameters
    ----------
    options : argparse.Namespace
        With those of `add_model_options`.

    Returns
    -------
    dict
    """
    names = ["inference", "guide", "restarts", "draws", "epochs", "batch_size", "learning_rate", "schedule"]
    names.append("device")
    return {name: getattr(options, name) for name in names}


def _units(text: str) -> tuple[int, ...]:
    try:
        units = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        units = ()
    if not units or min(units) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of layer sizes such as 16,16")
    return units
