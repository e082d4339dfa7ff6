"""``pyro-armed evaluate --cross-validate``."""

from __future__ import annotations

import argparse

import pandas as pd

from pyro_armed.cli._models import add_model_options, fit_options, model_of
from pyro_armed.cli._tables import read_table
from pyro_armed.cross_validation import cross_validate
from pyro_armed.cross_validation._folds import BY
from pyro_armed.errors import ArgumentError

__all__ = ["add_cross_validation", "cross_validated", "refuse_model_options"]


def add_cross_validation(parser: argparse.ArgumentParser) -> None:
    """Add the options of cross-validation, and those of the model that it needs.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        That of ``evaluate``.
    """
    folds = parser.add_argument_group(
        "cross-validation", "MODEL is then a formula, and the options below say what the model is."
    )
    by = folds.add_argument(
        "--cross-validate",
        choices=BY,
        help="leave out whole groups (cluster), rows of each group (row), or both",
    )
    others = [
        folds.add_argument("--folds", type=int, default=5, help="number of fits (%(default)s)"),
        folds.add_argument("--group", help="grouping factor; the only one if left out"),
    ]
    defaults = {
        action.dest: (action.option_strings[0], action.default)
        for action in [*others, *add_model_options(parser)]
    }
    parser.set_defaults(needs_cross_validation=(by.option_strings[0], defaults))


def cross_validated(options: argparse.Namespace) -> pd.DataFrame:
    """Scores of the model that the options ask for.

    Parameters
    ----------
    options : argparse.Namespace
        Of ``evaluate``.

    Returns
    -------
    pandas.DataFrame
        From `pyro_armed.cross_validation.cross_validate`; new groups are ``marginal`` unless asked for
        otherwise.

    Raises
    ------
    ArgumentError
        For a file in the place of the formula, and with ``--support``.
    """
    if "~" not in options.model:
        raise ArgumentError(
            "--cross-validate fits anew and needs a formula, such as 'y ~ x + (1 | site)', "
            f"not {options.model!r}."
        )
    if options.support is not None:
        raise ArgumentError("--support cannot be used with --cross-validate; leave it out.")
    frame = read_table(options.data, options.model)
    return cross_validate(
        model_of(options, options.model, frame),
        frame,
        by=options.cross_validate,
        group=options.group,
        folds=options.folds,
        new_groups="marginal" if options.new_groups == "error" else options.new_groups,
        seed=options.seed,
        progressbar=not options.quiet,
        **fit_options(options),
    )


def refuse_model_options(options: argparse.Namespace) -> None:
    """Refuse options that a model from a file would not heed.

    Parameters
    ----------
    options : argparse.Namespace
        Of ``evaluate``.

    Raises
    ------
    ArgumentError
        Naming the option.
    """
    asked, defaults = options.needs_cross_validation
    for name, (option, default) in defaults.items():
        if getattr(options, name) != default:
            raise ArgumentError(f"{option} is for {asked}; the model in a file is what it is.")
