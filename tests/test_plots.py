"""Decision boundaries against a model whose boundaries are known."""

import itertools
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy.special import expit

from pyro_armed.cross_validation import score_rows
from pyro_armed.errors import ArgumentError, DataError, MissingDependencyError
from pyro_armed.plots import decision_boundaries, new_figure, reliability, score_by_group

SHIFT = {"a": -0.4, "b": 0.0, "c": 0.5}


class KnownModel:
    """P(y = 1) is above one half where x1 is beyond the group's shift; four posterior draws around that."""

    def __init__(self, response="binary", levels=()):
        family = SimpleNamespace(response=response, name=response)
        self.spec = SimpleNamespace(family=family, response="y", levels=levels)
        self.asked = []

    def predict(self, frame, **options):
        self.asked.append((frame, options))
        eta = 6 * (frame["x1"] - frame["group"].map(SHIFT)).to_numpy()
        draws = expit(eta + np.array([-1.0, -0.5, 0.5, 1.0])[:, None]).reshape(2, 2, -1)
        return {"predictions": xr.Dataset({"y": (("chain", "draw", "__obs__"), draws)})}


@pytest.fixture
def frame():
    rng = np.random.default_rng(0)
    n = 120
    group = rng.choice(list(SHIFT), n)
    return pd.DataFrame(
        {
            "x1": rng.uniform(-1, 1, n),
            "x2": rng.uniform(-1, 1, n),
            "other": rng.normal(3.0, 1.0, n),
            "kind": rng.choice(["p", "p", "q"], n),
            "group": group,
            "y": rng.integers(0, 2, n),
        }
    )


def lines(axes, colour):
    """Vertices of the contour lines of one colour."""
    from matplotlib.colors import same_color
    from matplotlib.contour import ContourSet

    sets = [
        c for c in axes.collections if isinstance(c, ContourSet) and same_color(c.get_edgecolor()[0], colour)
    ]
    return [path.vertices for c in sets for path in c.get_paths()]


def panels(figure):
    return [axes for axes in figure.axes if axes.get_title()]


def test_boundary_is_where_the_mean_probability_is_one_half(frame):
    figure = decision_boundaries(KnownModel(), frame, "x1", "x2", "group", resolution=41)
    assert [axes.get_title() for axes in panels(figure)] == list(SHIFT)
    for axes, shift in zip(panels(figure), SHIFT.values(), strict=True):
        (line,) = lines(axes, "black")
        np.testing.assert_allclose(line[:, 0], shift, atol=0.01)
        assert np.ptp(line[:, 1]) == pytest.approx(1.1 * np.ptp(frame["x2"]))
    assert figure.get_supxlabel() == "x1"
    assert figure.get_supylabel() == "x2"


def test_colour_is_the_probability_in_its_place(frame):
    figure = decision_boundaries(KnownModel(), frame, "x1", "x2", "group", resolution=30)
    axes = panels(figure)[2]
    (image,) = axes.images
    left, right, bottom, top = image.get_extent()
    assert image.origin == "lower"
    assert left < frame["x1"].min() < frame["x1"].max() < right
    assert bottom < frame["x2"].min() < frame["x2"].max() < top
    x = np.linspace(left, right, 30)
    expected = expit(6 * (x - SHIFT["c"]) + np.array([-1.0, -0.5, 0.5, 1.0])[:, None]).mean(0)
    np.testing.assert_allclose(image.get_array(), np.tile(expected, (30, 1)))
    assert image.get_clim() == (0, 1)


def test_truth_has_its_own_boundary(frame):
    def truth(rows):
        return expit(4 * (rows["x2"] - 0.2))

    figure = decision_boundaries(KnownModel(), frame, "x1", "x2", "group", truth=truth, resolution=21)
    for axes in panels(figure):
        (line,) = lines(axes, "#009E73")
        np.testing.assert_allclose(line[:, 1], 0.2, atol=0.01)
    assert "best possible boundary" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_panel_without_a_boundary_has_no_line(frame):
    frame = frame[frame["x1"] > 0]
    figure = decision_boundaries(KnownModel(), frame, "x1", "x2", "group", groups=["a"], resolution=11)
    assert lines(panels(figure)[0], "black") == []


@pytest.mark.parametrize(("labels", "levels"), [((0, 1), ()), ((False, True), ()), (("N", "Y"), ("N", "Y"))])
def test_dots_are_the_groups_rows_in_the_colour_of_their_class(frame, labels, levels):
    frame["y"] = np.array(labels)[frame["y"]]
    figure = decision_boundaries(KnownModel(levels=levels), frame, "x1", "x2", "group", points=1000)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names[:2] == [f"y = {labels[0]}", f"y = {labels[1]}"]
    for axes, group in zip(panels(figure), SHIFT, strict=True):
        dots = [c for c in axes.collections if type(c).__name__ == "PathCollection"]
        for end, (label, collection) in enumerate(zip(labels, dots, strict=True)):
            # The colour of the class is that of its side of the boundary.
            np.testing.assert_allclose(
                collection.get_facecolor()[0], axes.images[0].cmap(float(end)), atol=1e-9
            )
            rows = frame[(frame["group"] == group) & (frame["y"] == label)]
            assert {*map(tuple, collection.get_offsets())} == {*map(tuple, rows[["x1", "x2"]].to_numpy())}


def test_shows_at_most_as_many_rows_as_asked_for(frame):
    figure = decision_boundaries(KnownModel(), frame, "x1", "x2", "group", points=7)
    for axes in panels(figure):
        assert (
            sum(len(c.get_offsets()) for c in axes.collections if type(c).__name__ == "PathCollection") == 7
        )


def test_other_columns_are_held_still(frame):
    model = KnownModel()
    decision_boundaries(model, frame, "x1", "x2", "group", resolution=3, at={"kind": "q"})
    ((grid, options),) = model.asked
    assert options == {"new_groups": "error", "draws": 50, "seed": 0}
    assert grid["kind"].unique().tolist() == ["q"]
    means = frame.groupby("group")["other"].mean()
    for group, rows in grid.groupby("group"):
        np.testing.assert_allclose(rows["other"], means[group])
        assert len(rows) == 9
    decision_boundaries(model, frame, "x1", "x2", "group", resolution=3)
    assert model.asked[1][0]["kind"].unique().tolist() == ["p"]


def test_groups_are_shown_in_the_order_asked_for(frame):
    figure = decision_boundaries(KnownModel(), frame, "x1", "x2", "group", groups=["c", "a"], columns=1)
    assert [axes.get_title() for axes in panels(figure)] == ["c", "a"]


@pytest.mark.parametrize(
    ("n", "columns", "truth"), [(1, 5, True), (2, 2, False), (3, 2, True), (10, 5, True)]
)
def test_no_text_overlaps(n, columns, truth):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.uniform(-1, 1, (20 * n, 2)), columns=["x1", "x2"])
    frame["group"] = np.repeat([f"site {i}" for i in range(n)], 20)
    frame["y"] = rng.integers(0, 2, len(frame))
    model = KnownModel()
    model.predict = lambda rows, **_: {
        "predictions": xr.Dataset(
            {"y": (("chain", "draw", "__obs__"), expit(rows[["x1"]].to_numpy().T[None]))}
        )
    }
    figure = decision_boundaries(
        model, frame, "x1", "x2", "group", columns=columns, figure=new_figure(), resolution=5,
        truth=(lambda rows: expit(rows["x2"])) if truth else None,
    )  # fmt: skip
    figure.draw_without_rendering()
    texts = [figure._supxlabel, figure._supylabel, *figure.legends[0].get_texts()]
    for axes in figure.axes:
        texts += [axes.title, axes.xaxis.label, axes.yaxis.label]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = axis.get_view_interval()
            shown = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            texts += [label for tick in shown for label in (tick.label1, tick.label2)]
    boxes = {t: t.get_window_extent() for t in texts if t.get_text() and t.get_visible()}
    width, height = figure.bbox.size
    assert len(boxes) > 8
    for text, box in boxes.items():
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= width, text
        assert box.y1 <= height, text
    clashes = [(a, b) for (a, p), (b, q) in itertools.combinations(boxes.items(), 2) if p.overlaps(q)]
    assert clashes == []


def test_leaves_no_figure_and_no_random_state_behind(frame, unmoved_rng):
    import matplotlib.pyplot as plt

    with unmoved_rng():
        figure = new_figure()
        assert decision_boundaries(KnownModel(), frame, "x1", "x2", "group", figure=figure) is figure
    assert plt.get_fignums() == []
    decision_boundaries(KnownModel(), frame, "x1", "x2", "group", resolution=3)
    assert len(plt.get_fignums()) == 1


def test_same_seed_same_rows(frame):
    def offsets(seed):
        figure = decision_boundaries(
            KnownModel(), frame, "x1", "x2", "group", points=5, seed=seed, figure=new_figure()
        )
        return np.concatenate([c.get_offsets() for c in panels(figure)[0].collections[:2]]).tolist()

    assert offsets(1) == offsets(1) != offsets(2)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"x": "x3"}, DataError, "'x3'"),
        ({"x": "kind"}, DataError, "'kind' is not numeric"),
        ({"group": "site"}, DataError, "'site'"),
        ({"groups": ["a", "z"]}, DataError, "'z'"),
        ({"groups": []}, ArgumentError, "groups is empty"),
        ({"resolution": 1}, ArgumentError, "resolution=1"),
        ({"points": 0}, ArgumentError, "points=0"),
        ({"columns": 2.5}, ArgumentError, "columns=2.5"),
        ({"model": KnownModel("real")}, ArgumentError, "binary"),
    ],
)
def test_unusable_arguments_are_named(frame, change, error, match):
    arguments = {"model": KnownModel(), "frame": frame, "x": "x1", "y": "x2", "group": "group", **change}
    with pytest.raises(error, match=match):
        decision_boundaries(**arguments)


def test_without_matplotlib_the_error_says_what_to_install(frame, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(MissingDependencyError, match="matplotlib"):
        new_figure()
    with pytest.raises(MissingDependencyError, match="matplotlib"):
        decision_boundaries(KnownModel(), frame, "x1", "x2", "group")


# --- cross-validation --------------------------------------------------------------------------------------


def left_out(kind, n=400, seed=0):
    """A table as cross_predict makes it: calibrated for seen groups, overconfident for new ones."""
    rng = np.random.default_rng(seed)
    rows = pd.DataFrame(
        {
            "row": np.tile(np.arange(n), 2), "fold": np.tile(np.arange(n) % 4 + 1, 2),
            "split": np.repeat(["new", "seen"], n), "group": np.tile([f"site {i % 12}" for i in range(n)], 2),
        }
    )  # fmt: skip
    new = (rows["split"] == "new").to_numpy()
    p = rng.uniform(0.05, 0.95, 2 * n)
    true = np.where(new, 0.5 + (p - 0.5) * 0.5, p)
    rows["y"] = (rng.uniform(size=2 * n) < true).astype(float)
    rows["nlpd"], rows["nlpd_joint"] = rng.exponential(size=2 * n), np.where(new, 0.5, np.nan)
    rows["squared_error"], rows["expected"] = (p - rows["y"]) ** 2, p
    if kind == "numeric":
        rows["crps"] = rng.exponential(size=2 * n)
        for level in (50, 80, 95):
            rows[f"covered_{level}"] = (rng.uniform(size=2 * n) < level / 100 - 0.1 * new).astype(float)
    return rows


def points_of(axes, label):
    (bars,) = [c for c in axes.containers if c.get_label() == label]
    return np.asarray(bars.lines[0].get_xydata()), bars


@pytest.mark.parametrize("kind", ["numeric", "binary"])
def test_reliability_shows_what_came_true(kind):
    rows = left_out(kind)
    (axes,) = reliability(rows, bins=5).axes
    for split, label in (("new", "new groups"), ("seen", "groups seen in training")):
        points, _ = points_of(axes, label)
        part = rows[rows["split"] == split]
        if kind == "numeric":
            np.testing.assert_allclose(points[:, 0], [0.5, 0.8, 0.95])
            np.testing.assert_allclose(points[:, 1], [part[f"covered_{p}"].mean() for p in (50, 80, 95)])
            continue
        assert len(points) == 5
        quintile = pd.qcut(part["expected"], 5, labels=False)
        np.testing.assert_allclose(points[:, 0], part.groupby(quintile)["expected"].mean())
        np.testing.assert_allclose(points[:, 1], part.groupby(quintile)["y"].mean())


def test_scores_of_groups_are_sorted_and_beside_that_of_all():
    scores = score_rows(left_out("numeric"))
    (axes,) = score_by_group(scores).axes
    assert axes.get_xlabel() == "coverage_80"
    drawn = axes.containers[0].lines[0].get_xydata()
    chosen = scores.query("fold == 'all' and split == 'new' and metric == 'coverage_80'")
    groups = chosen[chosen["group"] != "all"]
    np.testing.assert_allclose(drawn[:, 0], np.sort(groups["value"]))
    names = [tick.get_text() for tick in axes.get_yticklabels()]
    value = groups.set_index("group")["value"]
    np.testing.assert_allclose(value[names], drawn[:, 0])
    lines = {line.get_label(): line.get_xdata()[0] for line in axes.lines}
    assert lines["nominal"] == 0.8
    assert lines["all new groups"] == pytest.approx(chosen.loc[chosen["group"] == "all", "value"].item())
    (axes,) = score_by_group(scores, "crps", split="seen").axes
    assert "nominal" not in {line.get_label() for line in axes.lines}


def test_many_groups_have_no_names():
    rows = left_out("numeric")
    rows["group"] = [f"g{i % 50}" for i in range(len(rows))]
    (axes,) = score_by_group(score_rows(rows)).axes
    assert axes.get_ylabel() == "50 groups"
    assert not len(axes.get_yticks())


def test_bad_input_of_cross_validation_plots():
    rows = left_out("binary")
    scores = score_rows(rows)
    with pytest.raises(DataError, match="no column 'split'; pass what cross_predict returns"):
        reliability(rows.drop(columns="split"))
    with pytest.raises(DataError, match="several levels"):
        reliability(rows.drop(columns="expected"))
    with pytest.raises(ArgumentError, match="bins=0"):
        reliability(rows, bins=0)
    with pytest.raises(DataError, match="pass what cross_validate returns"):
        score_by_group(rows)
    with pytest.raises(ArgumentError, match="metric='crps' is not in the scores; they have nlpd, "):
        score_by_group(scores, "crps")
    with pytest.raises(ArgumentError, match="split='old' is not in the scores; they have 'new', 'seen'"):
        score_by_group(scores, split="old")
