"""Conformal intervals without calibration groups of their own."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyro_armed.armed import ARMED
from pyro_armed.conformal import (
    Predictive,
    Regions,
    check_level,
    conformity,
    in_range,
    least_groups,
    predictive,
)
from pyro_armed.cross_validation._data import check_data, encode, made, naming_the_fold, take
from pyro_armed.cross_validation._folds import grouped_rows
from pyro_armed.cross_validation._predict import fitted_folds
from pyro_armed.design import Encoded
from pyro_armed.errors import ArgumentError, ArmedWarning
from pyro_armed.families import Family
from pyro_armed.seeds import stream

if TYPE_CHECKING:
    from pyro_armed.cross_validation._data import Source

__all__ = ["combined_regions", "cross_conformal"]

_ELEMENTS = 5_000_000

Floats = NDArray[np.float64]


def cross_conformal(
    model: Source,
    data: Any,
    new_data: Any,
    *,
    level: float = 0.9,
    group: str | None = None,
    folds: int = 5,
    new_groups: str = "marginal",
    unseen_levels: str = "error",
    seed: int = 0,
    progressbar: bool = True,
    **fit: Any,
) -> pd.DataFrame:
    """Intervals, or sets of levels, for rows of new groups, calibrated on groups left out fold by fold.

    With few groups none can be spared for `ARMED.predict`'s ``calibration=``. Here each group is calibrated
    on by the one of ``folds`` models that was not fitted to it, and all models predict the new rows.

    Parameters
    ----------
    model, data, group, folds, new_groups, unseen_levels, seed, progressbar, **fit
        As for `cross_validate`, with whole groups left out.
    new_data : pandas.DataFrame or tuple
        Rows of new groups; for a model from arrays ``(x, groups)``.
    level : float
        Probability that is aimed at, between 0 and 1.

    Returns
    -------
    pandas.DataFrame
        Columns ``lower`` and ``upper``, or a column of booleans for each level of a binary, categorical or
        ordinal response; indexed by the position of the row in ``new_data``.

    Raises
    ------
    ArgumentError, DataError
        As for `cross_validate`, and for a level that is not between 0 and 1.

    Warns
    -----
    ArmedWarning
        Where there are so few groups that the intervals are infinite, and where new rows are of groups that
        ``data`` has.

    Notes
    -----
    The CV+ intervals of Barber, Candes, Ramdas, Tibshirani (Annals of Statistics 49, 2021), with groups in
    the place of rows, each group's rows sharing its weight (Lee, Barber, Willett, arXiv 2306.06342). What is
    guaranteed for a row of a new group is a coverage of 2 ``level`` - 1, less a term of the order of
    sqrt(2 / K) for K groups unless each is a fold of its own; what is found is close to ``level``. Where
    ``level`` itself must be guaranteed, use calibration groups.

    Examples
    --------
    >>> import pyro_armed as pa
    >>> frame = pa.simulate.mixed_model(12, 5, seed=0).frame
    >>> model = pa.ARMED("y ~ x1 + (1 | group)", frame)
    >>> new = frame.head(3).assign(group="new")
    >>> pa.cross_conformal(
    ...     model, frame, new, level=0.8, folds=2, restarts=1, draws=50, progressbar=False
    ... ).columns.tolist()
    ['lower', 'upper']
    """
    check_level(level)
    data = check_data(data)
    full = made(model, data)
    grouped = grouped_rows(full, data, group)
    needed, count = least_groups(level), len(np.unique(grouped.codes))
    if count < needed:
        warnings.warn(
            f"{count} groups of '{grouped.group}' are too few for level={level}: the intervals are infinite, "
            f"and sets have all levels. At least {needed} groups are needed.",
            ArmedWarning,
            stacklevel=2,
        )
    rows = _encode_new(full, new_data, unseen_levels)
    _warn_of_known_groups(full, rows, grouped.group)
    scores, parts, codes = [], [], []
    for fold in fitted_folds(model, data, grouped, "cluster", folds, seed, progressbar, fit):
        posterior, mode = fold.model._fitted(), fold.model._mode(new_groups, None)
        with naming_the_fold(fold.number):
            left_out = encode(fold.model, take(data, grouped.rows[fold.rows]), unseen_levels)
            known = predictive(
                posterior, left_out, mode, level=level, seed=stream(seed, "calibration", fold.number)
            )
            response = left_out.batch.response.double().cpu().numpy()  # type: ignore[union-attr]
            scores.append(conformity(known, response))
            codes.append(grouped.codes[fold.rows])
            again = _encode_new(fold.model, new_data, unseen_levels)
            parts.append(predictive(posterior, again, mode, level=level, seed=stream(seed, fold.number)))
    regions = combined_regions(scores, codes, parts, level, full.spec.family)
    return _table(regions, full, rows)


def combined_regions(
    scores: list[Floats],
    groups: list[NDArray[Any]],
    parts: list[Predictive],
    level: float,
    family: Family,
) -> Regions:
    """CV+ regions from the scores and predictions of each fold's model.

    Parameters
    ----------
    scores : list of numpy.ndarray, shape (N_k,)
        Scores of the rows left out of each fold.
    groups : list of numpy.ndarray, shape (N_k,)
        Codes of their groups.
    parts : list of Predictive
        Each model's predictive distributions of the M new rows.
    level : float
        Probability that is aimed at.
    family : Family
        Says which values a response can have.

    Returns
    -------
    Regions
    """
    codes = np.concatenate(groups)
    counts = np.bincount(codes)
    mass = 1.0 / counts[codes]
    bound = level * (np.count_nonzero(counts) + 1) - 1e-9
    if len(parts[0].probability):
        below = sum(_mass_below(1.0 - part.probability, s, 1.0 / counts[c])
                    for part, s, c in zip(parts, scores, groups, strict=True))  # fmt: skip
        mean = np.mean([part.probability for part in parts], axis=0)
        return Regions(members=(below < bound) | (mean == mean.max(axis=1, keepdims=True)))
    n_new = len(parts[0].center)
    lower, upper = np.empty(n_new), np.empty(n_new)
    for some in np.array_split(np.arange(n_new), max(1, n_new * len(codes) // _ELEMENTS)):
        down, up = [], []
        for part, s in zip(parts, scores, strict=True):
            center, low, high = part.center[some], part.low[some], part.high[some]
            down.append(center - s[:, None] * (center - low))
            up.append(center + s[:, None] * (high - center))
        lower[some] = -_quantile(-np.concatenate(down), mass, bound)
        upper[some] = _quantile(np.concatenate(up), mass, bound)
    return in_range(lower, upper, parts[0].ceiling, family)


def _quantile(values: Floats, mass: Floats, bound: float) -> Floats:
    """For each column the smallest value with a mass of ``bound`` at or below it; infinite without one."""
    order = np.argsort(values, axis=0, kind="stable")
    reached = np.cumsum(mass[order], axis=0) >= bound
    ranked = np.take_along_axis(values, order, axis=0)
    first = reached.argmax(axis=0)
    return np.where(reached.any(axis=0), ranked[first, np.arange(values.shape[1])], np.inf)


def _mass_below(points: Floats, scores: Floats, mass: Floats) -> Floats:
    """Mass of the scores that are less than each point."""
    order = np.argsort(scores, kind="stable")
    total = np.concatenate([[0.0], np.cumsum(mass[order])])
    return np.asarray(total[np.searchsorted(scores[order], points, side="left")])


def _encode_new(model: ARMED, new_data: Any, unseen_levels: str) -> Encoded:
    if isinstance(new_data, pd.DataFrame):
        return model._encode(new_data, None, unseen_levels=unseen_levels)
    if not isinstance(new_data, tuple) or len(new_data) != 2:
        raise ArgumentError("new_data must be a data frame, or (x, groups) for a model from arrays.")
    return model._encode(*new_data)


def _warn_of_known_groups(model: ARMED, rows: Encoded, group: str) -> None:
    codes = rows.batch.codes.get(group)
    if codes is None:  # a column that is no factor of the model: nothing of it is learned
        return
    known = int((codes < model.spec.group(group).size).sum())
    if known:
        warnings.warn(
            f"{known} of {len(codes)} new rows are of groups of '{group}' that data has; conformal intervals "
            "are for rows of new groups.",
            ArmedWarning,
            stacklevel=3,
        )


def _table(regions: Regions, model: ARMED, rows: Encoded) -> pd.DataFrame:
    index = pd.Index(rows.index, name="__obs__")
    if regions.members is not None:
        levels = list(model.spec.levels or (0, 1))
        return pd.DataFrame(regions.members, columns=levels, index=index)
    return pd.DataFrame({"lower": regions.lower, "upper": regions.upper}, index=index)
