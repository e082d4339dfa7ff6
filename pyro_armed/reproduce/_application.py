"""What an application is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from pyro_armed.baselines import BASELINES, Baseline, Fitted, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Application", "Problem", "no_measures", "no_pictures"]


@dataclass(frozen=True, eq=False)
class Problem:
    """One replicate of an application: a fold, or data of a seed.

    Attributes
    ----------
    task : Task
        What all baselines get.
    limits : mapping of str to mapping
        Figures that are no baseline's, such as the Bayes accuracy: by name, then by (split, metric).
        They are printed and stored as rows of the table.
    truth : object
        What `Application.measures` and `Application.pictures` need to know besides.
    words : str
        The data in a sentence; that of the first replicate is printed.
    simulated : bool
        Whether the data are simulated; said aloud if so.
    """

    task: Task
    limits: Mapping[str, Mapping[tuple[str, str], float]] = field(default_factory=dict)
    truth: Any = None
    words: str = ""
    simulated: bool = True


def no_measures(problem: Problem, name: str, fitted: Fitted, seed: int) -> pd.DataFrame | None:
    """Nothing further."""
    return None


def no_pictures(problem: Problem, fitted: Mapping[str, Fitted], seed: int) -> Mapping[str, Figure]:
    """No pictures."""
    return {}


@dataclass(frozen=True, eq=False)
class Application:
    """An experiment that `run` can do.

    Parameters
    ----------
    name, title : str
        What to type, and one line for ``--list``.
    problem : callable
        Takes the number of the replicate, whether to be ``quick``, and the user's files (none: simulate);
        returns a `Problem`. The number of a fold is that of the replicate too.
    replicates, quick_replicates : int
        How many there are by default.
    replicate : str
        What one is: "seed", or "fold".
    most : int or None
        The largest number of replicates, where that is bounded, as folds are.
    baselines : sequence of str or Baseline
        The lines of the table.
    full : str
        The baseline whose posterior is stored.
    measures : callable
        Takes a `Problem`, the name of a baseline, its `Fitted` and the number of the replicate; returns
        further rows with columns ``split``, ``metric``, ``value`` and, if known, ``se``; or None.
    pictures : callable
        Takes the first replicate's `Problem`, its `Fitted` by name, and the number of the replicate; returns
        figures (of `pyro_armed.plots.new_figure`) by file name, without the suffix.
    shown : sequence of (str, str)
        Splits and metrics of the printed table, in order; none: all.
    note : str
        What to know when reading the table, printed below it.
    reads : str
        What ``--data`` takes; empty: nothing.
    """

    name: str
    title: str
    problem: Callable[[int, bool, Sequence[Path]], Problem]
    replicates: int = 5
    quick_replicates: int = 1
    replicate: str = "seed"
    most: int | None = None
    baselines: Sequence[str | Baseline] = tuple(BASELINES)
    full: str = "ARMED"
    measures: Callable[[Problem, str, Fitted, int], pd.DataFrame | None] = no_measures
    pictures: Callable[[Problem, Mapping[str, Fitted], int], Mapping[str, Figure]] = no_pictures
    shown: Sequence[tuple[str, str]] = ()
    note: str = ""
    reads: str = ""
