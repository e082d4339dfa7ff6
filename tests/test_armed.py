"""The user's model end to end, on small data: what comes out, its names, and what is refused."""

import copy

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from hand_made import frame
from torch import nn

import pyro_armed as pa
from pyro_armed import armed
from pyro_armed.errors import ArgumentError, DataError, FormulaError, NotFittedError

pytestmark = pytest.mark.filterwarnings("ignore::pyro_armed.errors.ConvergenceWarning")
QUICK = {"restarts": 2, "draws": 8, "epochs": 6, "guide": "mean_field", "progressbar": False}
GROUPS = {
    *("posterior", "posterior_predictive", "log_likelihood", "sample_stats"),
    *("prior", "prior_predictive", "observed_data", "constant_data"),
}


def groups_of(idata):
    names = idata.groups() if hasattr(idata, "_groups") else list(idata.children)
    return {name.strip("/") for name in names} - {""}


@pytest.fixture(scope="module")
def gaussian():
    model = pa.ARMED("y ~ x + c + (1 + z | g)", frame())
    model.fit(seed=1, **QUICK)
    return model


@pytest.fixture(scope="module")
def digits():
    """Small images of two digits, brighter at some sites."""
    sklearn = pytest.importorskip("sklearn.datasets")
    x, y = sklearn.load_digits(n_class=2, return_X_y=True)
    rng = np.random.default_rng(0)
    site = np.array([f"s{i}" for i in rng.integers(0, 4, 60)])
    images = x[:60].reshape(-1, 1, 8, 8) / 16.0 + 0.5 * (site == "s0")[:, None, None, None]
    return images.astype(np.float32), y[:60], site


# --- end to end --------------------------------------------------------------------------------------------


def test_formula_gaussian(gaussian):
    idata = gaussian.idata
    assert groups_of(idata) == GROUPS
    posterior = idata["posterior"]
    assert set(posterior.data_vars) == {
        *("Intercept", "x", "c", "sigma", "1|g_sigma", "z|g_sigma", "g_corr", "1|g", "z|g"),
    }
    assert dict(posterior["1|g"].sizes) == {"chain": 2, "draw": 8, "g__factor_dim": 5}
    assert list(posterior["g__factor_dim"].values) == ["g0", "g1", "g2", "g3", "g4"]
    assert list(posterior["c_dim"].values) == ["mid", "top"]
    assert dict(idata["log_likelihood"]["y"].sizes) == {"chain": 2, "draw": 8, "__obs__": 20}
    np.testing.assert_allclose(idata["observed_data"]["y"], frame()["y"])
    summary = az.summary(idata, var_names=["Intercept", "1|g"])
    assert "1|g[g0]" in summary.index
    assert idata["posterior"].attrs["formula"] == "y ~ x + c + (1 + z | g)"
    assert gaussian.guide is not None


def test_formula_bernoulli_with_two_labels_a_network_and_an_adversary():
    data = frame(6, 6).assign(b=lambda d: np.where(d["b"] == 1, "yes", "no"))
    model = pa.ARMED(
        "b ~ x + z + (1 + features | g)",
        data,
        family="bernoulli",
        network=pa.networks.MLP(hidden=(4, 3)),
        adversary=pa.Adversary(0.5),
    )
    idata = model.fit(**QUICK)
    assert model.idata is idata
    assert dict(idata["posterior"]["features|g"].sizes) == {
        "chain": 2,
        "draw": 8,
        "g__factor_dim": 6,
        "feature": 3,
    }
    scores = model.evaluate(data).set_index("metric")["value"]
    assert {"nlpd", "auroc", "brier", "ece"} <= set(scores.index)
    prediction = model.predict(data.iloc[:3])["predictions"]["b"]
    assert ((prediction > 0) & (prediction < 1)).all()


def test_structured_guide_by_default():
    model = pa.ARMED("y ~ x + (1 | g)", frame())
    idata = model.fit(restarts=1, draws=10, progressbar=False)
    assert idata["posterior"].attrs["guide"] == "structured"
    assert {"log_weight", "elbo"} <= set(idata["sample_stats"].data_vars)
    assert list(model.evaluate(frame())["metric"])[:2] == ["nlpd", "rmse"]


def test_arrays_in_two_dimensions_are_the_formula():
    data = frame()
    made = pa.ARMED.from_arrays(
        data[["x", "z"]].to_numpy(),
        data["y"].to_numpy(),
        {"g": data["g"].to_numpy()},
        columns=["x", "z"],
        random_effects=[pa.RandomEffects("g", slopes=["z"], correlated=True)],
    )
    one, other = made.fit(**QUICK), pa.ARMED("y ~ x + z + (1 + z | g)", data).fit(**QUICK)
    for name in ("x", "z", "1|g", "z|g", "sigma"):
        np.testing.assert_allclose(one["posterior"][name], other["posterior"][name], rtol=1e-8)
    prediction = made.predict(
        data[["x", "z"]].to_numpy()[:4], groups={"g": ["g0", "new", "new", "g1"]}, new_groups="marginal"
    )
    assert prediction["predictions"]["y"].shape == (2, 8, 4)
    scores = made.evaluate(
        data[["x", "z"]].to_numpy(), data["y"].to_numpy(), groups={"g": data["g"].to_numpy()}
    )
    assert scores["value"].notna().all()


def test_images_through_a_small_cnn_learn(digits):
    images, labels, site = digits
    model = pa.ARMED.from_arrays(
        images,
        labels,
        {"site": site},
        family="bernoulli",
        network=pa.networks.CNN(channels=(4,)),
        random_effects=[pa.RandomEffects("site", slopes="features")],
        adversary=pa.Adversary(0.2),
    )
    idata = model.fit(
        restarts=1, draws=30, epochs=80, guide="mean_field", learning_rate=0.03, progressbar=False
    )
    assert idata["posterior"]["features|site"].sizes["site__factor_dim"] == 4
    found = model.predict(images, groups={"site": site})["predictions"]
    mean = found[next(iter(found.data_vars))].mean(("chain", "draw")).to_numpy()
    assert ((mean > 0.5) == labels).mean() > 0.9


def test_a_users_network_is_left_alone(digits):
    images, labels, site = digits
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 2, 3),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(72, 4),
        nn.ReLU(),
        nn.Linear(4, 1),
    )
    before = copy.deepcopy(network.state_dict())
    model = pa.ARMED.from_arrays(images, labels, {"site": site}, family="bernoulli", network=network)
    model.fit(**{**QUICK, "restarts": 1})
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())
    assert int(model.module.network[1].num_batches_tracked) == 6
    one, again = (model.predict(images, groups={"site": site}, seed=1)["predictions"] for _ in range(2))
    assert one.equals(again)
    alone = model.predict(images[:1], groups={"site": site[:1]}, kind="linear")["predictions"]
    together = model.predict(images, groups={"site": site}, kind="linear")["predictions"]
    name = next(iter(alone.data_vars))
    np.testing.assert_allclose(alone[name][..., 0], together[name][..., 0], rtol=1e-4, atol=1e-5)


def test_nuts():
    model = pa.ARMED("y ~ x + (1 | g)", frame())
    idata = model.fit(inference="nuts", restarts=1, draws=5, warmup=5, progressbar=False)
    assert idata["posterior"]["x"].shape == (1, 5)
    assert "diverging" in idata["sample_stats"]
    with pytest.raises(NotFittedError, match="guide exists after"):
        _ = model.guide


# --- seeds and state ---------------------------------------------------------------------------------------


def test_same_seed_same_numbers_and_refit_replaces(unmoved_rng):
    with unmoved_rng():
        model, other = (pa.ARMED("y ~ x + c + (1 + z | g)", frame()) for _ in range(2))
        first = model.fit(seed=1, **QUICK)
        module = model.module
        second = model.fit(seed=2, **QUICK)
        third = other.fit(seed=1, **QUICK)
        predictions = [other.predict(frame(), kind="response", seed=5)["predictions"] for _ in range(2)]
    assert model.idata is second
    assert model.module is not module
    for group in GROUPS:
        assert first[group].equals(third[group]), group
    assert not first["posterior"].equals(second["posterior"])
    assert predictions[0].equals(predictions[1])
    assert len(pyro.get_param_store()) == 0


def test_nothing_is_printed_without_a_bar(capfd):
    model = pa.ARMED("y ~ x + (1 | g)", frame())
    model.fit(**QUICK)
    model.predict(frame())
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_two_models_do_not_meet():
    def make():
        return pa.ARMED("y ~ x + z + (1 | g)", frame(), network=pa.networks.MLP(hidden=(3,)))

    one, other = make(), make()
    one.fit(**QUICK)
    kept = copy.deepcopy(one.module.state_dict())
    before = one.predict(frame(), seed=0)["predictions"]
    other.fit(seed=3, **{**QUICK, "epochs": 12})
    assert all(torch.equal(value, kept[name]) for name, value in one.module.state_dict().items())
    assert one.predict(frame(), seed=0)["predictions"].equals(before)


def test_a_deep_copy_predicts_the_same_and_fits_alone(gaussian):
    copied = copy.deepcopy(gaussian)
    before = gaussian.predict(frame())["predictions"]
    assert copied.predict(frame())["predictions"].equals(before)
    copied.fit(seed=9, **QUICK)
    assert gaussian.predict(frame())["predictions"].equals(before)
    assert not copied.predict(frame())["predictions"].equals(before)


def test_data_are_not_changed_or_kept_by_reference():
    data = frame()
    original = data.copy(deep=True)
    model = pa.ARMED("y ~ x + (1 | g)", data, weights="w")
    data["y"] = 0.0
    one = model.fit(**QUICK)
    two = pa.ARMED("y ~ x + (1 | g)", original, weights="w").fit(**QUICK)
    assert one["posterior"].equals(two["posterior"])


def test_prior_predictive_before_and_after_fitting(gaussian, unmoved_rng):
    model = pa.ARMED("y ~ x + c + (1 + z | g)", frame(), priors={"x": dist.Normal(50.0, 0.1)})
    with unmoved_rng():
        idata = model.prior_predictive(40, seed=3)
        assert idata["prior"].equals(model.prior_predictive(40, seed=3)["prior"])
    assert {"prior", "prior_predictive"} <= groups_of(idata)
    assert idata["prior_predictive"]["y"].shape == (1, 40, 20)
    assert float(idata["prior"]["x"].mean()) == pytest.approx(50.0, abs=0.2)
    assert not idata["prior"].equals(model.prior_predictive(40, seed=4)["prior"])
    fitted = gaussian.prior_predictive(seed=1)
    assert fitted["prior"].equals(gaussian.idata["prior"])
    assert fitted["prior_predictive"].equals(gaussian.idata["prior_predictive"])
    for bad in (0, 1.5, True):
        with pytest.raises(ArgumentError, match=r"^draws="):
            gaussian.prior_predictive(bad)


def test_weights_given_as_numbers():
    data = frame()
    one = pa.ARMED("y ~ x + (1 | g)", data, weights="w").fit(**QUICK)
    model = pa.ARMED("y ~ x + (1 | g)", data, weights=data["w"].to_numpy())
    assert model.fit(**QUICK)["posterior"].equals(one["posterior"])
    assert model.evaluate(data)["value"].notna().all()
    assert list(data.columns) == list(frame().columns)


def test_what_the_model_says_of_itself(gaussian):
    assert gaussian.formula == "y ~ x + c + (1 + z | g)"
    assert "(1 + z | g)" in repr(gaussian)
    assert float(gaussian.priors["x"].loc) == 0.0
    assert set(gaussian.priors) >= {"Intercept", "x", "sigma"}


# --- bad input ---------------------------------------------------------------------------------------------


def with_value(column, value, row=0):
    data = frame()
    data[column] = data[column].astype(object) if isinstance(value, str) or value is None else data[column]
    data.loc[row, column] = value
    return data


@pytest.mark.parametrize(
    ("arguments", "options", "kind", "message"),
    [
        (("y ~ xx + (1 | g)", frame()), {}, (DataError, FormulaError), "'xx'"),
        (
            ("y ~ x + (1 | g)", with_value("x", np.nan)),
            {},
            DataError,
            r"'x' has 1 missing value .* missing='drop'",
        ),
        (("y ~ x + (1 | g)", with_value("x", np.inf)), {}, DataError, "'x' has 1 infinite value"),
        (("y ~ x + (1 | g)", frame().assign(y=2.0)), {}, DataError, "'y' is constant"),
        (("y ~ x + (1 | g)", frame().assign(g="a")), {}, DataError, "'g' has only one group"),
        (("y ~ x + (1 | g)", frame().assign(g=range(20))), {}, DataError, "'g'.*one row"),
        (("y ~ x + (1 | g)", with_value("g", None)), {}, DataError, "'g' has 1 missing"),
        (("s ~ x + (1 | g)", frame()), {"family": "bernoulli"}, DataError, "'s' has 5 labels .*takes two"),
        (("y ~ x + (1 | g)", frame().iloc[:0]), {}, DataError, "no rows"),
        (("y ~ x + (1 | g)", frame()), {"family": "gausian"}, ArgumentError, "gausian"),
        (
            ("y ~ x + (1 | g)", frame()),
            {"priors": {"X": dist.Normal(0.0, 1.0)}},
            ArgumentError,
            "priors has 'X'",
        ),
        (("y ~ x + (1 | g)", frame()), {"priors": [1]}, ArgumentError, "priors=.* must be a dictionary"),
        (("y ~ x + (1 | g)", frame()), {"adversary": 0.5}, ArgumentError, r"must be pa.Adversary\(weight"),
        (
            ("y ~ x + (1 | g)", frame()),
            {"adversary": pa.Adversary(0.5)},
            ArgumentError,
            "needs a network to work",
        ),
        (
            ("y ~ x + (1 | g)", frame()),
            {"fixed_effects_weight": -1},
            ArgumentError,
            "fixed_effects_weight=-1",
        ),
        (
            ("y ~ x + (1 | g)", frame()),
            {"fixed_effects_weight": np.nan},
            ArgumentError,
            "fixed_effects_weight=nan",
        ),
        (("y ~ x + (1 | g)", frame()), {"last_layer": "both"}, ArgumentError, "last_layer='both' is not"),
        (
            ("y ~ x + (1 | g)", frame()),
            {"weights": np.ones(3)},
            ArgumentError,
            r"weights has shape \(3,\).*20 rows",
        ),
        (("y ~ x + (1 | g)", frame()), {"weights": ["a"] * 20}, ArgumentError, "weights must be the name"),
        (("y ~ x + (1 | g)", frame()), {"weights": -np.ones(20)}, ArgumentError, "weights must be finite"),
        (([], frame()), {}, ArgumentError, "formula is empty"),
        ((3, frame()), {}, ArgumentError, "formula=3 must be a text"),
    ],
)
def test_bad_models(arguments, options, kind, message):
    with pytest.raises(kind, match=message):
        pa.ARMED(*arguments, **options)


def test_rows_with_missing_values_can_be_dropped_by_request_only():
    data = with_value("x", np.nan)
    model = pa.ARMED("y ~ x + (1 | g)", data, missing="drop")
    assert model.spec.n_rows == 19


def test_a_group_of_one_row_is_kept():
    model = pa.ARMED("y ~ x + (1 | g)", with_value("g", "alone"))
    idata = model.fit(**{**QUICK, "restarts": 1})
    assert "alone" in idata["posterior"]["g__factor_dim"].values


@pytest.mark.parametrize(
    ("x", "y", "groups", "message"),
    [
        (np.zeros((4, 2)), np.arange(3.0), {"g": list("aabb")}, r"3"),
        (np.zeros((4, 2)), np.arange(4.0), {"g": list("aab")}, r"'g'.*3"),
        (np.zeros((4, 2)), np.zeros((4, 2)), {"g": list("aabb")}, r"\(4, 2\)"),
        (np.zeros((4, 1, 3, 3)), np.arange(4.0), {"g": list("aabb")}, "network"),
        (np.zeros((4, 2)), np.arange(4.0), ["a", "a", "b", "b"], "groups must be a dictionary"),
    ],
)
def test_wrong_shapes_of_arrays(x, y, groups, message):
    x = x + np.random.default_rng(0).normal(size=x.shape)
    with pytest.raises((ArgumentError, DataError), match=message):
        pa.ARMED.from_arrays(x, y, groups)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"log_likelihood": "no"}, "log_likelihood='no'"), ({"guide": "full"}, "guide='full'")],
)
def test_bad_fits(gaussian, options, message):
    with pytest.raises(ArgumentError, match=message):
        gaussian.fit(**{**QUICK, **options})


def test_a_failed_fit_leaves_the_last_one(gaussian, monkeypatch):
    before, module = gaussian.idata, gaussian.module
    for options in ({"restarts": 0}, {"log_likelihood": "no"}, {"epochs": 0}):
        with pytest.raises(ArgumentError):
            gaussian.fit(**{**QUICK, **options})
    monkeypatch.setattr(armed, "build_idata", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        gaussian.fit(**QUICK)
    assert gaussian.idata is before
    assert gaussian.module is module
