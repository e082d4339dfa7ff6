"""New groups with a few labelled rows, from support to predictions."""

import math

import numpy as np
import pandas as pd
import pytest
from hand_made import design, frame, module_of, posterior_of

import pyro_armed as pa
from pyro_armed.errors import ArgumentError
from pyro_armed.evaluation import evaluate
from pyro_armed.new_groups import Adapt
from pyro_armed.predict import extended_chains, predict_draws

# Fits here are made to be quick; how good they are is not what is tested.
pytestmark = pytest.mark.filterwarnings("ignore::pyro_armed.errors.ConvergenceWarning")

QUICK = {"restarts": 1, "draws": 40, "progressbar": False, "log_likelihood": False}


def made(formula="y ~ x + (1 | g)", family="gaussian", draws=20, fixed=None):
    one = design(formula, frame(), family)
    return one, posterior_of(module_of(one), draws=draws, fixed=fixed)


def labelled(**groups: list) -> pd.DataFrame:
    rows = len(next(iter(groups.values())))
    return frame(n_groups=1, rows=rows, seed=3).assign(**groups)


def adapt(one, support):
    return Adapt(one.spec, one.encode(support, response=True))


def predict(one, posterior, rows, support, **options):
    return predict_draws(posterior, one.encode(rows), adapt(one, support), **{"seed": 0, **options})


def test_gaussian_prediction_has_the_closed_form():
    """Posterior mean and variance of a new group's rows: shrunken mean residual, one draw for all rows."""
    fixed = {"x": 0.0, "1|g_sigma": 1.5, "sigma": 2.0, "Intercept": 1.0}
    one, posterior = made(draws=10_000, fixed=fixed)
    support = labelled(g=["a", "a", "a", "b"], y=[4.0, 6.0, 5.0, -3.0])
    rows = labelled(g=["b", "a", "a", "c"])
    eta = predict(one, posterior, rows, support, kind="linear").flatten(0, 1).numpy()
    for column, (n, residual) in {0: (1, -4.0), 1: (3, 4.0), 3: (0, 0.0)}.items():
        variance = 1 / (1.5**-2 + n / 4)
        mean = 1.0 + variance * n * residual / 4
        assert eta[:, column].mean() == pytest.approx(mean, abs=4 * math.sqrt(variance / 20_000))
        assert eta[:, column].var() == pytest.approx(variance, rel=4 * math.sqrt(2 / 20_000))
    np.testing.assert_array_equal(eta[:, 1], eta[:, 2])
    between = np.corrcoef(eta[:, [0, 1, 3]].T)[np.triu_indices(3, 1)]
    assert np.abs(between).max() < 4 / math.sqrt(20_000)
    drawn = predict(one, posterior, rows, support, kind="response").flatten(0, 1).numpy()
    assert drawn[:, 1].var() == pytest.approx(1 / (1.5**-2 + 3 / 4) + 4, rel=4 * math.sqrt(2 / 20_000))


def test_modes_by_row_with_crossed_factors():
    one, posterior = made("y ~ x + (1 | g) + (1 | h)")
    mode = adapt(one, labelled(g=["a", "a", "g0"], h=["h0", "H", "H"]))
    encoded = one.encode(labelled(g=["a", "b", "g1", "a"], h=["h1", "H", "K", "h2"]))
    assert mode.received(encoded) == {"g": ["adapt", "marginal"], "h": ["adapt", "marginal"]}
    chains = extended_chains(posterior, encoded, mode, seed=0)
    assert chains[0].values["1|g"].shape == (20, 7)
    assert chains[0].values["1|h"].shape == (20, 5)


def test_groups_are_matched_by_label_whatever_their_order():
    one, posterior = made(fixed={"sigma": 0.1, "1|g_sigma": 5.0, "x": 0.0, "Intercept": 0.0})
    support = labelled(g=["a", "b", "c"], y=[-9.0, 0.0, 9.0])
    eta = predict(one, posterior, labelled(g=["c", "d", "b", "a"]), support, kind="linear").mean((0, 1))
    np.testing.assert_allclose(eta[[0, 2, 3]], [9.0, 0.0, -9.0], atol=0.2)


def test_a_group_is_predicted_alike_whoever_is_beside_it_and_seen_groups_as_ever():
    one, posterior = made("b ~ x + (1 + z | g)", "bernoulli")
    support, rows = labelled(g=["a", "a", "b"]), labelled(g=["x", "a", "g1", "b"])
    every = predict(one, posterior, rows, support)
    alone = predict(one, posterior, rows[1:2], support)
    np.testing.assert_allclose(alone[..., 0], every[..., 1], rtol=1e-10)
    seen = predict_draws(posterior, one.encode(rows[2:3]), "error", seed=0)
    np.testing.assert_allclose(every[..., 2], seen[..., 0])


@pytest.mark.parametrize("kind", ["mean", "response", "linear"])
def test_same_seed_same_predictions(kind, unmoved_rng):
    one, posterior = made("count ~ x + (1 | g)", "poisson")
    support, rows = labelled(g=["a", "a", "b"]), labelled(g=["a", "b"])
    with unmoved_rng():
        first = predict(one, posterior, rows, support, kind=kind, seed=5)
    np.testing.assert_array_equal(first, predict(one, posterior, rows, support, kind=kind, seed=5))
    assert not np.array_equal(first, predict(one, posterior, rows, support, kind=kind, seed=6))


def test_scores_know_the_mode():
    one, posterior = made(fixed={"sigma": 0.5, "1|g_sigma": 4.0, "x": 0.0, "Intercept": 0.0}, draws=200)
    rows = labelled(g=["a"] * 8, y=[5.1, 4.9, 5.2, 4.8, 5.0, 5.1, 5.0, 4.9])
    encoded = one.encode(rows[4:], response=True)
    adapted = evaluate(posterior, encoded, adapt(one, rows[:4]), seed=0)
    population = evaluate(posterior, encoded, "population", seed=0)
    assert adapted.attrs["new_groups"] == "adapt"
    assert adapted["value"][0] < population["value"][0] - 5


# --- bad support -------------------------------------------------------------------------------------------


def test_rows_of_seen_groups_are_sent_to_update():
    one, _ = made("y ~ x + (1 | g) + (1 | h)")
    adapt(one, labelled(g=["a", "g0"], h=["h0", "new"]))
    with pytest.raises(ArgumentError, match=r"training had \('g': 'g0', 'g3'\).*model.update\(new_rows\)"):
        adapt(one, labelled(g=["a", "g3", "g0"], h=["h0", "h1", "h2"]))


def test_models_without_group_effects():
    one, _ = made("y ~ x")
    with pytest.raises(ArgumentError, match="this model has none"):
        adapt(one, labelled(g=["a"]))


# --- the model's method ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"guide": "structured"}, {"guide": "mean_field", "epochs": 20}, {"inference": "nuts", "warmup": 20}],
)
def test_every_posterior_adapts_and_so_does_its_file(options, tmp_path):
    model = pa.ARMED("p(s, t) ~ x + offset(z) + (1 | g)", frame(), family="binomial")
    model.fit(**QUICK, **options)
    support, rows = labelled(g=["a"] * 4, s=5, t=5), labelled(g=["a", "g1", "b"])
    call = {"new_groups": "adapt", "support": support, "seed": 3}
    predicted = model.predict(rows, **call)
    assert predicted["predictions"]["new_groups"].values.tolist() == ["adapt", "seen", "marginal"]
    constant = predicted["predictions_constant_data"]
    assert constant["new_groups"].values.tolist() == constant["g_new_groups"].values.tolist()
    assert predicted.attrs["new_groups"] == "adapt"
    population = model.predict(rows, new_groups="population")["predictions"]["p(s, t)"]
    assert predicted["predictions"]["p(s, t)"][..., 0].mean() > population[..., 0].mean()
    model.save(tmp_path / "m.armed")
    again = pa.load(tmp_path / "m.armed").predict(rows, **call)["predictions"]["p(s, t)"]
    np.testing.assert_array_equal(again, predicted["predictions"]["p(s, t)"])
    scores = model.evaluate(rows.assign(s=2, t=5), new_groups="adapt", support=support)
    assert scores["value"].notna().all()


def test_arrays_with_a_network_and_slopes_on_features():
    data = frame()
    x = data[["x", "z"]].to_numpy()
    model = pa.ARMED.from_arrays(
        x,
        data["s"],
        {"g": data["g"]},
        family="binomial",
        trials=data["t"],
        offset=data["w"],
        weights=data["w"],
        network=pa.networks.MLP(hidden=(3,)),
        random_effects=[pa.RandomEffects("g", slopes="features")],
    )
    model.fit(**QUICK, guide="mean_field", epochs=20)
    support = {"x": x[:3], "y": [5, 5, 4], "groups": {"g": ["a", "a", "b"]}, "trials": 5}
    support |= {"weights": [1.0, 2.0, 1.0], "offset": [0.0, 0.1, 0.2]}
    new = {"groups": {"g": ["a", "b"]}, "offset": [0.0, 0.0], "new_groups": "adapt", "support": support}
    predicted = model.predict(x[:2], **new)["predictions"]
    assert predicted["new_groups"].values.tolist() == ["adapt", "adapt"]
    assert predicted["y"].notnull().all()
    scores = model.evaluate(x[:2], [5, 3], trials=[5, 5], **new)
    assert scores["value"].notna().all()


def test_arguments_that_do_not_go_together():
    model = pa.ARMED("y ~ x + (1 | g)", frame())
    model.fit(**QUICK, guide="mean_field", epochs=5)
    rows = labelled(g=["a", "b"])
    with pytest.raises(ArgumentError, match=r"new_groups='adapt' needs support="):
        model.predict(rows, new_groups="adapt")
    with pytest.raises(ArgumentError, match="support= is for new_groups='adapt', not for 'marginal'"):
        model.predict(rows, new_groups="marginal", support=rows)
    with pytest.raises(ArgumentError, match="new_groups='nearest' is not one of"):
        model.evaluate(rows, new_groups="nearest")


def test_conformal_intervals_want_calibration_groups_adapted_too():
    model = pa.ARMED("y ~ x + (1 | g)", frame())
    model.fit(**QUICK, guide="mean_field", epochs=5)
    calibration = frame(n_groups=12, seed=8).assign(g=lambda rows: "new" + rows["g"])
    first = calibration.groupby("g").head(2)
    rows, rest = labelled(g=["a"] * 4), calibration.drop(first.index)
    call = {"new_groups": "adapt", "intervals": "conformal", "calibration": rest}
    with pytest.raises(ArgumentError, match=r"calibration= has groups .*'adapt'.*to support="):
        model.predict(rows[2:], support=rows[:2], **call)
    found = model.predict(rows[2:], support=pd.concat([rows[:2], first]), **call)["predictions"]
    assert (found["lower"] < found["upper"]).all()
