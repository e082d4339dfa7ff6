"""The demonstration: spirals whose radius differs by group."""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pyro_armed.armed import ARMED
from pyro_armed.cli._text import HelpFormatter, say, table_text
from pyro_armed.errors import ConvergenceWarning, DataError
from pyro_armed.files import write_netcdf, write_whole
from pyro_armed.networks import MLP
from pyro_armed.simulate import Spirals, spirals

FORMULA = "y ~ x1 + x2 + (1 + features | group)"
WITHOUT = "y ~ x1 + x2"
HIDDEN = (16, 16, 16)
TEST_SHARE = 0.2
# Accuracy needs the middle of the posterior, not its width, and this guide finds it in a minute.
GUIDE = "mean_field"
NOTE = "Quick mean-field guide: its accuracy counts, its intervals are too narrow."

EXAMPLE = """\
example:
  pyro-armed demo --seed 1 --out spirals

Two spirals in each of ten groups, whose radii differ; nothing is downloaded. The posterior
(posterior.nc) and each group's decision boundary (decision_boundaries.png) are written to the folder.
"""


@dataclass(frozen=True)
class Size:
    """How much to simulate and how long to train."""

    rows_per_group: int = 1000
    restarts: int = 2
    draws: int = 200
    epochs: int | None = None


QUICK = Size(rows_per_group=200, restarts=1, draws=50, epochs=60)


def add_demo(commands: Any) -> None:
    """Add ``demo`` to the parser."""
    parser = commands.add_parser(
        "demo",
        help="fit spirals whose radius differs by group, and compare with the best possible",
        description="Fit spirals whose radius differs by group, and compare with the best possible.",
        epilog=EXAMPLE,
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "--out", type=Path, default=Path("armed-demo"), metavar="DIR", help="folder (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of data and inference (%(default)s)")
    parser.add_argument(
        "--quick", action="store_true", help="a fifth of the data and little training: seconds"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> None:
    from pyro_armed.plots import decision_boundaries, new_figure

    figure = new_figure()  # without Matplotlib this ends before any work is done
    folder = options.out
    if folder.exists() and not folder.is_dir():
        raise DataError(f"'{folder}' is a file; name a folder with --out.")
    size = QUICK if options.quick else Size()
    data = spirals(rows_per_group=size.rows_per_group, seed=options.seed)
    train, test = train_test(data.frame, options.seed)
    say(
        f"Spirals in {len(data.radii)} groups: {len(train)} rows to train with, {len(test)} to test with.\n"
        f"Model: {FORMULA}, network of {' + '.join(map(str, HIDDEN))} hidden units.\n"
        f"{NOTE}"
    )
    model = fit(FORMULA, train, size, options)
    plain = fit(WITHOUT, train, size, options)
    say("\n" + table_text(comparison(data, test, model, plain)) + "\n")

    folder.mkdir(parents=True, exist_ok=True)
    decision_boundaries(
        model, test, "x1", "x2", "group", truth=data.bayes_probability, seed=options.seed, figure=figure
    )
    picture, posterior = folder / "decision_boundaries.png", folder / "posterior.nc"
    write_whole(picture, lambda draft: figure.savefig(draft, dpi=150))
    write_netcdf(posterior, model.idata)
    say(f"Posterior: {posterior}\nDecision boundary of each group: {picture}")


def train_test(frame: pd.DataFrame, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split rows at random, 80 to 20.

    Parameters
    ----------
    frame : pandas.DataFrame
        All rows.
    seed : int
        Seed of the split.

    Returns
    -------
    tuple of pandas.DataFrame
    """
    order = np.random.default_rng(seed).permutation(len(frame))
    n_test = round(TEST_SHARE * len(frame))
    return frame.iloc[order[n_test:]], frame.iloc[order[:n_test]]


def fit(formula: str, train: pd.DataFrame, size: Size, options: argparse.Namespace) -> ARMED:
    """The fitted model of one formula."""
    model = ARMED(formula, train, family="bernoulli", network=MLP(hidden=HIDDEN))
    with warnings.catch_warnings():
        # The posterior is too narrow, as NOTE tells; `verdict` in the netCDF file says it in numbers.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(
            guide=GUIDE,
            restarts=size.restarts,
            draws=size.draws,
            epochs=size.epochs,
            log_likelihood=False,
            seed=options.seed,
            progressbar=not options.quiet,
        )
    return model


def accuracy(model: ARMED, test: pd.DataFrame) -> float:
    """Share of rows whose likelier class under the posterior mean is theirs."""
    (probability,) = model.predict(test)["predictions"].data_vars.values()
    predicted = probability.mean(["chain", "draw"]).to_numpy() > 0.5
    return float(np.mean(predicted == (test["y"].to_numpy() == 1)))


def comparison(data: Spirals, test: pd.DataFrame, model: ARMED, plain: ARMED) -> pd.DataFrame:
    """Test accuracies of both models and their limits, all on the same rows.

    Parameters
    ----------
    data : Spirals
        Knows the limits.
    test : pandas.DataFrame
        Rows that training did not have.
    model, plain : ARMED
        With and without group effects.

    Returns
    -------
    pandas.DataFrame
        Columns ``classifier``, ``accuracy`` and ``of the limit``.
    """
    limit = data.bayes_accuracy(test)
    rows = {
        "ARMED": accuracy(model, test),
        "the same network without random effects": accuracy(plain, test),
        "Bayes limit, each group's radius known": limit,
        "Bayes limit, only the radii's distribution known": data.bayes_accuracy(test, known_radius=False),
    }
    return pd.DataFrame(
        {
            "classifier": list(rows),
            "accuracy": list(rows.values()),
            "of the limit": np.array(list(rows.values())) / limit,
        }
    )
