"""The global variables as one vector: its density is the model's, Jacobian included."""

import numpy as np
import pyro
import pytest
import torch
from hand_made import design, frame, module_of
from pyro import poutine
from scipy import integrate, stats
from torch import nn
from torch.distributions import biject_to

from pyro_armed.global_space import GlobalSpace

MODELS = {
    "slopes": ("y ~ x + c + (1 + z | g)", "gaussian"),
    "crossed": ("b ~ x + (1 | g) + (1 + x | h)", "bernoulli"),
    "ordinal": ("o ~ x + (1 | g)", "ordinal"),
    "categorical": ("c ~ x + (1 | g)", "categorical"),
    "scale": (["y ~ x + (1 | g)", "sigma ~ z + (1 | g)"], "gaussian"),
    "student": ("y ~ 1 + (1 + x + z | g)", "student_t"),
    "count": ("count ~ x + (1 | g)", "negative_binomial"),
}


def space_of(key):
    formula, family = MODELS[key]
    module = module_of(design(formula, frame(), family))
    return module, GlobalSpace(module)


def points(space, count, seed=0):
    noise = torch.randn(count, space.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return space.start + 0.5 * noise


@pytest.mark.parametrize("key", MODELS)
def test_density_is_that_of_the_traced_model_and_the_jacobian(key):
    module, space = space_of(key)
    theta = points(space, 3)
    _, density = space.evaluate(theta)
    for row, ours in zip(theta, density, strict=True):
        expected, data = torch.zeros((), dtype=torch.float64), {}
        for site, part in zip(space.sites, row.split(space.sizes), strict=True):
            bijection = biject_to(site.support)
            raw = part.reshape(site.unconstrained)
            data[site.name] = bijection(raw)
            expected += bijection.log_abs_det_jacobian(raw, data[site.name]).sum()
        with pyro.validation_enabled(False):
            trace = poutine.trace(poutine.condition(module, data=data)).get_trace()
        trace.compute_log_prob()
        expected += sum(trace.nodes[name]["log_prob_sum"] for name in data)
        torch.testing.assert_close(ours, expected)


def test_density_by_hand():
    _module, space = space_of("slopes")
    theta = points(space, 4)
    _, density = space.evaluate(theta)
    order = {
        site.name: slice(sum(space.sizes[:k]), sum(space.sizes[: k + 1]))
        for k, site in enumerate(space.sites)
    }
    rows = theta.numpy()
    expected = 0.0
    for name in ("x_raw", "c_raw", "Intercept_raw"):
        expected = expected + stats.norm(0, 2.5).logpdf(rows[:, order[name]]).sum(1)
    data = frame()
    s = data["y"].std(ddof=0)
    for name, degrees, scale in (
        ("sigma", 4, s),
        ("1|g_sigma", 3, 2.5 * s),
        ("z|g_sigma", 3, 2.5 * s / data["z"].std(ddof=0)),
    ):
        log_sd = rows[:, order[name]][:, 0]
        expected = expected + np.log(2) + stats.t(degrees, scale=scale).logpdf(np.exp(log_sd)) + log_sd
    # LKJ(1) of two effects: the correlation is uniform.
    correlation = np.tanh(rows[:, order["g_corr_cholesky"]][:, 0])
    expected = expected + np.log(0.5) + np.log1p(-(correlation**2))
    np.testing.assert_allclose(density.numpy(), expected, rtol=1e-9)


def test_density_of_a_correlation_integrates_to_one():
    _, space = space_of("slopes")
    position = sum(space.sizes[: [site.name for site in space.sites].index("g_corr_cholesky")])

    def density(value):
        theta = torch.zeros(1, space.size, dtype=torch.float64)
        theta[0, position] = value
        return float(torch.exp(space.evaluate(theta)[1] - space.evaluate(torch.zeros_like(theta))[1]))

    # At zero the density of the unconstrained value is 1/2.
    assert integrate.quad(density, -12, 12)[0] == pytest.approx(2.0, rel=1e-6)


@pytest.mark.parametrize("key", MODELS)
def test_rows_do_not_depend_on_each_other(key):
    _, space = space_of(key)
    theta = points(space, 3)
    values, density = space.evaluate(theta)
    for row in range(3):
        alone, one = space.evaluate(theta[row : row + 1])
        torch.testing.assert_close(one[0], density[row])
        for name, value in alone.items():
            torch.testing.assert_close(value, values[name][row : row + 1])


@pytest.mark.parametrize("key", MODELS)
def test_values_are_what_the_model_takes(key):
    module, space = space_of(key)
    values, _ = space.evaluate(points(space, 3))
    assert all(value.shape[:2] == (3, 1) for value in values.values())
    for predictor in module.spec.predictors:
        eta = module.linear_predictor(predictor, values, module.data, random=False)
        assert eta.shape[:2] == (3, module.data.size)
    for name, value in values.items():
        if name.endswith("_sigma"):
            assert (value > 0).all()
        if name.endswith("_corr"):
            torch.testing.assert_close(
                (value @ value.mT).diagonal(dim1=-2, dim2=-1).min(), torch.ones((), dtype=torch.float64)
            )


def test_which_values_are_of_the_effects_covariance():
    _, space = space_of("crossed")

    def marked(mask):
        parts = zip(space.sites, mask.split(space.sizes), strict=True)
        return {site.name: set(part.tolist()) for site, part in parts}

    neither = {"x_raw": {False}, "Intercept_raw": {False}}
    sds = {"1|g_sigma", "1|h_sigma", "x|h_sigma"}
    assert marked(space.scales) == neither | {name: {True} for name in sds} | {"h_corr_cholesky": {False}}
    assert marked(space.correlations) == neither | {name: {False} for name in sds} | {
        "h_corr_cholesky": {True}
    }


def test_group_effects_are_not_global():
    for key in MODELS:
        _, space = space_of(key)
        assert not any(site.name.endswith("_offset") for site in space.sites)
        assert space.size == sum(space.sizes) == len(space.start) == len(space.scales)
        assert torch.isfinite(space.start).all()


def test_evaluates_inside_a_plate():
    _module, space = space_of("slopes")
    theta = points(space, 3)
    _, density = space.evaluate(theta)
    with pyro.plate("particles", 3, dim=-2):
        _, inside = space.evaluate(theta)
    torch.testing.assert_close(inside, density)


def test_coefficients_of_a_networks_features():
    network = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    module = module_of(design("y ~ x + z + (1 | g)", frame(), network=True), network, "2", 4)
    space = GlobalSpace(module)
    values, _ = space.evaluate(points(space, 2))
    assert values["features"].shape == (2, 1, 4)


def test_gradient_of_the_density():
    _, space = space_of("student")
    theta = points(space, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: space.evaluate(t)[1], (theta,))


def test_leaves_the_random_state_alone(unmoved_rng):
    module, _ = space_of("slopes")
    with unmoved_rng():
        space = GlobalSpace(module)
        space.evaluate(points(space, 2))
