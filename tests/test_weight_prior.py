"""The network as a departure from a linear path: its density by SciPy, its limits, when there is one."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from scipy import stats
from torch import nn

import pyro_armed as pa
from pyro_armed.errors import ArgumentError
from pyro_armed.guides import MeanFieldGuide
from pyro_armed.local import local_parameters
from pyro_armed.objective import Objective
from pyro_armed.seeds import seeded
from pyro_armed.spec import ModelSpec
from pyro_armed.weight_prior import VARIANCE, log_density, prior_weights

pytestmark = pytest.mark.filterwarnings("ignore::pyro_armed.errors.ConvergenceWarning")
FORMULA = "y ~ x + kind + (1 | g)"
MLP = pa.networks.MLP


def frame(n=90, departure=0.0, seed=0):
    rng = np.random.default_rng(seed)
    data = pd.DataFrame(
        {"x": rng.normal(2, 3, n), "kind": rng.choice(["p", "q"], n), "g": rng.integers(6, size=n)}
    )
    effects = rng.normal(size=6)[data["g"]]
    mean = 0.5 * data["x"] + (data["kind"] == "q") + effects + departure * np.cos(data["x"])
    return data.assign(y=mean + 0.5 * rng.normal(size=n))


def model(data=None, network=None, **options):
    data = frame() if data is None else data
    return pa.ARMED(FORMULA, data, network=network or MLP(hidden=(4, 3)), **options)


# --- the density -------------------------------------------------------------------------------------------


def by_scipy(weight, inputs):
    return stats.norm.logpdf(weight.detach().numpy(), scale=np.sqrt(VARIANCE / inputs)).sum()


def test_density_of_weights():
    network = nn.Sequential(nn.Conv1d(2, 3, 5), nn.Flatten(), nn.Linear(12, 4), nn.Linear(4, 1))
    expected = (
        by_scipy(network[0].weight, 10) + by_scipy(network[2].weight, 12) + by_scipy(network[3].weight, 4)
    )
    assert float(log_density(network).detach()) == pytest.approx(expected)
    expected -= by_scipy(network[3].weight, 4)
    assert float(log_density(network, {"3.weight"}).detach()) == pytest.approx(expected)
    network[0].weight.requires_grad_(False)
    assert list(prior_weights(network)) == ["2.weight", "3.weight"]


def test_a_row_of_an_embedding_is_one_input():
    assert prior_weights(nn.Embedding(7, 3))["weight"][1] == 1


def test_no_weights_no_density():
    assert float(log_density(nn.ReLU())) == 0.0


@pytest.mark.parametrize("last_layer", ["bayesian", "point"])
def test_the_models_density_has_the_weights_prior(last_layer):
    module = model(last_layer=last_layer).module
    with local_parameters(), seeded(0):
        trace = poutine.trace(module).get_trace()
        trace.compute_log_prob()
    layers = module.network.layers
    # The last layer's weights are replaced by coefficients where these have a posterior.
    used = [layers[0], layers[2], *([layers[4]] if last_layer == "point" else [])]
    expected = sum(by_scipy(layer.weight, layer.in_features) for layer in used)
    assert float(trace.nodes["network_weights"]["log_prob_sum"].detach()) == pytest.approx(expected, rel=1e-5)


def test_without_the_path_there_is_no_prior():
    module = model(linear_path=False).module
    with local_parameters(), seeded(0):
        assert "network_weights" not in poutine.trace(module).get_trace().nodes
    assert float(module.log_prior_of_weights()) == 0.0
    assert not {"x", "kind"} & set(module.priors)


def test_loss_is_pyros_negative_elbo_per_row():
    module = model().module
    guide = MeanFieldGuide(module, module.data, torch.Generator().manual_seed(1))
    with local_parameters(), seeded(5):
        expected = TraceMeanField_ELBO().loss(module, guide, module.data)
    with local_parameters(), seeded(5):
        parts = Objective(module, guide)(module.data)
    assert parts.total is parts.elbo or bool(parts.total == parts.elbo)
    assert float(parts.total.detach()) == pytest.approx(expected / 90, rel=1e-8)


def test_linear_predictor_is_the_sum_of_both():
    module = model().module
    with local_parameters(), seeded(0):
        values = module.sample_latents(module.data)
        hidden = module.hidden(module.data)
        eta = module.linear_predictor(module.spec.mu, values, module.data, hidden, random=False)
    data = frame()
    reported = module.report(values)
    expected = reported["Intercept"] + torch.tensor(data["x"].to_numpy()) * reported["x"]
    expected = expected + torch.tensor((data["kind"] == "q").to_numpy()) * reported["kind"]
    torch.testing.assert_close(eta, expected + hidden[0] @ values["features"])


# --- when there is a path ----------------------------------------------------------------------------------


def test_weight_zero_of_the_adversary_is_none():
    fits = [model(adversary=one) for one in (None, pa.Adversary(weight=0.0))]
    for one in fits:
        assert one.spec.mu.linear_path
        one.fit(guide="mean_field", restarts=1, draws=5, epochs=20, early_stopping=False, progressbar=False)
    first, second = (one.idata["posterior"] for one in fits)
    for name in first.data_vars:
        np.testing.assert_array_equal(first[name], second[name])


def test_an_adversary_sees_everything():
    assert not model(adversary=pa.Adversary(weight=0.5)).spec.mu.linear_path
    assert model(adversary=pa.Adversary(weight=0.5), linear_path=True).spec.mu.linear_path


def test_arguments():
    with pytest.raises(ArgumentError, match=re.escape("linear_path='yes' must be True, False or None")):
        model(linear_path="yes")
    with pytest.raises(ArgumentError, match="needs a network"):
        pa.ARMED(FORMULA, frame(), linear_path=True)


def test_a_constant_column_is_left_to_the_network():
    data = frame().assign(one=3.0)
    found = pa.ARMED("y ~ x + one + (1 | g)", data, network=MLP(hidden=(4,)))
    assert [term.name for term in found.spec.mu.terms] == ["x"]
    assert [term.name for term in found.spec.mu.inputs] == ["x", "one"]


def test_print_says_so():
    text = str(model())
    assert "eta_i = Intercept + beta[x] x_i + beta[kind]' kind_i + beta[features]' phi(x, kind) + u" in text
    assert "a departure from the linear path: weights at the mode under Normal(0, sqrt(2 / inputs" in text
    assert "departure" not in str(model(linear_path=False))


# --- fits --------------------------------------------------------------------------------------------------


def test_a_file_keeps_the_path(tmp_path):
    one = model()
    one.fit(guide="mean_field", restarts=1, draws=10, epochs=30, progressbar=False)
    one.save(tmp_path / "one.armed")
    other = pa.load(tmp_path / "one.armed")
    assert other.spec == one.spec
    first, second = (m.predict(frame(20, seed=1), seed=3)["predictions"]["y"] for m in (one, other))
    np.testing.assert_array_equal(first, second)
    assert list(other.idata["posterior"]["kind"].coords["kind_dim"].values) == ["q"]


def test_a_file_from_before_has_no_path():
    spec = model(linear_path=False).spec
    config = spec.to_config()
    mu = config["predictors"][0]
    mu["terms"] = mu.pop("inputs")
    assert ModelSpec.from_config(config) == spec


def test_a_traced_step_has_the_prior():
    found = []
    for compile in ("trace", "off"):
        one = model()
        one.fit(guide="mean_field", restarts=1, draws=5, epochs=40, compile=compile, progressbar=False)
        found.append(
            (float(one.idata["posterior"].attrs["elbo"]), float(one.module.log_prior_of_weights().detach()))
        )
    assert found[0] == pytest.approx(found[1], rel=1e-3)


@pytest.mark.slow
def test_linear_data_leave_the_linear_predictor():
    data = frame(150)
    one, linear = model(data, MLP(hidden=(16, 16))), pa.ARMED(FORMULA, data)
    for fitted in (one, linear):
        fitted.fit(restarts=1, draws=1000, progressbar=False)
    first, second = one.idata["posterior"], linear.idata["posterior"]
    with torch.no_grad():
        features = one.module.hidden(one.module.data)[0].numpy()
    departure = features @ first["features"].mean(("chain", "draw")).to_numpy()
    assert departure.std() < 0.25  # the sd of the linear part is 1.6
    for name in ("1|g_sigma", "sigma"):
        assert float(first[name].mean()) == pytest.approx(float(second[name].mean()), rel=0.1)


@pytest.mark.slow
def test_a_departure_is_found():
    data = frame(600, departure=2.0)
    train, test = data[:400], data[400:]
    scores = {}
    for name, one in (("linear", pa.ARMED(FORMULA, train)), ("mlp", model(train, MLP(hidden=(16, 16))))):
        one.fit(restarts=1, progressbar=False)
        scores[name] = one.evaluate(test, seed=0).set_index("metric").loc["rmse", "value"]
    assert scores["linear"] > 1.2
    assert scores["mlp"] < 0.65  # the noise is 0.5
