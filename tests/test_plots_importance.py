"""The picture of importances."""

import numpy as np
import pytest
import xarray as xr

from pyro_armed.diagnostics import Importance
from pyro_armed.errors import ArgumentError
from pyro_armed.plots import importance, new_figure


def found(columns=("a", "b", "c"), group="site"):
    draws = np.array([1.0, 3.0, 2.0][: len(columns)]) + np.linspace(-0.1, 0.1, 11)[:, None]
    values = {"importance": (("chain", "draw", "column"), draws[None])}
    if group:
        values[f"group_sd|{group}"] = (("chain", "draw", "column"), 0.5 * draws[None])
    return Importance(xr.Dataset(values, coords={"column": list(columns)}))


def test_bars_are_the_means_in_order():
    figure = importance(found(), figure=new_figure())
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b", "c", "a"]
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == pytest.approx([3.0, 2.0, 1.0, 1.5, 1.0, 0.5])
    tops = axes.get_yticks()
    assert axes.yaxis_inverted()
    assert list(tops) == sorted(tops)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts[1] == "sd between groups of site"


def test_most_and_no_groups():
    (axes,) = importance(found(group=None), most=2, figure=new_figure()).axes
    assert len(axes.patches) == 2


def test_images_are_maps():
    values = np.zeros((1, 2, 3, 4, 5))
    values[0, :, 1, 2, 3] = 6.0
    dims = ("chain", "draw", "x1", "x2", "x3")
    figure = importance(Importance(xr.Dataset({"importance": (dims, values)})), figure=new_figure())
    shown = figure.axes[0].images[0].get_array()
    assert shown.shape == (4, 5)
    assert shown[2, 3] == 2.0
    assert shown.sum() == 2.0


def test_unusable_arguments_are_named():
    with pytest.raises(ArgumentError, match="most=0"):
        importance(found(), most=0)
    cube = xr.Dataset({"importance": (("chain", "draw", "a", "b", "c", "d"), np.zeros((1, 1, 2, 2, 2, 2)))})
    with pytest.raises(ArgumentError, match="4 dimensions"):
        importance(Importance(cube))
