"""Which rows are left out together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyro_armed.armed import ARMED
from pyro_armed.diagnostics._groups import only_group
from pyro_armed.errors import ArgumentError, DataError
from pyro_armed.groups import group_labels
from pyro_armed.seeds import stream

__all__ = ["BY", "Grouped", "grouped_rows", "held_out"]

BY = ("cluster", "row", "both")

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Grouped:
    """The rows that a model uses, and their groups.

    Attributes
    ----------
    group : str
        The grouping factor.
    rows : numpy.ndarray of int, shape (N,)
        Positions in the data; rows with missing values may be left out.
    codes : numpy.ndarray of int, shape (N,)
        Their groups.
    labels : list
        Labels of the groups by code.
    """

    group: str
    rows: Ints
    codes: Ints
    labels: list[Any]


def grouped_rows(model: ARMED, data: Any, group: str | None) -> Grouped:
    """Rows and groups of a model made of all the data.

    Parameters
    ----------
    model : ARMED
        Unfitted.
    data : pandas.DataFrame or dict
        What it is made of.
    group : str, optional
        Grouping factor, or another column of a data frame; None: the model's only factor.

    Returns
    -------
    Grouped

    Raises
    ------
    ArgumentError
        For an unknown factor, or where it is not clear which one is meant.
    DataError
        For missing labels, and a group that is called ``"all"``.
    """
    training = model._training
    if training is None:
        raise ArgumentError("Cross-validation needs the rows in memory: pass pandas.read_parquet(path).")
    codes = {name: values.cpu().numpy() for name, values in training.batch.codes.items()}
    rows = np.asarray(training.index, dtype=np.int64)
    if group is None and not model.spec.blocks:
        raise ArgumentError("The model has no group effects: say with group= which column has the groups.")
    column = isinstance(data, pd.DataFrame) and group in data.columns
    name = group if group in codes or column else only_group(model.module, group)
    if name in codes:
        known, labels = codes[name], list(model.spec.group(name).labels)
    else:
        known, found = pd.factorize(group_labels(data[name].iloc[rows], str(name)))
        labels = found.tolist()
        if (known < 0).any():
            raise DataError(f"Column '{name}' has missing labels; fill them in, or leave these rows out.")
    if "all" in map(str, labels):
        raise DataError(f"A group of '{name}' is called 'all', as all groups together are here; rename it.")
    return Grouped(str(name), rows, np.asarray(known, dtype=np.int64), labels)


def held_out(codes: Ints, by: str, folds: int, seed: int) -> list[Ints]:
    """Rows to be left out, fold by fold.

    Parameters
    ----------
    codes : numpy.ndarray of int, shape (N,)
        Groups of the rows.
    by : {"cluster", "row", "both"}
        Whole groups; rows, of each group as evenly as can be; or in each fold whole groups and some rows of
        the others, such that each row is left out once with its group and once without.
    folds : int
        Number of folds K.
    seed : int
        Seed of the folds.

    Returns
    -------
    list of numpy.ndarray of int
        Positions among the N rows, ascending, for each fold.

    Raises
    ------
    ArgumentError
        For an unknown ``by``, and numbers of folds that do not fit.

    Examples
    --------
    >>> [rows.tolist() for rows in held_out(np.array([0, 0, 1, 1, 2, 2, 3]), "cluster", 2, seed=0)]
    [[0, 1, 2, 3], [4, 5, 6]]
    """
    if by not in BY:
        raise ArgumentError(f"by={by!r} is not one of {', '.join(map(repr, BY))}.")
    n_groups, least = len(np.unique(codes)), 3 if by == "both" else 2
    if not isinstance(folds, int) or isinstance(folds, bool) or folds < least:
        raise ArgumentError(f"folds={folds!r} must be a whole number of at least {least} with by={by!r}.")
    if by != "row" and n_groups - -(-n_groups // folds) < 2:
        raise ArgumentError(
            f"{n_groups} groups are too few to leave whole groups out; use by='row'."
            if n_groups < 3
            else f"folds={folds} of {n_groups} groups leave fewer than two to train on; use more folds."
        )
    available = len(codes) if by == "row" else n_groups
    if folds > available:
        raise ArgumentError(
            f"folds={folds} is more than the {available} {'rows' if by == 'row' else 'groups'}."
        )
    rng = np.random.default_rng(stream(seed, "folds"))
    of_group = rng.permutation(np.arange(int(codes.max()) + 1)) % folds
    if by == "row":
        return _by_fold(_spread_within_groups(codes, folds, rng), folds)
    groups = _by_fold(of_group[codes], folds)
    if by == "cluster":
        return groups
    # Never the fold that leaves the group out: one of the K - 1 others.
    other = (of_group[codes] + 1 + _spread_within_groups(codes, folds - 1, rng)) % folds
    return [np.sort(np.concatenate(pair)) for pair in zip(groups, _by_fold(other, folds), strict=True)]


def _by_fold(fold: Ints, folds: int) -> list[Ints]:
    return [np.flatnonzero(fold == k) for k in range(folds)]


def _spread_within_groups(codes: Ints, folds: int, rng: np.random.Generator) -> Ints:
    """A fold for each row: at random, and counting on from group to group."""
    order = rng.permutation(len(codes))
    order = order[np.argsort(codes[order], kind="stable")]
    fold = np.empty(len(codes), dtype=np.int64)
    fold[order] = np.arange(len(codes)) % folds
    return fold
