"""What an adversary's weight costs, and what it hides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyro_armed.plots._figures import COLOURS, pyplot_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["adversary_choice"]


def adversary_choice(choice: Any, *, target: float | None = None, figure: Figure | None = None) -> Figure:
    """Draw the trade-off between leakage and density on new groups, a point for each weight.

    Parameters
    ----------
    choice : AdversaryChoice
        From `choose_adversary`.
    target : float, optional
        Largest leakage, to be drawn as a line.
    figure : matplotlib.figure.Figure, optional
        Where to draw; None: a new figure of pyplot's.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    MissingDependencyError
        If Matplotlib is not installed.
    """
    figure = pyplot_figure() if figure is None else figure
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    table = choice.table
    axes.plot(table["leakage"], table["worse"], color="0.8", zorder=1)
    for chosen, colour in ((False, COLOURS[0]), (True, COLOURS[1])):
        part = table[table["chosen"] == chosen]
        axes.errorbar(
            part["leakage"], part["worse"], part["worse_se"], fmt="o", color=colour, capsize=3,
            label="chosen" if chosen else "others",
        )  # fmt: skip
    for row in table.itertuples():
        axes.annotate(
            "off" if row.weight == 0 else f"{row.weight:g}",
            (row.leakage, row.worse),
            xytext=(6, 6),
            textcoords="offset points",
        )
    if target is not None:
        axes.axvline(target, color="black", linestyle="dashed", linewidth=1, label="target")
    axes.set_xlabel("leakage (0: chance, 1: the probe is always right)")
    axes.set_ylabel("negative log density on new groups,\nmore than the best (± se)")
    axes.legend(frameon=False)
    return figure
