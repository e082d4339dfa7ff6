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
    parts = [part for _, part in frame.groupby("quantity", sort=False)]
    sized = [bool(part["size"].notna().any()) for part in parts]
    heights = [2.8 if by_size else 1.0 + 0.36 * len(part) for part, by_size in zip(parts, sized, strict=True)]
    figure.set_size_inches(7.5, sum(heights) + 0.6)
    figure.set_layout_engine("constrained")
    panels = figure.subplots(len(parts), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, part, by_size in zip(panels, parts, sized, strict=True):
        (_draw_sizes if by_size else _draw_cases)(axes, part)
        axes.set_title(str(part["quantity"].iloc[0]), loc="left", fontsize="medium")
    words = ["band: quartiles"] if frame["low"].notna().any() else []
    if (frame["target"] != "").any():
        words += ["black: target", *(["orange: missed"] if not all(sized) else [])]
    figure.suptitle("; ".join([str(frame["benchmark"].iloc[0]), *words]), fontsize="medium")
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
        axes.plot(size, limit, "_", markersize=18, markeredgewidth=2, color="black", label=f"target {target}")
    axes.set_xscale("log")
    sizes = sorted(part["size"].unique())
    axes.set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
    axes.set_xticks([], minor=True)
    axes.set_ylim(0, 1.25 * max(1.0, axes.get_ylim()[1]))
    axes.axhline(1.0, color="0.6", linewidth=0.8, zorder=0)
    axes.set_xlabel(str(part["to"].iloc[0]).split(" ", 1)[1].removesuffix("s") + "s")
    axes.set_ylabel(f"ratio to {part['to'].iloc[0]}")
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(fontsize="small", loc="upper left", ncols=3)


def _draw_cases(axes: Axes, part: pd.DataFrame) -> None:
    several = part["to"].nunique() > 1
    places = np.arange(len(part))[::-1]
    for place, one in zip(places, part.to_dict("records"), strict=True):
        if np.isnan(one["ratio"]):
            where: dict[str, Any] = {
                "xycoords": ("axes fraction", "data"),
                "va": "center",
                "fontsize": "small",
            }
            axes.annotate(str(one["note"]), (0.02, place), **where)
            continue
        if one["target"]:
            _draw_target(axes, place, one["target"])
        colour = _COLOURS[1 if one["met"] == "no" else 0]
        axes.plot([one["low"], one["high"]], [place, place], color=colour, linewidth=4, alpha=0.4)
        axes.plot(one["ratio"], place, "o", color=colour)
        label: dict[str, Any] = {"textcoords": "offset points", "fontsize": "small"}
        axes.annotate(f"{one['ratio']:.3g}", (one["ratio"], place), (6, 4), **label)
    names = [f"{one['case']}\n({one['to']})" if several else one["case"] for one in part.to_dict("records")]
    axes.set_yticks(places, names, fontsize="small")
    axes.set_ylim(-0.7, len(part) - 0.3)
    axes.axvline(1.0, color="0.6", linewidth=0.8, zorder=0)
    axes.margins(x=0.12)
    axes.set_xlabel("ratio to what is in brackets" if several else f"ratio to {part['to'].iloc[0]}")
    known = part["ratio"].dropna()
    if len(known) and max(known.max(), 1.0) > 3 * min(known.min(), 1.0):
        _log_scale(axes)


def _log_scale(axes: Axes) -> None:
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    ticks = [n * 10.0**power for power in range(-3, 4) for n in _TICKS if low <= n * 10.0**power <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)


def _draw_target(axes: Axes, place: float, target: str) -> None:
    for limit in limits(target):
        if limit > 0 and np.isfinite(limit):
            axes.plot([limit, limit], [place - 0.35, place + 0.35], color="black", linewidth=1.2)
