"""How predictions of rows that were left out came true."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import stats

from pyro_armed import metrics
from pyro_armed.errors import ArgumentError, DataError
from pyro_armed.plots._figures import COLOURS, pyplot_figure
from pyro_armed.scores import COVERAGES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["reliability", "score_by_group"]

_SPLITS = {"seen": COLOURS[0], "new": COLOURS[1]}
_NAMES = {"seen": "groups seen in training", "new": "new groups"}
_MOST_LABELS = 40


def reliability(rows: pd.DataFrame, *, bins: int = 10, figure: Figure | None = None) -> Figure:
    """Draw what was predicted against what came true, for seen and for new groups.

    Parameters
    ----------
    rows : pandas.DataFrame
        From `cross_predict`, of a binary or numeric response.
    bins : int
        Most bins of a binary response's probabilities, of as equal numbers of rows as ties allow.
    figure : matplotlib.figure.Figure, optional
        Where to draw; None: a new figure of pyplot's.

    Returns
    -------
    matplotlib.figure.Figure
        Of a binary response the observed frequency in each bin, of a number the share of responses within
        the central 50, 80 and 95 % intervals; bars are two standard errors that allow for groups. A
        calibrated model follows the diagonal.

    Raises
    ------
    MissingDependencyError
        If Matplotlib is not installed.
    DataError
        For a table that is not from `cross_predict`, and responses with several levels.
    ArgumentError
        For fewer than one bin.

    Examples
    --------
    >>> import pyro_armed as pa
    >>> frame = pa.simulate.mixed_model(6, 5, seed=0).frame
    >>> model = pa.ARMED("y ~ x1 + (1 | group)", frame)
    >>> rows = pa.cross_predict(model, frame, folds=2, restarts=1, draws=50, progressbar=False)
    >>> [axes.get_xlabel() for axes in reliability(rows).axes]
    ['probability of the interval']
    """
    _check_columns(rows, ("split", "group", "y"))
    if "expected" not in rows:
        raise DataError("reliability draws binary and numeric responses; this one has several levels.")
    if not isinstance(bins, int) or isinstance(bins, bool) or bins < 1:
        raise ArgumentError(f"bins={bins!r} must be a whole number of at least 1.")
    figure = pyplot_figure() if figure is None else figure
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="dashed", linewidth=1, zorder=1)
    numeric = "covered_50" in rows
    for split, part in rows.groupby("split"):
        points = _coverages(part) if numeric else _frequencies(part, bins)
        _draw_points(axes, points, _SPLITS[str(split)], _NAMES[str(split)])
    axes.set_xlabel("probability of the interval" if numeric else "predicted probability")
    axes.set_ylabel("share of responses within" if numeric else "observed frequency")
    axes.set_aspect("equal")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.legend(loc="upper left", frameon=False)
    return figure


def score_by_group(
    scores: pd.DataFrame,
    metric: str | None = None,
    *,
    split: str | None = None,
    figure: Figure | None = None,
) -> Figure:
    """Draw a score of each group, sorted, beside that of all groups together.

    Parameters
    ----------
    scores : pandas.DataFrame
        From `cross_validate`.
    metric : str, optional
        One of its metrics; None: ``coverage_80`` of numeric responses, else ``nlpd``.
    split : {"new", "seen"}, optional
        None: ``"new"`` where there are new groups.
    figure : matplotlib.figure.Figure, optional
        Where to draw; None: a new figure of pyplot's.

    Returns
    -------
    matplotlib.figure.Figure
        Bars are two standard errors, those of groups over their rows; the band is that of all groups. A
        dashed line is what a coverage should be. More than 40 groups are drawn without their names.

    Raises
    ------
    MissingDependencyError
        If Matplotlib is not installed.
    DataError
        For a table that is not from `cross_validate`.
    ArgumentError
        For a metric or split that it does not have.

    Examples
    --------
    >>> import pyro_armed as pa
    >>> frame = pa.simulate.mixed_model(6, 5, seed=0).frame
    >>> model = pa.ARMED("y ~ x1 + (1 | group)", frame)
    >>> scores = pa.cross_validate(model, frame, folds=2, restarts=1, draws=50, progressbar=False)
    >>> score_by_group(scores, "nlpd").axes[0].get_xlabel()
    'nlpd'
    """
    _check_columns(scores, ("fold", "split", "group", "metric", "value", "se"))
    table, overall, metric, split = _chosen(scores, metric, split)
    figure = pyplot_figure() if figure is None else figure
    figure.set_layout_engine("constrained")
    labelled = len(table) <= _MOST_LABELS
    figure.set_size_inches(6.0, max(2.5, 0.8 + 0.22 * len(table)) if labelled else 5.0)
    axes = figure.subplots()
    low, high = overall["value"] - 2 * overall["se"], overall["value"] + 2 * overall["se"]
    if np.isfinite(low):
        axes.axvspan(low, high, color=_SPLITS[split], alpha=0.15, linewidth=0)
    axes.axvline(overall["value"], color=_SPLITS[split], linewidth=1.4, label=f"all {_NAMES[split]}")
    if metric.startswith("coverage_"):
        nominal = float(metric.removeprefix("coverage_")) / 100
        axes.axvline(nominal, color="0.35", linestyle="dashed", linewidth=1, label="nominal")
    axes.errorbar(
        table["value"], np.arange(len(table)), xerr=2 * table["se"].fillna(0.0), fmt="o", markersize=4,
        color="0.2", ecolor="0.6", elinewidth=1,
    )  # fmt: skip
    if metric.startswith("coverage_") or metric in ("auroc", "brier", "ece", "accuracy"):
        axes.set_xlim(max(axes.get_xlim()[0], -0.02), min(axes.get_xlim()[1], 1.02))
    axes.set_yticks(np.arange(len(table)) if labelled else [], table["group"].astype(str) if labelled else [])
    axes.set_ylabel("" if labelled else f"{len(table)} groups")
    axes.set_xlabel(metric)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def _chosen(
    scores: pd.DataFrame, metric: str | None, split: str | None
) -> tuple[pd.DataFrame, pd.Series, str, str]:
    """A metric's values of each group in ascending order, and that of all."""
    pooled = scores[scores["fold"].astype(str) == "all"]
    splits = pooled["split"].unique().tolist()
    if split is None:
        split = "new" if "new" in splits else str(splits[0])
    if split not in splits:
        raise ArgumentError(
            f"split={split!r} is not in the scores; they have {', '.join(map(repr, splits))}."
        )
    pooled = pooled[pooled["split"] == split]
    names = pooled["metric"].unique().tolist()
    if metric is None:
        metric = "coverage_80" if "coverage_80" in names else "nlpd"
    if metric not in names:
        raise ArgumentError(f"metric={metric!r} is not in the scores; they have {', '.join(names)}.")
    found = pooled[pooled["metric"] == metric]
    together = found["group"].astype(str) == "all"
    return (
        found[~together].dropna(subset=["value"]).sort_values("value"),
        found[together].iloc[0],
        metric,
        split,
    )


def _coverages(part: pd.DataFrame) -> pd.DataFrame:
    """Nominal and observed coverage of central intervals."""
    return pd.DataFrame(
        [(p, *_mean(part, part[f"covered_{p * 100:.0f}"])) for p in COVERAGES], columns=["x", "y", "se"]
    )


def _frequencies(part: pd.DataFrame, bins: int) -> pd.DataFrame:
    """Mean probability and observed frequency in bins; equal probabilities stay together."""
    rank = (stats.rankdata(part["expected"]) - 0.5) / len(part)
    lines = []
    for _, rows in part.groupby(np.minimum((rank * bins).astype(int), bins - 1)):
        weights = rows.get("weight", None)
        lines.append((np.average(rows["expected"], weights=weights), *_mean(rows, rows["y"])))
    return pd.DataFrame(lines, columns=["x", "y", "se"])


def _mean(rows: pd.DataFrame, values: pd.Series) -> metrics.Estimate:
    weights = rows.get("weight", None)
    codes = pd.factorize(rows["group"])[0]
    return metrics.widest(lambda clusters: metrics.mean_score(values, weights, clusters), [codes])


def _draw_points(axes: Axes, points: pd.DataFrame, colour: str, label: str) -> None:
    axes.errorbar(
        points["x"], points["y"], yerr=2 * points["se"].fillna(0.0), color=colour, marker="o", markersize=4.5,
        elinewidth=1, capsize=2, linewidth=1.4, label=label,
    )  # fmt: skip


def _check_columns(table: pd.DataFrame, names: tuple[str, ...]) -> None:
    for name in names:
        if name not in table:
            source = "cross_validate" if "metric" in names else "cross_predict"
            raise DataError(f"The table has no column {name!r}; pass what {source} returns.")
