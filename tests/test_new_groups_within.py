"""Effects within the network of groups with a few labelled rows: against the conjugate posterior."""

import numpy as np
import pytest
import torch
from torch import nn

import pyro_armed as pa
from pyro_armed.new_groups._within import fit_within
from pyro_armed.posterior import Chain, Posterior

SD, TAU_SCALE, TAU_BIAS, NOISE = 0.01, 0.5, 1.0, 0.5


def model_of(draws=200, intercept=True):
    """y = (1 + gamma) x + b + noise, as a network of one unit, with all globals known."""
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Identity(), nn.Linear(1, 1))
    network[0].weight.data.fill_(1.0)
    x = np.random.default_rng(0).normal(size=(30, 1))
    model = pa.ARMED.from_arrays(
        x,
        x[:, 0],
        {"site": np.repeat(["a", "b", "c"], 10)},
        network=network,
        random_effects=[
            *([pa.RandomEffects("site")] if intercept else []),
            pa.effects.ScaleBias("0", "site"),
        ],
        standardize=False,
    )
    known = {"Intercept": 0.0, "features": 1.0, "sigma": NOISE, "1|site_sigma": SD, "1|site": 0.0}
    known |= {"scale[0]|site": 0.1, "scale[0]|site_sigma": TAU_SCALE}
    known |= {"bias[0]|site": -0.1, "bias[0]|site_sigma": TAU_BIAS}
    shapes = {"features": (1,), "1|site": (3,), "scale[0]|site": (3, 1), "bias[0]|site": (3, 1)}
    names = [name for name in known if intercept or not name.startswith("1|")]
    values = {
        name: torch.full((draws, *shapes.get(name, ())), known[name], dtype=torch.float64) for name in names
    }
    model._posterior = Posterior([Chain(model.module, values)])
    return model


def support(rows=(12, 4), seed=1):
    """Rows of two new sites, with scales 1.6 and 0.7 and biases 0.8 and -1."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(sum(rows), 1))
    site = np.repeat(["new", "other"], rows)
    scale, bias = np.where(site == "new", 1.6, 0.7), np.where(site == "new", 0.8, -1.0)
    return x, scale * x[:, 0] + bias + NOISE * rng.normal(size=len(x)), site


def conjugate(x, y):
    """Mean of (gamma, b) given the rows, and the precision matrix."""
    columns = np.column_stack([x, np.ones(len(x))])
    precision = columns.T @ columns / NOISE**2 + np.diag([TAU_SCALE**-2, TAU_BIAS**-2])
    return np.linalg.solve(precision, columns.T @ (y - x) / NOISE**2), precision


@pytest.mark.parametrize("intercept", [True, False])
def test_means_and_sds_are_those_of_the_best_independent_gaussians(intercept):
    model, (x, y, site) = model_of(intercept=intercept), support()
    encoded = model._encode(x, {"site": site}, y, response=True)
    chain = model._posterior.chains[0]
    found = fit_within(chain, encoded.batch, {"site": 2}, torch.Generator().manual_seed(0))
    for position, label in enumerate(["new", "other"]):
        rows = site == label
        mean, precision = conjugate(x[rows, 0], y[rows])
        scale, bias = (found.means[f"{name}[0]|site"] for name in ("scale", "bias"))
        # The variational mean of a Gaussian target is exact, and so is 1 / sqrt(precision) as its sd; what
        # is left is the noise of 200 steps, a small part of an sd.
        sds = precision.diagonal() ** -0.5
        assert float(scale[3 + position]) == pytest.approx(mean[0], abs=0.5 * sds[0])
        assert float(bias[3 + position]) == pytest.approx(mean[1], abs=0.5 * sds[1])
        assert float(found.sds["scale[0]|site"][position]) == pytest.approx(sds[0], rel=0.25)
        assert float(found.sds["bias[0]|site"][position]) == pytest.approx(sds[1], rel=0.25)
    np.testing.assert_allclose(found.means["scale[0]|site"][:3], 0.1)
    assert found.draw(7, torch.Generator().manual_seed(0))["bias[0]|site"].shape == (7, 2, 1)
    assert all(parameter.grad is None for parameter in model.module.network.parameters())


@pytest.mark.parametrize("intercept", [True, False])
def test_predictions_follow_the_support(intercept, unmoved_rng):
    model, (x, y, site) = model_of(intercept=intercept), support(rows=(40, 4))
    rows, labels = np.array([[-2.0], [2.0], [2.0]]), {"site": np.array(["new", "new", "stranger"])}
    call = {"groups": labels, "new_groups": "adapt", "support": (x, y, {"site": site}), "draws": 100}
    with unmoved_rng():
        predicted = model.predict(rows, **call)["predictions"]["y"]
    mean = predicted.mean(["chain", "draw"]).to_numpy()
    scale_bias, _ = conjugate(x[:40, 0], y[:40])
    expected = [(1 + scale_bias[0]) * v + scale_bias[1] for v in (-2.0, 2.0)]
    np.testing.assert_allclose(mean[:2], expected, atol=0.25)
    # A site without support is drawn from Normal(0, tau^2), and far less certain.
    sds = predicted.std(["chain", "draw"]).to_numpy()
    assert sds[2] == pytest.approx(np.hypot(2 * TAU_SCALE, TAU_BIAS), rel=0.25)
    assert max(sds[:2]) < 0.3 * sds[2]
    np.testing.assert_array_equal(predicted, model.predict(rows, **call)["predictions"]["y"])
