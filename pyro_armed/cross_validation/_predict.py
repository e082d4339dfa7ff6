"""Each row predicted by a model that was not fitted to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from pyro_armed.armed import ARMED
from pyro_armed.cross_validation._data import (
    check_data,
    encode,
    fit_arguments,
    made,
    naming_the_fold,
    take,
)
from pyro_armed.cross_validation._folds import Grouped, grouped_rows, held_out
from pyro_armed.design import Encoded
from pyro_armed.diagnostics._groups import joint_log_density
from pyro_armed.evaluation import pointwise
from pyro_armed.seeds import stream

if TYPE_CHECKING:
    from pyro_armed.cross_validation._data import Source

__all__ = ["Fold", "cross_predict", "fitted_folds"]

_SEEDS = 2**31  # below the largest seed of fit()


@dataclass(frozen=True)
class Fold:
    """A model fitted without some rows.

    Attributes
    ----------
    number : int
        Counted from 1.
    model : ARMED
        Fitted.
    rows : numpy.ndarray of int, shape (M,)
        Rows left out, as positions among those of `Grouped`.
    new : numpy.ndarray of bool, shape (M,)
        Whether their groups were left out with all rows.
    """

    number: int
    model: ARMED
    rows: np.ndarray
    new: np.ndarray


def cross_predict(
    model: Source,
    data: Any,
    *,
    by: str = "cluster",
    group: str | None = None,
    folds: int = 5,
    new_groups: str = "marginal",
    unseen_levels: str = "error",
    seed: int = 0,
    progressbar: bool = True,
    **fit: Any,
) -> pd.DataFrame:
    """Predict each row with a model that was not fitted to it, and score the prediction.

    Parameters
    ----------
    model, data, by, group, folds, new_groups, unseen_levels, seed, progressbar, **fit
        As for `cross_validate`.

    Returns
    -------
    pandas.DataFrame
        A line for each row, with ``by="both"`` one for each way to leave it out: ``row``, its position in the
        data; ``fold``, from 1; ``split``, ``"new"`` where all rows of its group were left out, else
        ``"seen"``; ``group``, its label; ``y``, the response as a number (codes of levels); the columns of
        `pyro_armed.evaluation.pointwise`; and ``nlpd_joint``, minus the log density of its group's rows
        together, divided by their number (or weight): the same for all of them, NaN where not defined.
        Summarise it with `pyro_armed.cross_validation.score_rows`.

    Raises
    ------
    ArgumentError, DataError
        As for `cross_validate`.

    Examples
    --------
    >>> import pyro_armed as pa
    >>> frame = pa.simulate.mixed_model(6, 5, seed=0).frame
    >>> model = pa.ARMED("y ~ x1 + (1 | group)", frame)
    >>> rows = pa.cross_predict(model, frame, folds=2, restarts=1, draws=50, progressbar=False)
    >>> len(rows), rows["split"].unique().tolist()
    (30, ['new'])
    """
    data = check_data(data)
    grouped = grouped_rows(made(model, data), data, group)
    parts = []
    for fold in fitted_folds(model, data, grouped, by, folds, seed, progressbar, fit):
        with naming_the_fold(fold.number):
            encoded = encode(fold.model, take(data, grouped.rows[fold.rows]), unseen_levels)
            parts.append(_scored(fold, encoded, grouped, new_groups, stream(seed, "scores", fold.number)))
    table = pd.concat(parts, ignore_index=True)
    return table.sort_values(["split", "row"], ignore_index=True, kind="stable")


def fitted_folds(
    model: Source,
    data: Any,
    grouped: Grouped,
    by: str,
    folds: int,
    seed: int,
    progressbar: bool,
    fit: dict[str, Any],
) -> Iterator[Fold]:
    """Fit a model for each fold.

    Parameters
    ----------
    model : ARMED or callable
        The specification.
    data : pandas.DataFrame or dict
        From `check_data`.
    grouped : Grouped
        Its rows.
    by, folds, seed, progressbar, fit
        As for `cross_validate`.

    Yields
    ------
    Fold
    """
    settings = fit_arguments(fit)
    left_out = held_out(grouped.codes, by, folds, seed)
    for k, rows in enumerate(tqdm(left_out, desc="Folds", disable=not progressbar), start=1):
        trained = np.setdiff1d(np.arange(len(grouped.codes)), rows)
        with naming_the_fold(k):
            one = made(model, take(data, grouped.rows[trained]))
            one.fit(**settings, seed=stream(seed, "fold", k) % _SEEDS, progressbar=False)
        yield Fold(k, one, rows, ~np.isin(grouped.codes[rows], grouped.codes[trained]))


def _scored(fold: Fold, encoded: Encoded, grouped: Grouped, new_groups: str, seed: int) -> pd.DataFrame:
    """Scores of one fold's rows."""
    posterior, batch = fold.model._fitted(), encoded.batch
    codes = grouped.codes[fold.rows]
    scores = pointwise(posterior, encoded, fold.model._mode(new_groups, None), seed=seed)
    table = pd.DataFrame(
        {
            "row": grouped.rows[fold.rows],
            "fold": fold.number,
            "split": np.where(fold.new, "new", "seen"),
            "group": pd.Series([grouped.labels[code] for code in codes], dtype=object),
            "y": batch.response.double().cpu().numpy(),  # type: ignore[union-attr]
        }
    )
    table = pd.concat([table, scores.reset_index(drop=True)], axis=1)
    table["nlpd_joint"] = np.nan
    if new_groups == "marginal" and fold.new.any():
        positions = np.flatnonzero(fold.new)
        some = Encoded(batch.select(torch.as_tensor(positions)), encoded.new_groups)
        _, own = np.unique(codes[positions], return_inverse=True)
        density = joint_log_density(posterior, some, grouped.group, own, seed=seed)
        size = np.bincount(own, table["weight"].to_numpy()[positions] if "weight" in table else None)
        with np.errstate(invalid="ignore", divide="ignore"):  # a group whose rows all have weight zero
            table.loc[positions, "nlpd_joint"] = (-density / size)[own]
    return table
