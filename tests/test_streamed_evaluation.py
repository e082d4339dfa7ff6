"""Scores of rows read some at a time: those of all rows at once."""

import numpy as np
import pandas as pd
import pytest

import pyro_armed as pa
from pyro_armed import streamed_evaluation
from pyro_armed.errors import ArgumentError, DataError, UnseenGroupError

FIT = {"restarts": 1, "draws": 40, "progressbar": False}


def rows(seed=0):
    """Rows in no order, so that each group is in several blocks."""
    frame = pa.simulate.mixed_model(12, 20, seed=seed).frame
    frame["b"] = frame["y"] > frame["y"].median()
    frame["level"] = pd.cut(frame["y"], 3, labels=False)
    return frame.sample(frac=1.0, random_state=seed).reset_index(drop=True)


def fitted(formula="y ~ x1 + (1 | group)", frame=None, **options):
    model = pa.ARMED(formula, rows() if frame is None else frame, **options)
    model.fit(**FIT)
    return model


@pytest.fixture
def blocks(monkeypatch):
    """Blocks of 50 rows."""
    monkeypatch.setattr(streamed_evaluation, "_NUMBERS", 50 * 40)


def written(folder, frame):
    path = folder / "rows.parquet"
    frame.to_parquet(path, row_group_size=70)
    return path


@pytest.mark.parametrize(
    ("formula", "family"),
    [
        ("y ~ x1 + (1 | group)", "gaussian"),
        ("b ~ x1 + (1 | group)", "bernoulli"),
        ("level ~ x1 + (1 | group)", "ordinal"),
    ],
)
def test_scores_are_those_of_all_rows(formula, family, blocks, tmp_path):
    model, data = fitted(formula, family=family), rows()
    whole = model.evaluate(data)
    streamed = model.evaluate(written(tmp_path, data))
    assert streamed.attrs == whole.attrs
    assert streamed["metric"].tolist() == whole["metric"].tolist()
    for name in ("value", "se"):
        one, other = (table.set_index("metric")[name] for table in (streamed, whole))
        drawn = one.index.str.startswith(("crps", "coverage"))  # other random numbers after the first block
        np.testing.assert_allclose(one[~drawn], other[~drawn], rtol=1e-9)
        np.testing.assert_allclose(one[drawn], other[drawn], atol=0.04)


def test_groups_that_are_new_are_the_same_ones_in_each_block(blocks, tmp_path):
    data = rows()
    new = data["group"].isin(data["group"].unique()[:4])
    model = fitted(frame=data[~new])
    path = written(tmp_path, data)
    how = {"new_groups": "population"}
    whole, streamed = (model.evaluate(one, **how).set_index("metric") for one in (data, path))
    deterministic = ["nlpd", "rmse"]
    np.testing.assert_allclose(streamed.loc[deterministic], whole.loc[deterministic], rtol=1e-9)
    with pytest.raises(UnseenGroupError):
        model.evaluate(path)
    adapted = model.evaluate(path, new_groups="adapt", support=data[new].head(20)).set_index("metric")
    assert adapted.loc["nlpd", "value"] < streamed.loc["nlpd", "value"]


def test_the_same_seed_gives_the_same_numbers(blocks, tmp_path):
    model, path = fitted(), written(tmp_path, rows(1))
    first, again = (model.evaluate(path, seed=5) for _ in range(2))
    pd.testing.assert_frame_equal(first, again)
    assert model.evaluate(path, seed=6)["value"].tolist() != first["value"].tolist()


@pytest.mark.filterwarnings("ignore::pyro_armed.errors.ConvergenceWarning")
def test_many_groups_whose_draws_are_not_held(blocks, tmp_path, monkeypatch):
    path = written(tmp_path, rows())
    model = pa.ARMED("y ~ x1 + (1 | group)", path)
    model.fit(guide="mean_field", epochs=40, batch_size=60, **FIT)
    held = model.evaluate(path).set_index("metric")
    monkeypatch.setattr("pyro_armed.streamed_fit.HELD", 1)
    model.fit(guide="mean_field", epochs=40, batch_size=60, **FIT)
    tables = model.evaluate(path).set_index("metric")
    # Other draws of the same guide.
    np.testing.assert_allclose(tables["value"], held["value"], atol=0.06)


def test_row_weights_count(blocks, tmp_path):
    data = rows()
    data["w"] = np.random.default_rng(0).integers(0, 3, len(data)).astype(float)
    model = fitted(frame=data, weights="w")
    whole, streamed = (
        model.evaluate(one).set_index("metric").loc["nlpd"] for one in (data, written(tmp_path, data))
    )
    np.testing.assert_allclose(streamed, whole, rtol=1e-9)


def test_what_cannot_be_streamed_is_said(blocks, tmp_path):
    data = rows()
    model, path = fitted(), written(tmp_path, data)
    with pytest.raises(ArgumentError, match="looks at all rows of a new group at once"):
        model.evaluate(path, new_groups="membership")
    with pytest.raises(ArgumentError, match=r"some rows of the files at a time"):
        model.predict(path)
    with pytest.raises(DataError, match=r"none\.parquet"):
        model.evaluate(tmp_path / "none.parquet")
    with pytest.raises(DataError, match="'y'"):
        model.evaluate(written(tmp_path, data.drop(columns="y")))
    split = fitted(within_between=["x1"])
    with pytest.raises(ArgumentError, match="within and between"):
        split.evaluate(written(tmp_path, data))
