"""Models made again on other rows."""

import copy

import numpy as np
import pyro.distributions as dist
import pytest

import pyro_armed as pa
from pyro_armed.errors import ArgumentError
from pyro_armed.recipe import made_on, remake


@pytest.fixture(scope="module")
def frame():
    return pa.simulate.mixed_model(4, 10, seed=0).frame.assign(w=2.0, log=1)


def draws(model):
    return model.fit(restarts=1, draws=5, log_likelihood=False, progressbar=False)["posterior"]


def test_a_remade_model_fits_like_the_first(frame):
    model = pa.ARMED(
        "y ~ scaled(x1) + (1 | group)",
        frame,
        weights="w",
        priors={"sigma": dist.HalfNormal(3.0)},
        namespace={"scaled": lambda x: x / 2, "numpy": np},
    )
    again = remake(copy.deepcopy(model), frame)
    first, second = draws(model), draws(again)
    assert [*first.data_vars] == [*second.data_vars]
    for name in first.data_vars:
        np.testing.assert_array_equal(first[name], second[name])


def test_other_rows_and_other_settings(frame):
    some = frame[frame["group"].isin(frame["group"].unique()[:3])]
    network = pa.networks.MLP(hidden=(3,))
    model = pa.ARMED("y ~ x1 + (1 | group)", frame, network=network, adversary=pa.Adversary(1.0))
    changed = remake(model, some, adversary=None, formula="y ~ 0 + x1 + (1 | group)")
    assert changed.adversary is None
    assert changed.spec.n_rows == 30
    assert changed.spec.groups[0].size == 3
    assert model.adversary == pa.Adversary(1.0)
    assert not network.is_built


def test_a_model_from_arrays(frame):
    x, y, group = frame[["x1"]].to_numpy(), frame["y"].to_numpy(), frame["group"].to_numpy()
    model = pa.ARMED.from_arrays(x, y, {"group": group}, columns=["size"], weights=np.ones(40))
    again = remake(model, x[:20], y=y[:20], groups={"group": group[:20]}, weights=np.ones(20))
    assert again.spec.n_rows == 20
    assert [term.name for term in again.spec.mu.terms] == ["size"]
    with pytest.raises(ArgumentError, match="weights belong to the rows"):
        remake(model, x[:20], y=y[:20], groups={"group": group[:20]})


def test_a_specification_is_a_model_or_a_function(frame):
    model = pa.ARMED("y ~ x1 + (1 | group)", frame)
    for specification in (model, lambda rows: pa.ARMED("y ~ x1 + (1 | group)", rows)):
        assert made_on(specification, frame[:20]).spec.n_rows == 20
        assert made_on(specification, frame, last_layer="point")._arguments["last_layer"] == "point"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda frame: made_on("y ~ x", frame), "a function that takes rows"),
        (lambda frame: made_on(lambda rows: rows, frame), "must return an ARMED, not DataFrame"),
        (lambda frame: remake("model", frame), "made here"),
        (lambda frame: remake(pa.ARMED("y ~ 1", frame), frame, y=[1]), "models from arrays"),
        (lambda frame: remake(pa.ARMED("y ~ 1", frame, weights=np.ones(40)), frame), "weights='column'"),
    ],
)
def test_what_cannot_be_made_again_is_named(frame, make, message):
    with pytest.raises(ArgumentError, match=message):
        make(frame)


def test_a_model_from_a_file_cannot_be_made_again(frame, tmp_path):
    model = pa.ARMED("y ~ x1 + (1 | group)", frame)
    draws(model)
    model.save(tmp_path / "model.armed")
    with pytest.raises(ArgumentError, match="from a file"):
        remake(pa.load(tmp_path / "model.armed"), frame)
