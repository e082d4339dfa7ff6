"""From scores of rows to a tidy table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pyro_armed import metrics
from pyro_armed.cross_validation._predict import cross_predict
from pyro_armed.errors import DataError
from pyro_armed.metrics import Estimate
from pyro_armed.scores import COVERAGES
from pyro_armed.seeds import stream

if TYPE_CHECKING:
    from pyro_armed.cross_validation._data import Source

__all__ = ["cross_validate", "score_rows"]

_COLUMNS = ["fold", "split", "group", "metric", "value", "se"]
_BINS = 10


def cross_validate(
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
    """Score a model on rows that it was not fitted to: of new groups, of groups that it knows, or of both.

    Parameters
    ----------
    model : ARMED or callable
        A model, fitted or not, whose specification is used again for each fold (standardisation, levels of
        predictors and the like are learned anew from the fold's training rows); or a function that takes
        rows as ``data`` has them (arrays as a dictionary) and returns an unfitted model.
    data : pandas.DataFrame or tuple or dict
        Rows with their response; for a model from arrays ``(x, y, groups)``, or a dictionary of these and of
        ``weights``, ``offset``, ``trials``.
    by : {"cluster", "row", "both"}
        What is left out: whole groups, as ``"new"`` rows; rows of all groups, as ``"seen"`` ones; or whole
        groups and some rows of the other groups in the same fold, which gives both from one set of fits.
    group : str, optional
        Grouping factor whose groups are meant, or any column of a data frame; None: the model's only one.
    folds : int
        Number of fits; 3 at least for ``"both"``.
    new_groups : str
        How new groups are predicted; see `ARMED.predict`.
    unseen_levels : {"error", "baseline"}
        What to do with levels of predictors that a fold's training rows do not have.
    seed : int
        The same seed gives the same folds and numbers.
    progressbar : bool
        Whether to show progress over the folds.
    **fit
        Arguments of `ARMED.fit`.

    Returns
    -------
    pandas.DataFrame
        Columns ``fold`` (from 1, or ``"all"``), ``split`` (``"new"`` or ``"seen"``), ``group`` (a label, or
        ``"all"``), ``metric``, ``value``, ``se``: each fold, each group over all folds, and everything
        together. See `score_rows` for the metrics; `plots.score_by_group` draws it. To keep the rows' own
        scores as well use `cross_predict`.

    Raises
    ------
    ArgumentError
        For arguments that cannot be used, numbers of folds that do not fit the groups, and a model from a
        file.
    DataError
        As for a model of these rows, naming the fold.

    Notes
    -----
    The effects of a new group are integrated out, so that its rows are scored without any of its responses
    known (Roberts et al., Ecography 40, 2017: random folds flatter models of grouped data). All rows are
    scored by models of fewer rows than the final one has, which makes the scores a little worse than its own.

    Examples
    --------
    >>> import pyro_armed as pa
    >>> frame = pa.simulate.mixed_model(6, 5, seed=0).frame
    >>> model = pa.ARMED("y ~ x1 + (1 | group)", frame)
    >>> scores = pa.cross_validate(model, frame, folds=2, restarts=1, draws=50, progressbar=False)
    >>> scores.query("fold == 'all' and group == 'all'")["metric"].tolist()[:4]
    ['nlpd', 'nlpd_joint', 'rmse', 'crps']
    """
    rows = cross_predict(
        model,
        data,
        by=by,
        group=group,
        folds=folds,
        new_groups=new_groups,
        unseen_levels=unseen_levels,
        seed=seed,
        progressbar=progressbar,
        **fit,
    )
    return score_rows(rows, seed=seed)


def score_rows(rows: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Summarise the scores of rows over folds, groups and everything.

    Parameters
    ----------
    rows : pandas.DataFrame
        From `cross_predict`.
    seed : int
        Seed of the bootstrap.

    Returns
    -------
    pandas.DataFrame
        As of `cross_validate`. Metrics, weighted means over rows where rows have weights:

        - ``nlpd``: minus the log predictive density of a row on its own.
        - ``nlpd_joint``: of new groups, minus the log density of all rows of a group together, per row; times
          the number of rows it is that of the group. Below ``nlpd`` where the model knows that rows of one
          group are alike.
        - numeric responses: ``rmse``, ``crps``, ``coverage_50``, ``coverage_80``, ``coverage_95``, and
          ``calibration_error``, the mean distance of the coverages from 50, 80 and 95 %.
        - binary responses: ``auroc``, ``brier`` and ``ece`` (of a group in bins of 10 rows or more).
        - categorical and ordinal responses: ``accuracy``, ``brier``.

        Standard errors take groups as clusters (see `pyro_armed.metrics.widest`); those of one group are over
        its rows. They are NaN where there is nothing to take them over, and of a single group's calibration
        errors. That folds share training rows is not in them.

    Raises
    ------
    DataError
        For a table that is not from `cross_predict`.
    """
    for name in ("fold", "split", "group", "y", "nlpd", "nlpd_joint", "squared_error"):
        if name not in rows:
            raise DataError(f"rows has no column {name!r}; pass the table that cross_predict returns.")
    lines: list[tuple[Any, ...]] = []

    def add(part: pd.DataFrame, fold: Any, split: str, group: Any) -> None:
        for metric, estimate in _metrics(part, group == "all", seed).items():
            lines.append((fold, split, group, metric, *estimate))

    for split, of_split in rows.groupby("split", sort=True):
        for fold, part in of_split.groupby("fold", sort=True):
            add(part, fold, str(split), "all")
        for label, part in of_split.groupby("group", sort=False):
            add(part, "all", str(split), label)
        add(of_split, "all", str(split), "all")
    return pd.DataFrame(lines, columns=_COLUMNS)


def _metrics(part: pd.DataFrame, together: bool, seed: int) -> dict[str, Estimate]:
    """Scores of some rows; ``together`` where they are of several groups."""
    weights = part["weight"].to_numpy() if "weight" in part else None
    codes = pd.factorize(part["group"])[0]
    clusters = [codes] if together and len(np.unique(codes)) > 1 else []

    def mean(column: str) -> Estimate:
        values = part[column].to_numpy()
        return metrics.widest(lambda c: metrics.mean_score(values, weights, c), clusters)

    found = {"nlpd": mean("nlpd")}
    if part["nlpd_joint"].notna().any():
        joint = metrics.mean_score(part["nlpd_joint"].fillna(0.0), weights, codes)
        found["nlpd_joint"] = joint
    if "crps" in part:
        errors = part["squared_error"].to_numpy()
        found["rmse"] = metrics.widest(lambda c: metrics.rmse(errors, weights, c), clusters)
        found["crps"] = mean("crps")
        found |= {f"coverage_{p * 100:.0f}": mean(f"covered_{p * 100:.0f}") for p in COVERAGES}
        found["calibration_error"] = _interval_error(part, weights, clusters, together, seed)
    elif "correct" in part:
        found |= {"accuracy": mean("correct"), "brier": mean("squared_error")}
    else:
        y, p = part["y"].to_numpy(), part["expected"].to_numpy()
        found["auroc"] = metrics.widest(lambda c: metrics.auroc(p, y, weights, c), clusters)
        found["brier"] = mean("squared_error")
        found["ece"] = _binary_error(p, y, weights, clusters, together, seed)
    return found


def _interval_error(
    part: pd.DataFrame, weights: Any, clusters: list[Any], together: bool, seed: int
) -> Estimate:
    covered = part[[f"covered_{p * 100:.0f}" for p in COVERAGES]].to_numpy()
    options: dict[str, Any] = {"replicates": 200 * together, "seed": stream(seed, "bootstrap")}
    return metrics.widest(
        lambda c: metrics.interval_calibration_error(covered, COVERAGES, weights, c, **options), clusters
    )


def _binary_error(p: Any, y: Any, weights: Any, clusters: list[Any], together: bool, seed: int) -> Estimate:
    options: dict[str, Any] = {
        "bins": min(_BINS, max(1, len(p) // _BINS)),
        "replicates": 200 * together,
        "seed": stream(seed, "bootstrap"),
    }
    return metrics.widest(lambda c: metrics.expected_calibration_error(p, y, weights, c, **options), clusters)
