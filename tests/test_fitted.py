"""What a fitted model does, on small data: predictions by hand, and what is refused."""

import numpy as np
import pytest
from hand_made import frame

import pyro_armed as pa
from pyro_armed.errors import ArgumentError, DataError, NotFittedError, UnseenGroupError

pytestmark = pytest.mark.filterwarnings("ignore::pyro_armed.errors.ConvergenceWarning")
QUICK = {"restarts": 2, "draws": 8, "epochs": 6, "guide": "mean_field", "progressbar": False}


@pytest.fixture(scope="module")
def gaussian():
    model = pa.ARMED("y ~ x + c + (1 + z | g)", frame())
    model.fit(seed=1, **QUICK)
    return model


def test_seen_groups_by_hand(gaussian):
    data = frame().iloc[[3, 12]]
    found = gaussian.predict(data, kind="linear")["predictions"]["y"].to_numpy()
    value = gaussian.idata["posterior"]
    for row, (_, one) in enumerate(data.iterrows()):
        by_hand = value["Intercept"] + value["x"] * one["x"]
        if one["c"] != "low":
            by_hand = by_hand + value["c"].sel(c_dim=one["c"])
        by_hand = by_hand + value["1|g"].sel(g__factor_dim=one["g"])
        by_hand = by_hand + value["z|g"].sel(g__factor_dim=one["g"]) * one["z"]
        np.testing.assert_allclose(found[..., row], by_hand.to_numpy(), rtol=1e-9)


def test_new_groups(gaussian):
    data = frame().iloc[:4].assign(g=["new", "new", "other", "g0"])
    with pytest.raises(UnseenGroupError, match=r"Group 'g' .*'new', 'other'.*new_groups='marginal'"):
        gaussian.predict(data)
    population = gaussian.predict(data, kind="linear", new_groups="population")["predictions"]["y"]
    value = gaussian.idata["posterior"]
    by_hand = value["Intercept"] + value["x"] * data["x"].iloc[0]
    if data["c"].iloc[0] != "low":
        by_hand = by_hand + value["c"].sel(c_dim=data["c"].iloc[0])
    np.testing.assert_allclose(population[..., 0], by_hand, rtol=1e-9)
    marginal = gaussian.predict(data, kind="linear", new_groups="marginal")
    found = marginal["predictions"]["y"]
    assert not np.allclose(found[..., 0], population[..., 0])
    seen = gaussian.predict(data.iloc[3:], kind="linear")["predictions"]["y"]
    np.testing.assert_allclose(found[..., 3], seen[..., 0])
    status = marginal["predictions_constant_data"]["g_new_groups"]
    assert list(status.values) == ["marginal", "marginal", "marginal", "seen"]


def test_before_fitting():
    model = pa.ARMED("y ~ x + (1 | g)", frame())
    for use in (
        lambda: model.idata,
        lambda: model.predict(frame()),
        lambda: model.evaluate(frame()),
        lambda: model.save("model.armed"),
    ):
        with pytest.raises(NotFittedError, match=r"call fit\(\) first"):
            use()
    with pytest.raises(NotFittedError, match="guide exists after fit"):
        _ = model.guide


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda m: m.predict(frame(), groups={"g": []}), ArgumentError, "are for models from arrays"),
        (lambda m: m.evaluate(frame(), frame()["y"]), ArgumentError, "are for models from arrays"),
        (lambda m: m.predict(frame(), kind="median"), ArgumentError, "kind='median'"),
        (lambda m: m.predict(frame(), new_groups="new"), ArgumentError, "new_groups='new' is not one of"),
        (lambda m: m.predict(frame(), draws=9), ArgumentError, "draws=9 is more than the 8"),
        (lambda m: m.predict(frame(), seed=-1), ArgumentError, "seed=-1 must be a whole number"),
        (lambda m: m.evaluate(frame(), seed="a"), ArgumentError, "seed='a' must be a whole number"),
        (lambda m: m.predict(frame().assign(g=None)), DataError, "missing label"),
        (lambda m: m.predict(frame().iloc[:0]), DataError, "no rows"),
        (lambda m: m.predict(frame().drop(columns="x")), DataError, "'x'"),
        (lambda m: m.predict("new.parquet"), ArgumentError, "at a time as a data frame"),
        (lambda m: m.evaluate("new.csv"), DataError, "new.csv"),
        (lambda m: m.predict([1.0]), DataError, "must be a pandas DataFrame"),
    ],
)
def test_bad_calls(gaussian, call, kind, message):
    with pytest.raises(kind, match=message):
        call(gaussian)
