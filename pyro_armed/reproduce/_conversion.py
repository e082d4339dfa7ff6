"""Conversion of mild cognitive impairment to dementia within 24 months, by a multilayer perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import nn

from pyro_armed.adversary import Adversary
from pyro_armed.datasets import CONVERSION_COLUMNS, conversion, read_adnimerge
from pyro_armed.effects import RandomEffects
from pyro_armed.errors import ArgumentError, DataError
from pyro_armed.networks import MLP
from pyro_armed.reproduce._application import Application, Problem
from pyro_armed.reproduce._diagnosis import largest_groups
from pyro_armed.reproduce._site_tasks import LEAKAGE, MOVED, SCORES, leakage_note, site_task
from pyro_armed.reproduce._sites import SiteTruth, measures, pictures, split
from pyro_armed.simulate import cohort

__all__ = ["CONVERSION"]

_FIT = {"epochs": 40, "batch_size": 32, "learning_rate": 5e-3, "schedule": "cosine"}
_SITES = 20
_ADVERSARY = Adversary(weight=1.0, hidden=(16,), warmup=0.2, learning_rate=0.01)
# The network's own prediction is what a new site gets, so the loss asks for it too; see `_diagnosis`.
_FIXED_EFFECTS = 0.3


def _network() -> nn.Module:
    # Some 330 rows to train with: layers of 16 and 8 units overfit, and told more of the site.
    return MLP(hidden=(4,), activation="elu")


def predictors(table: pd.DataFrame, train: NDArray[np.bool_]) -> tuple[NDArray[np.float64], list[str]]:
    """Predictors (N, K), the training rows' means in the place of missing values, and their names.

    Where the training rows miss values, a column more says which rows do.
    """
    columns, names = [], []
    for name in CONVERSION_COLUMNS:
        values = table[name].to_numpy(dtype=float)
        missing = np.isnan(values)
        known = values[train & ~missing]
        columns.append(np.where(missing, known.mean() if len(known) else 0.0, values))
        names.append(name)
        if missing[train].any() and len(known):
            columns.append(missing.astype(float))
            names.append(f"{name}_missing")
    return np.column_stack(columns), names


def _table(seed: int, quick: bool, files: Sequence[Path]) -> tuple[pd.DataFrame, pd.Series | None]:
    """The participants, and where they are simulated the sites' true log odds."""
    if len(files) > 1:
        raise ArgumentError("--data takes one file, ADNIMERGE.csv.")
    if files:
        return conversion(read_adnimerge(files[0])), None
    made = cohort(500 if quick else 1700, 60, seed=seed)
    truth = made.sites["logit"]
    return conversion(made.frame), pd.Series(truth.to_numpy(), index=truth.index.astype(str))


def _problem(seed: int, quick: bool, files: Sequence[Path]) -> Problem:
    table, truth = _table(seed, quick, files)
    sites: NDArray[Any] = table["SITE"].to_numpy(dtype=str)
    seen = largest_groups(sites, _SITES)
    train, test = split(seed, sites, seen)
    x, columns = predictors(table, train)
    y = table["converted"].to_numpy()
    _check(y, sites, train, test)
    task = site_task(
        x,
        y,
        "SITE",
        sites,
        (train, test),
        quick=quick,
        fit=_FIT,
        network=_network,
        random_effects=[RandomEffects("SITE", slopes="features")],
        adversary=_ADVERSARY,
        new_groups="population",
        fixed_effects_weight=_FIXED_EFFECTS,
        options={"columns": columns},
    )
    words = (
        f"{len(table)} participants with mild cognitive impairment, {y.mean():.0%} of whom have dementia "
        f"within 24 months; the {len(task.labels)} largest sites are seen, {len(set(sites[~seen]))} others "
        "unseen."
    )
    effects = {} if truth is None else {"logit": truth}
    return Problem(task, truth=SiteTruth(effects), words=words, simulated=not files)


def _check(
    y: NDArray[np.int64], sites: NDArray[Any], train: NDArray[np.bool_], test: NDArray[np.bool_]
) -> None:
    """Refuse a table from which nothing can be learned or scored, which only a user's own can be."""
    if len(np.unique(y)) < 2:
        raise DataError(
            f"The {len(y)} participants whose outcome is known have the same one; DX must tell of both."
        )
    if len(np.unique(sites)) < 2:
        raise DataError(f"The {len(y)} participants are of one site only; SITE must tell of several.")
    if min(len(np.unique(y[part])) for part in (train, test)) < 2:
        raise DataError(
            f"{len(y)} participants whose outcome is known are too few: all of those to train with, or to "
            "test with, have the same outcome; add participants."
        )


CONVERSION = Application(
    name="conversion",
    title="Who with mild cognitive impairment has dementia within 24 months, 20 sites seen",
    problem=_problem,
    measures=measures,
    pictures=pictures,
    shown=(*SCORES, *LEAKAGE, ("effects", "r(logit)"), ("effects", "moved")),
    note=f"{leakage_note('site', 'outcome')} Effects: r with the true log odds; {MOVED}",
    reads="ADNIMERGE.csv",
)
