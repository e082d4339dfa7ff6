"""Importance of inputs: bars for columns, a map for images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_armed.errors import ArgumentError
from pyro_armed.plots._figures import COLOURS, pyplot_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["importance"]


def importance(found: Any, *, most: int = 20, figure: Figure | None = None) -> Figure:
    """Draw expected absolute gradients with their 90 % intervals, and the sds between groups beside them.

    Parameters
    ----------
    found : Importance
        From `diagnostics.importance`.
    most : int
        Most columns to show, the most important first.
    figure : matplotlib.figure.Figure, optional
        Where to draw; None: a new figure of pyplot's.

    Returns
    -------
    matplotlib.figure.Figure
        For images the posterior mean of each pixel, channels averaged, as a map.

    Raises
    ------
    MissingDependencyError
        If Matplotlib is not installed.
    ArgumentError
        For ``most`` below one, and for inputs that are neither columns nor images.

    Examples
    --------
    >>> import pyro_armed as pa
    >>> data = pa.simulate.mixed_model(8, 20, seed=0)
    >>> model = pa.ARMED("y ~ x1 + (1 + x1 | group)", data.frame)
    >>> _ = model.fit(restarts=1, draws=50, progressbar=False)
    >>> figure = importance(pa.diagnostics.importance(model))
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['x1']
    """
    if not isinstance(most, int) or isinstance(most, bool) or most < 1:
        raise ArgumentError(f"most={most!r} must be a whole number of at least 1.")
    values = found.dataset["importance"]
    if "column" not in values.dims and values.ndim not in (4, 5):
        raise ArgumentError(f"inputs of {values.ndim - 2} dimensions are neither columns nor images.")
    figure = pyplot_figure() if figure is None else figure
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    if "column" in values.dims:
        _bars(axes, found.table.head(most))
        return figure
    pixels = values.mean(["chain", "draw"]).to_numpy()
    image = axes.imshow(pixels if pixels.ndim == 2 else pixels.mean(0), cmap="magma", vmin=0.0)
    axes.set_axis_off()
    figure.colorbar(image, ax=axes, label="mean absolute gradient")
    return figure


def _bars(axes: Axes, table: Any) -> None:
    groups = [name for name in table.columns if name.startswith("group_sd|")]
    place, height = np.arange(len(table)), 0.8 / (1 + len(groups))
    spread = np.stack([table["mean"] - table["q5"], table["q95"] - table["mean"]]).clip(min=0)
    axes.barh(
        place, table["mean"], height, xerr=spread, color=COLOURS[0], ecolor="0.3",
        label="all groups (mean absolute gradient)",
    )  # fmt: skip
    for i, name in enumerate(groups, start=1):
        label = f"sd between groups of {name.removeprefix('group_sd|')}"
        axes.barh(place + i * height, table[name], height, color=COLOURS[1], alpha=1 / i, label=label)
    axes.set_yticks(place + height * len(groups) / 2, table.index)
    axes.invert_yaxis()
    axes.set_xlabel("change of the prediction per sd of the column")
    axes.figure.legend(loc="outside upper center", ncols=1 + len(groups), frameon=False)
