"""Where a model of two classes changes its mind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyro_armed.errors import ArgumentError, DataError
from pyro_armed.plots._figures import COLOURS, pyplot_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["decision_boundaries"]

_TRUTH = "#009E73"
_MARGIN = 0.05


def decision_boundaries(
    model: Any,
    frame: pd.DataFrame,
    x: str,
    y: str,
    group: str,
    *,
    truth: Callable[[pd.DataFrame], NDArray[np.floating]] | None = None,
    groups: Sequence[Any] | None = None,
    at: Mapping[str, Any] | None = None,
    resolution: int = 60,
    points: int = 300,
    columns: int = 5,
    draws: int | None = 50,
    new_groups: str = "error",
    seed: int = 0,
    figure: Figure | None = None,
) -> Figure:
    """Draw where a model of two classes changes its mind, one panel for each group.

    The colour is the posterior mean probability of the second class, the line is where it is one half, and
    the dots are the rows of the group.

    Parameters
    ----------
    model : ARMED
        A fitted model of a binary response.
    frame : pandas.DataFrame
        Rows to show, with their response.
    x, y : str
        Numeric predictors on the horizontal and vertical axis.
    group : str
        Grouping factor that makes the panels.
    truth : callable, optional
        Takes rows, gives the true probability of the second class, such as
        ``simulate.Spirals.bayes_probability``: its boundary is drawn dashed.
    groups : sequence, optional
        Labels of the groups to show, in order; None: all in ``frame``.
    at : mapping, optional
        Values of the other columns; None: the group's mean, or its most frequent value.
    resolution : int
        Points of the grid along each axis.
    points : int
        Most rows to show per group.
    columns : int
        Panels side by side.
    draws : int, optional
        Posterior draws of each chain to average over; None: all.
    new_groups : str
        For groups that training did not have; see `ARMED.predict`.
    seed : int
        Chooses the rows to show, and seeds the prediction.
    figure : matplotlib.figure.Figure, optional
        Where to draw; None: a new figure of pyplot's.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    MissingDependencyError
        If Matplotlib is not installed.
    DataError
        If a column or group is missing from ``frame``, or an axis is not numeric.
    ArgumentError
        If the response is not binary, or a count is below one.

    Examples
    --------
    >>> import pyro_armed as pa
    >>> data = pa.simulate.spirals(5, 50, seed=0)
    >>> model = pa.ARMED("y ~ x1 + x2 + (1 | group)", data.frame, family="bernoulli")
    >>> _ = model.fit(restarts=1, draws=50, progressbar=False)
    >>> figure = decision_boundaries(model, data.frame, "x1", "x2", "group", resolution=5)
    >>> [axes.get_title() for axes in figure.axes[:2]]
    ['g00', 'g01']
    """
    figure = pyplot_figure() if figure is None else figure
    _check(model, frame, x, y, group)
    for name, value in (("resolution", resolution), ("points", points), ("columns", columns)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1 + (name == "resolution"):
            raise ArgumentError(
                f"{name}={value!r} must be a whole number of at least {1 + (name == 'resolution')}."
            )
    labels = _labels(frame, group, groups)
    ticks = [_ticks(frame.loc[frame[group].isin(labels), name], resolution) for name in (x, y)]
    grid = pd.concat(
        [_grid(frame[frame[group] == label], x, y, ticks, at) for label in labels], ignore_index=True
    )
    shape = (len(labels), resolution, resolution)
    predicted = model.predict(grid, new_groups=new_groups, draws=draws, seed=seed)
    probability = _mean_prediction(predicted).reshape(shape)
    true = None if truth is None else np.asarray(truth(grid), dtype=float).reshape(shape)
    classes = _classes(model, frame)
    _set_size(figure, len(labels), min(columns, len(labels)), ticks)
    panels = _panels(figure, len(labels), min(columns, len(labels)))
    rng = np.random.default_rng(seed)
    for i, (axes, label) in enumerate(zip(panels, labels, strict=True)):
        rows = frame[frame[group] == label]
        shown = rows.iloc[np.sort(rng.permutation(len(rows))[:points])]
        image = _draw_panel(axes, ticks, probability[i], None if true is None else true[i])
        for code, colour in enumerate(COLOURS):
            of_class = shown[shown[model.spec.response] == classes[code]]
            axes.scatter(
                of_class[x], of_class[y], s=7, c=colour, edgecolors="white", linewidths=0.3, zorder=3
            )
        axes.set_title(str(label), fontsize="medium")
    figure.supxlabel(x)
    figure.supylabel(y)
    bar = figure.colorbar(image, ax=panels, shrink=0.6, aspect=30, pad=0.01, ticks=[0, 0.5, 1])
    bar.set_label(f"P({model.spec.response} = {classes[1]})")
    _legend(figure, model.spec.response, classes, truth is not None)
    return figure


def _check(model: Any, frame: pd.DataFrame, x: str, y: str, group: str) -> None:
    if model.spec.family.response != "binary":
        raise ArgumentError(
            "decision_boundaries shows models of a binary response; "
            f"this one's family is {model.spec.family.name!r}."
        )
    for name in (x, y, group, model.spec.response):
        if name not in frame.columns:
            raise DataError(
                f"frame has no column {name!r}; its columns are {', '.join(map(str, frame.columns))}."
            )
    for name in (x, y):
        if not pd.api.types.is_numeric_dtype(frame[name]):
            raise DataError(f"Column {name!r} is not numeric; choose a numeric predictor for each axis.")


def _labels(frame: pd.DataFrame, group: str, groups: Sequence[Any] | None) -> list[Any]:
    found = list(pd.unique(frame[group].dropna()))
    if groups is None:
        try:
            return sorted(found)
        except TypeError:
            return found
    if missing := [label for label in groups if label not in found]:
        raise DataError(f"frame has no rows of group {missing[0]!r} in column {group!r}.")
    if not len(groups):
        raise ArgumentError("groups is empty; name at least one group, or leave it out for all.")
    return list(groups)


def _ticks(column: pd.Series, resolution: int) -> NDArray[np.floating]:
    low, high = float(column.min()), float(column.max())
    margin = _MARGIN * (high - low) or 0.5
    return np.linspace(low - margin, high + margin, resolution)


def _grid(
    rows: pd.DataFrame, x: str, y: str, ticks: list[NDArray[np.floating]], at: Mapping[str, Any] | None
) -> pd.DataFrame:
    """All points of the grid as rows of one group, the other columns held still."""
    across, up = np.meshgrid(*ticks)
    grid = pd.DataFrame({x: across.ravel(), y: up.ravel()})
    for name in rows.columns.difference([x, y], sort=False):
        column = rows[name]
        if at is not None and name in at:
            value = at[name]
        elif pd.api.types.is_float_dtype(column):
            value = column.mean()
        else:
            value = column.mode().iloc[0] if column.notna().any() else None
        grid[name] = pd.Series(
            [value] * len(grid), dtype=column.dtype if at is None or name not in at else None
        )
    return grid


def _mean_prediction(predicted: Any) -> NDArray[np.floating]:
    """Posterior mean of each row, shape (N,)."""
    variables = predicted["predictions"].data_vars
    (variable,) = (v for v in variables.values() if "__obs__" in v.dims)
    return np.asarray(variable.mean(["chain", "draw"]))


def _classes(model: Any, frame: pd.DataFrame) -> list[Any]:
    """The response's two labels, the modelled one last."""
    if model.spec.levels:
        return list(model.spec.levels)
    values = frame[model.spec.response]
    return [False, True] if pd.api.types.is_bool_dtype(values) else [0, 1]


def _set_size(figure: Figure, n: int, columns: int, ticks: list[NDArray[np.floating]]) -> None:
    """A size that fits the panels; the caller's own figure keeps a size that was set."""
    import matplotlib as mpl

    if tuple(figure.get_size_inches()) == tuple(mpl.rcParams["figure.figsize"]):
        shape = np.ptp(ticks[1]) / np.ptp(ticks[0]) if _same_units(ticks) else 1.0
        rows, width = -(-n // columns), 2.0 if columns > 2 else 2.6
        height = (width * shape + 0.3) * rows + 1.0  # titles; the legend and the label below
        figure.set_size_inches(max(4.5, (width + 0.12) * columns + 1.4), height)


def _same_units(ticks: list[NDArray[np.floating]]) -> bool:
    spans = [float(np.ptp(values)) for values in ticks]
    return max(spans) < 3 * min(spans)


def _panels(figure: Figure, n: int, columns: int) -> list[Axes]:
    figure.set_layout_engine("constrained", hspace=0.02, wspace=0.02)
    table = figure.subplots(-(-n // columns), columns, sharex=True, sharey=True, squeeze=False)
    panels = list(table.ravel())
    for axes in panels[n:]:
        axes.remove()
        panels[len(panels) - 1 - panels[::-1].index(axes) - columns].tick_params(labelbottom=True)
    return panels[:n]


def _draw_panel(
    axes: Axes,
    ticks: list[NDArray[np.floating]],
    probability: NDArray[np.floating],
    truth: NDArray[np.floating] | None,
) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("classes", [COLOURS[0], "white", COLOURS[1]])
    extent = (ticks[0][0], ticks[0][-1], ticks[1][0], ticks[1][-1])
    image = axes.imshow(
        probability, extent=extent, origin="lower", cmap=colours, vmin=0, vmax=1, alpha=0.45,
        interpolation="bilinear", aspect="equal" if _same_units(ticks) else "auto",
    )  # fmt: skip
    for values, colour, style, width in (
        (probability, "black", "solid", 1.6),
        (truth, _TRUTH, "dashed", 1.4),
    ):
        if values is not None and values.min() < 0.5 < values.max():
            axes.contour(*ticks, values, [0.5], colors=colour, linestyles=style, linewidths=width, zorder=4)
    return image


def _legend(figure: Figure, response: str, classes: list[Any], with_truth: bool) -> None:
    from matplotlib.lines import Line2D

    dot: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 5, "markeredgecolor": "white"}
    handles = [
        Line2D([], [], color=colour, label=f"{response} = {name}", **dot)
        for colour, name in zip(COLOURS, classes, strict=True)
    ]
    handles.append(Line2D([], [], color="black", linewidth=1.6, label="model's boundary"))
    if with_truth:
        handles.append(
            Line2D([], [], color=_TRUTH, linestyle="dashed", linewidth=1.4, label="best possible boundary")
        )
    per_row = len(handles) if figure.get_figwidth() > 1.8 * len(handles) else 2
    figure.legend(handles=handles, loc="outside upper center", ncols=per_row, frameon=False)
