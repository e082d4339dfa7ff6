"""Expected absolute gradients against finite differences of predictions, and closed forms."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import pyro_armed as pa
from pyro_armed.diagnostics import importance
from pyro_armed.errors import ArgumentError

pytestmark = pytest.mark.filterwarnings("ignore::pyro_armed.errors.ConvergenceWarning")
QUICK = {"guide": "mean_field", "restarts": 2, "draws": 6, "epochs": 30, "early_stopping": False}


@pytest.fixture(scope="module")
def frame():
    rng = np.random.default_rng(0)
    n = 120
    data = pd.DataFrame(
        {
            "a": rng.normal(3.0, 2.0, n),
            "b": rng.normal(size=n),
            "kind": rng.choice(["p", "q", "r"], n),
            "g": rng.choice(list("uvwx"), n),
        }
    )
    eta = np.sin(data["a"]) + data["b"] * (1 + data["g"].map(dict(zip("uvwx", [-1, 0, 1, 2], strict=True))))
    return data.assign(
        y=eta + 0.3 * rng.normal(size=n), s=(eta > 0).astype(int), c=rng.choice(list("lmn"), n)
    )


def fit(model, **options):
    model.fit(**{**QUICK, **options}, log_likelihood=False, progressbar=False)
    return model


def test_a_linear_predictor_by_hand(frame):
    model = fit(pa.ARMED("y ~ a + b + kind + (1 + b | g)", frame))
    found = importance(model)
    posterior = model.idata["posterior"]
    for name in ("a", "b"):
        expected = np.abs(posterior[name]) * frame[name].std(ddof=0)
        np.testing.assert_allclose(found.dataset["importance"].sel(column=name), expected, rtol=1e-10)
    q = np.abs(posterior["kind"].to_numpy()[..., 0]) * (frame["kind"] == "q").std(ddof=0)
    np.testing.assert_allclose(found.dataset["importance"].sel(column="kind[q]"), q, rtol=1e-10)
    slopes = posterior["b|g"].std("g__factor_dim") * frame["b"].std(ddof=0)
    np.testing.assert_allclose(found.dataset["group_sd|g"].sel(column="b"), slopes, rtol=1e-10)
    assert not found.dataset["group_sd|g"].sel(column=["a", "kind[r]"]).any()
    table = found.table
    assert sorted(table.index) == ["a", "b", "kind[q]", "kind[r]"]
    assert table["mean"].is_monotonic_decreasing
    assert table["share"].sum() == pytest.approx(1.0)
    assert table.loc["b", "mean"] == pytest.approx(
        float(np.abs(posterior["b"]).mean()) * frame["b"].std(ddof=0), rel=1e-10
    )
    np.testing.assert_allclose(found.share(["a", "b"]).mean(), table.loc[["a", "b"], "share"].sum())


def gradients(model, frame, column, kind, group=None, step=1e-4):
    """Central differences of predictions, shape (chain, draw, rows); without or with a group's effects."""

    def predicted(delta):
        rows = frame.assign(**{column: frame[column] + delta})
        rows["g"] = "nobody" if group is None else group
        mode = "population" if group is None else "error"
        out = model.predict(rows, new_groups=mode, kind=kind)["predictions"]
        (values,) = out.data_vars.values()
        return values.to_numpy()

    return (predicted(step) - predicted(-step)) / (2 * step) * frame[column].std(ddof=0)


@pytest.fixture(scope="module")
def networked(frame):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    return fit(pa.ARMED("s ~ a + b + (1 + b + features | g)", frame, family="bernoulli", network=network))


@pytest.mark.parametrize("kind", ["linear", "mean"])
def test_a_networks_gradients_are_those_of_its_predictions(networked, frame, kind):
    found = importance(networked, kind=kind)
    for column in ("a", "b"):
        expected = np.abs(gradients(networked, frame, column, kind)).mean(-1)
        np.testing.assert_allclose(found.dataset["importance"].sel(column=column), expected, rtol=1e-5)


def test_group_sds_are_those_of_the_groups_predictions(networked, frame):
    found = importance(networked)
    for column in ("a", "b"):
        population = gradients(networked, frame, column, "linear")
        each = np.stack([gradients(networked, frame, column, "linear", group) for group in "uvwx"])
        expected = (each - population).std(0).mean(-1)
        np.testing.assert_allclose(found.dataset["group_sd|g"].sel(column=column), expected, rtol=1e-5)


def test_a_point_last_layer_and_several_outcomes(frame):
    network = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    model = fit(pa.ARMED("y ~ a + b + (1 | g)", frame, network=network, last_layer="point"), restarts=1)
    expected = np.abs(gradients(model, frame, "a", "linear")).mean(-1)
    np.testing.assert_allclose(importance(model).dataset["importance"].sel(column="a"), expected, rtol=1e-5)
    network = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    for options in ({"network": network}, {}):
        model = fit(pa.ARMED("c ~ a + b + (1 + b | g)", frame, family="categorical", **options), restarts=1)
        expected = np.abs(gradients(model, frame, "a", "linear")).mean((-1, -2)) if options else None
        found = importance(model).dataset
        if options:
            expected = np.abs(gradients(model, frame, "a", "linear")).mean((2, 3))
        else:
            expected = np.abs(model.idata["posterior"]["a"]).mean("c_reduced_dim") * frame["a"].std(ddof=0)
        np.testing.assert_allclose(found["importance"].sel(column="a"), expected, rtol=1e-5)
        slopes = model.idata["posterior"]["b|g"].std("g__factor_dim").mean("c_reduced_dim")
        np.testing.assert_allclose(
            found["group_sd|g"].sel(column="b"), slopes * frame["b"].std(ddof=0), rtol=1e-9
        )


def test_images_have_a_map(frame):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, 1, 6, 6)).astype(np.float32)
    y = x[:, 0, 2, 3] * 3 + 0.1 * rng.normal(size=40)
    model = pa.ARMED.from_arrays(
        x, y, {"g": np.arange(40) % 4}, network=nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.Linear(3, 1))
    )
    found = importance(fit(model, epochs=300, restarts=1), rows=30)
    assert found.dataset["importance"].shape == (1, 6, 1, 6, 6)
    assert found.table.index[0] == (0, 2, 3)
    with pytest.raises(ArgumentError, match="images have none"):
        found.share(["a"])


def test_rows_draws_and_seeds(networked, frame, unmoved_rng):
    with unmoved_rng():
        one = importance(networked, rows=50, draws=3, seed=1).dataset
    assert one.sizes == {"chain": 2, "draw": 3, "column": 2}
    np.testing.assert_array_equal(
        one["importance"], importance(networked, rows=50, draws=3, seed=1).dataset["importance"]
    )
    assert not np.array_equal(
        one["importance"], importance(networked, rows=50, draws=3, seed=2).dataset["importance"]
    )
    some = importance(networked, frame[:30].assign(g="new")).dataset["importance"]
    assert some.shape == (2, 6, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": 0}, "rows=0"),
        ({"draws": True}, "draws=True"),
        ({"kind": "response"}, "'response' is not"),
    ],
)
def test_unusable_arguments_are_named(networked, arguments, message):
    with pytest.raises(ArgumentError, match=message):
        importance(networked, **arguments)


def test_what_has_no_importance_is_named(networked, frame):
    with pytest.raises(ArgumentError, match="no column 'z'"):
        importance(networked).share(["z"])
    with pytest.raises(ArgumentError, match="the model has none"):
        importance(fit(pa.ARMED("y ~ 1 + (1 | g)", frame), restarts=1))
    with pytest.raises(ArgumentError, match="kind='linear'"):
        importance(fit(pa.ARMED("c ~ a", frame, family="categorical"), restarts=1), kind="mean")
    with pytest.raises(ArgumentError, match="needs the model itself"):
        importance(networked.idata)
