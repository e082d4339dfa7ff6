"""A picture of each benchmark's table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pyro_armed.benchmark._measure import limits
from pyro_armed.plots import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw"]

# Okabe and Ito's palette, and marks that tell the same apart without colour.
_COLOURS, _MARKS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7"), "osD^"
_TICKS = (1, 2, 5)


def draw(frame: pd.DataFrame) -> Figure:
    """Draw a benchmark: ratios against the size where there is one, else one line for each case.

    Parameters
    ----------
    frame : pandas.DataFrame
        Rows of one benchmark, from `run`.

    Returns
    -------
    matplotlib.figure.Figure
        One panel for each quantity.

    Raises
    ------
    MissingDependencyError
        If Matplotlib is not installed.
    """
    figure = new_figure()
    quantities = list(dict.fromkeys(frame["quantity"]))
    heights = [max(2.6, 0.9 + 0.3 * (frame["quantity"] == name).sum()) for name in quantities]
    figure.set_size_inches(7.5, sum(heights) + 0.3)
    figure.set_layout_engine("constrained")
    panels = figure.subplots(len(quantities), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, quantity in zip(panels, quantities, strict=True):
        part = frame[frame["quantity"] == quantity]
        (_draw_sizes if part["size"].notna().any() else _draw_cases)(axes, part)
        axes.set_title(quantity, loc="left", fontsize="medium")
    figure.suptitle(str(frame["benchmark"].iloc[0]))
    return figure


def _draw_sizes(axes: Axes, part: pd.DataFrame) -> None:
    for number, (case, rows) in enumerate(part.groupby("case", sort=False)):
        rows = rows.sort_values("size")
        colour = _COLOURS[number % len(_COLOURS)]
        style: dict[str, Any] = {"color": colour, "marker": _MARKS[number % len(_MARKS)]}
        axes.plot(rows["size"], rows["ratio"], label=str(case), **style)
        axes.fill_between(rows["size"], rows["low"], rows["high"], color=colour, alpha=0.2, linewidth=0)
    aims = part[part["target"] != ""]
    for size, target in dict(zip(aims["size"], aims["target"], strict=True)).items():
        limit = max(x for x in limits(target) if np.isfinite(x))
        axes.plot(
            size, limit, marker="_", markersize=18, color="black", linestyle="", label=f"target {target}"
        )
    axes.set_xscale("log")
    _show_sizes(axes, sorted(part["size"].unique()))
    axes.set_ylim(0, 1.15 * np.nanmax([1.0, *part[["ratio", "high"]].max(), *axes.get_ylim()[1:]]))
    axes.axhline(1.0, color="0.6", linewidth=0.8, zorder=0)
    axes.set_xlabel("size")
    axes.set_ylabel(f"ratio to {part['to'].iloc[0]}")
    axes.legend(fontsize="small", loc="upper left")


def _show_sizes(axes: Axes, sizes: list[float]) -> None:
    axes.set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
    axes.set_xticks([], minor=True)


def _draw_cases(axes: Axes, part: pd.DataFrame) -> None:
    several = part["to"].nunique() > 1
    names = [f"{one.case}\nto {one.to}" if several else str(one.case) for one in part.itertuples()]
    places = np.arange(len(part))[::-1]
    for place, one in zip(places, part.to_dict("records"), strict=True):
        if np.isnan(one["ratio"]):
            axes.annotate(
                str(one["note"]),
                (0.02, place),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize="small",
            )
            continue
        if one["target"]:
            _draw_target(axes, place, one["target"])
        if not np.isnan(one["low"]):
            axes.plot([one["low"], one["high"]], [place, place], color=_COLOURS[0], linewidth=3, alpha=0.4)
        axes.plot(one["ratio"], place, "o", color=_COLOURS[1] if one["met"] == "no" else _COLOURS[0])
        axes.annotate(
            f"{one['ratio']:.3g}", (one["ratio"], place), (6, 4), textcoords="offset points", fontsize="small"
        )
    axes.set_yticks(places, names, fontsize="small")
    axes.set_ylim(-0.7, len(part) - 0.3)
    axes.set_xscale("log")
    axes.axvline(1.0, color="0.6", linewidth=0.8, zorder=0)
    axes.margins(x=0.12)
    low, high = axes.get_xlim()
    ticks = [n * 10.0**power for power in range(-3, 4) for n in _TICKS if low <= n * 10.0**power <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("ratio" if several else f"ratio to {part['to'].iloc[0]}")


def _draw_target(axes: Axes, place: float, target: str) -> None:
    for limit in limits(target):
        if limit > 0 and np.isfinite(limit):
            axes.plot([limit, limit], [place - 0.35, place + 0.35], color="black", linewidth=1.2)
