"""What groups do: a row as if it came from each of them, latent values by group, where the network looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from pyro_armed.diagnostics import calinski_harabasz, davies_bouldin
from pyro_armed.errors import ArgumentError
from pyro_armed.plots._figures import COLOURS, pyplot_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["counterfactual_groups", "latents", "saliency"]

_MOST_ROWS, _MOST_GROUPS = 12, 30
_AVERAGE = "the average group"


def counterfactual_groups(
    model: Any,
    data: Any,
    group: str,
    *,
    labels: Sequence[Any] | None = None,
    others: Mapping[str, ArrayLike] | None = None,
    draws: int | None = 50,
    seed: int = 0,
    figure: Figure | None = None,
) -> Figure:
    """Draw the same rows as if they came from each group.

    For a model that reconstructs its input: each image as given, as the fixed-effects part reconstructs it,
    and as it would look from each group. For others: the prediction with its 90 % interval by group, and that
    of the average group.

    Parameters
    ----------
    model : ARMED
        Fitted.
    data : DataFrame or array-like
        At most 12 rows; for a model from arrays the inputs x.
    group : str
        The grouping factor.
    labels : sequence, optional
        Groups to show, of the training data; None: the first 8.
    others : mapping of str to array-like, optional
        The rows' labels of other grouping factors, for a model from arrays.
    draws : int, optional
        Draws of each chain to use.
    seed : int
        The same seed gives the same picture.
    figure : matplotlib.figure.Figure, optional
        An empty figure to draw into.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ArgumentError
        For a grouping factor or group that the model does not have, and for too many rows.

    Examples
    --------
    >>> import pyro_armed as pa
    >>> from pyro_armed import plots
    >>> frame = pa.simulate.mixed_model(4, 10, seed=0).frame
    >>> model = pa.ARMED("y ~ x1 + (1 | group)", frame)
    >>> _ = model.fit(restarts=1, draws=50, progressbar=False)
    >>> figure = plots.counterfactual_groups(model, frame.head(2), "group", figure=plots.new_figure())
    >>> len(figure.axes)
    2
    """
    shown = _shown(model, group, labels)
    if not 0 < len(data) <= _MOST_ROWS:
        raise ArgumentError(
            f"data has {len(data)} rows; give 1 to {_MOST_ROWS}, each gets a row of the picture."
        )
    figure = pyplot_figure() if figure is None else figure
    draws = None if draws is None else min(draws, model._fitted().n_draws)
    if model.spec.reconstruction is not None:
        return _images(figure, model, data, group, shown, others, draws, seed)
    return _predictions(figure, model, data, group, shown, others, draws, seed)


def _shown(model: Any, group: str, labels: Sequence[Any] | None) -> list[Any]:
    known = {one.name: one.labels for one in model.spec.groups}
    if group not in known:
        raise ArgumentError(f"group={group!r} is not a grouping factor of the model ({', '.join(known)}).")
    if labels is None:
        return list(known[group][:8])
    for label in labels:
        if label not in known[group]:
            raise ArgumentError(f"labels has {label!r}, which is not a group of {group!r} in training.")
    if not 0 < len(labels) <= _MOST_GROUPS:
        raise ArgumentError(f"labels has {len(labels)} groups; give 1 to {_MOST_GROUPS}.")
    return list(labels)


def _as_from(data: Any, group: str, label: Any, others: Mapping[str, ArrayLike] | None) -> tuple[Any, Any]:
    """The rows with another label: the data and ``groups=``."""
    column = np.empty(len(data), dtype=object)
    column[:] = [label] * len(data)
    if isinstance(data, pd.DataFrame) and group in data.columns:
        return data.assign(**{group: column}), None
    return data, {**(others or {}), group: column}


def _images(
    figure: Figure,
    model: Any,
    data: Any,
    group: str,
    shown: list[Any],
    others: Mapping[str, ArrayLike] | None,
    draws: int | None,
    seed: int,
) -> Figure:
    columns = {"as given": np.asarray(data, dtype=float)}
    for label in shown:
        x, groups = _as_from(data, group, label, others)
        rebuilt = model.reconstruct(x, groups=groups, draws=draws, seed=seed)
        columns.setdefault("fixed effects", rebuilt["fixed"].to_numpy())
        columns[str(label)] = rebuilt["mixed"].to_numpy()
    pictures = {title: _grey(values) for title, values in columns.items()}
    together = np.concatenate([values.ravel() for values in pictures.values()])
    low, high = np.quantile(together, [0.005, 0.995])
    figure.set_size_inches(1.15 * len(columns) + 0.4, 1.15 * len(data) + 0.6)
    figure.set_layout_engine("constrained")
    axes = figure.subplots(len(data), len(columns), squeeze=False)
    for (title, values), across in zip(pictures.items(), axes.T, strict=True):
        across[0].set_title(title, fontsize=9)
        for image, ax in zip(values, across, strict=True):
            ax.imshow(image, cmap="gray", vmin=low, vmax=high)
            ax.set_xticks([])
            ax.set_yticks([])
    figure.supxlabel(f"as if from each {group}", fontsize=9)
    return figure


def _grey(images: NDArray[Any]) -> NDArray[Any]:
    """Images (N, H, W), several channels averaged."""
    if images.ndim == 4:
        return np.asarray(images.mean(1))
    if images.ndim != 3:
        raise ArgumentError(f"The inputs have shape {images.shape}; pictures are drawn of images (N, H, W).")
    return images


def _predictions(
    figure: Figure,
    model: Any,
    data: Any,
    group: str,
    shown: list[Any],
    others: Mapping[str, ArrayLike] | None,
    draws: int | None,
    seed: int,
) -> Figure:
    def predicted(label: Any, mode: str) -> NDArray[Any]:
        x, groups = _as_from(data, group, label, others)
        how = {"draws": draws, "seed": seed, "new_groups": mode}
        made = model.predict(x, groups=groups, **how)["predictions"]
        (variable,) = (v for v in made.data_vars.values() if "__obs__" in v.dims)
        if variable.ndim != 3:
            raise ArgumentError(
                "counterfactual_groups draws one number for each row; this response has levels."
            )
        return np.asarray(variable.to_numpy()).reshape(-1, len(data))

    by_group = np.stack([predicted(label, "error") for label in shown])  # (groups, draws, rows)
    average = predicted(_AVERAGE, "population").mean(0)
    columns = min(4, len(data))
    rows = -(-len(data) // columns)
    figure.set_size_inches(2.3 * columns + 1.2, rows * (0.28 * len(shown) + 0.9) + 0.4)
    figure.set_layout_engine("constrained")
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    heights = np.arange(len(shown))[::-1]
    for row, ax in enumerate(axes[: len(data)]):
        low, high = np.quantile(by_group[:, :, row], [0.05, 0.95], axis=1)
        ax.hlines(heights, low, high, color=COLOURS[0], linewidth=1.5)
        ax.plot(by_group[:, :, row].mean(1), heights, "o", color=COLOURS[0], markersize=4)
        ax.axvline(average[row], color=COLOURS[1], linestyle="dashed", linewidth=1.2)
        ax.set_yticks(heights, [str(label) for label in shown], fontsize=8)
        ax.set_title(f"row {row}", fontsize=9)
        ax.tick_params(labelsize=8)
    for ax in axes[len(data) :]:
        ax.remove()
    figure.supxlabel(
        f"expected {model.spec.response} as if from each {group}; dashed: {_AVERAGE}", fontsize=9
    )
    return figure


def latents(spaces: Mapping[str, ArrayLike], groups: ArrayLike, *, figure: Figure | None = None) -> Figure:
    """Draw latent values by group, on their first two principal components, with scores of separation.

    Parameters
    ----------
    spaces : mapping of str to array-like, shape (N, F)
        Latent values by title, such as those of a model without adversary and of one with, from
        `pyro_armed.diagnostics.latents`.
    groups : array-like, shape (N,)
        Labels.
    figure : matplotlib.figure.Figure, optional
        An empty figure to draw into.

    Returns
    -------
    matplotlib.figure.Figure
        Titles give Davies and Bouldin's index (high where groups are mixed) and Calinski and Harabasz's (low
        where they are).

    Raises
    ------
    ArgumentError
        For shapes that do not fit and fewer than two groups.

    Examples
    --------
    >>> from pyro_armed import plots
    >>> points = np.random.default_rng(0).normal(size=(20, 3))
    >>> figure = plots.latents({"one": points}, ["a", "b"] * 10, figure=plots.new_figure())
    >>> figure.axes[0].get_title().splitlines()[0]
    'one'
    """
    import matplotlib as mpl

    if not isinstance(spaces, Mapping) or not spaces:
        raise ArgumentError("spaces must be a dictionary from titles to latent values.")
    labels = np.asarray(groups)
    figure = pyplot_figure() if figure is None else figure
    figure.set_size_inches(3.4 * len(spaces) + 1.0, 3.6)
    figure.set_layout_engine("constrained")
    axes = figure.subplots(1, len(spaces), squeeze=False)[0]
    found = sorted(pd.unique(labels), key=str)
    colours = mpl.colormaps["tab20"](np.arange(len(found)) % 20)
    for (title, points), ax in zip(spaces.items(), axes, strict=True):
        scores = davies_bouldin(points, labels), calinski_harabasz(points, labels)
        plane = _principal(np.asarray(points, dtype=float))
        for label, colour in zip(found, colours, strict=True):
            here = labels == label
            ax.scatter(*plane[here].T, s=6, color=colour, label=str(label), linewidths=0)
        words = f"Davies-Bouldin {scores[0]:.1f}, Calinski-Harabasz {scores[1]:.1f}"
        ax.set_title(f"{title}\n{words}", fontsize=9)
        ax.set_xticks([])
        ax.set_yticks([])
    if len(found) <= 20:
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside right upper", fontsize=8, markerscale=2, frameon=False)
    return figure


def _principal(points: NDArray[Any]) -> NDArray[Any]:
    """Coordinates on the first two principal components, (N, 2)."""
    centred = points - points.mean(0)
    if centred.shape[1] < 2:
        return np.column_stack([centred[:, 0], np.zeros(len(centred))])
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    return np.asarray(centred @ axes[:2].T)


def saliency(images: ArrayLike, maps: ArrayLike, *, figure: Figure | None = None) -> Figure:
    """Draw images with the regions that the network looks at.

    Parameters
    ----------
    images : array-like, shape (N, H, W) or (N, channels, H, W)
        At most 12.
    maps : array-like, shape (N, H, W)
        From `pyro_armed.diagnostics.saliency`.
    figure : matplotlib.figure.Figure, optional
        An empty figure to draw into.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ArgumentError
        For shapes that do not fit and too many images.

    Examples
    --------
    >>> from pyro_armed import plots
    >>> figure = plots.saliency(np.zeros((2, 4, 4)), np.ones((2, 4, 4)), figure=plots.new_figure())
    >>> len(figure.axes)
    4
    """
    pictures, heat = _grey(np.asarray(images, dtype=float)), np.asarray(maps, dtype=float)
    if heat.shape != pictures.shape:
        raise ArgumentError(f"maps has shape {heat.shape}, images {pictures.shape}; give one map each.")
    if not 0 < len(pictures) <= _MOST_ROWS:
        raise ArgumentError(f"images has {len(pictures)} rows; give 1 to {_MOST_ROWS}.")
    figure = pyplot_figure() if figure is None else figure
    figure.set_size_inches(1.3 * len(pictures) + 0.4, 3.0)
    figure.set_layout_engine("constrained")
    axes = figure.subplots(2, len(pictures), squeeze=False)
    high = float(heat.max()) or 1.0
    for position, (image, values) in enumerate(zip(pictures, heat, strict=True)):
        for ax in axes[:, position]:
            ax.imshow(image, cmap="gray")
            ax.set_xticks([])
            ax.set_yticks([])
        axes[1, position].imshow(values, cmap="inferno", alpha=0.55, vmin=0.0, vmax=high)
    return figure
