"""Priors: the documented defaults, the user's own, and the change from raw values to the data's scale."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from hand_made import design, frame, module_of
from pyro import poutine
from scipy import stats
from torch import nn

from pyro_armed.errors import ArgumentError
from pyro_armed.families import HalfStudentT
from pyro_armed.local import local_parameters
from pyro_armed.module import MixedEffectsModule
from pyro_armed.priors import PriorTable


def table(formulas="y ~ x + c + (1 + z | g)", user=None, family="gaussian", features=0, **options):
    spec = design(formulas, frame(), family, **options).spec
    return PriorTable(spec.with_features(features) if features else spec, user)


def normal(prior):
    base = prior.distribution
    while hasattr(base, "base_dist"):
        base = base.base_dist
    return base.loc, base.scale


# --- defaults ----------------------------------------------------------------------------------------------


def test_documented_defaults_of_a_gaussian_response():
    data, found = frame(), table()
    s = data["y"].std(ddof=0)
    assert list(found) == ["Intercept", "x", "c", "1|g_sigma", "z|g_sigma", "g_corr", "sigma"]
    loc, scale = normal(found["Intercept"])
    assert (float(loc), float(scale)) == pytest.approx((data["y"].mean(), 2.5 * s))
    loc, scale = normal(found["x"])
    assert (float(loc), float(scale)) == pytest.approx((0.0, 2.5 * s / data["x"].std(ddof=0)))
    _, scale = normal(found["c"])
    sds = [(data["c"] == level).std(ddof=0) for level in ("mid", "top")]
    np.testing.assert_allclose(scale, 2.5 * s / np.array(sds))
    for name, unit in [("1|g_sigma", 1.0), ("z|g_sigma", data["z"].std(ddof=0))]:
        value = torch.tensor(0.7).double()
        expected = np.log(2) + stats.t.logpdf(0.7, 3, scale=2.5 * s / unit)
        assert float(found[name].distribution.log_prob(value)) == pytest.approx(expected)
    expected = np.log(2) + stats.t.logpdf(0.7, 4, scale=s)
    assert float(found["sigma"].distribution.log_prob(torch.tensor(0.7).double())) == pytest.approx(expected)
    assert isinstance(found["g_corr"].distribution, dist.LKJCholesky)
    assert float(found["g_corr"].distribution.concentration) == 1.0


def test_other_links_take_one_as_the_scale():
    data = frame()
    found = table("b ~ x + (1 | g)", family="bernoulli")
    loc, scale = normal(found["Intercept"])
    mean = data["b"].mean()
    assert (float(loc), float(scale)) == pytest.approx((math.log(mean / (1 - mean)), 2.5), abs=1e-9)
    _, scale = normal(found["x"])
    assert float(scale) == pytest.approx(2.5 / data["x"].std(ddof=0))
    assert "sigma" not in found


def test_features_share_the_scale():
    s = frame()["y"].std(ddof=0)
    found = table("y ~ x + z + features + (1 + features | g)", features=4, network=True)
    _, scale = normal(found["features"])
    np.testing.assert_allclose(scale, np.full(4, 2.5 * s / 2.0))
    assert "x" not in found
    sd = found["features|g_sigma"].distribution
    expected = np.log(2) + stats.norm.logpdf(0.3, scale=2.5 * s / 2.0)
    assert float(sd.log_prob(torch.full((4,), 0.3).double())) == pytest.approx(4 * expected)


def test_a_modelled_sigma_is_centred_at_the_response():
    s = frame()["y"].std(ddof=0)
    found = table(["y ~ x + (1 | g)", "sigma ~ x + (1 | g)"])
    loc, scale = normal(found["sigma_Intercept"])
    assert (float(loc), float(scale)) == pytest.approx((math.log(s), 2.5))
    assert "sigma" not in found
    expected = np.log(2) + stats.t.logpdf(0.7, 3, scale=2.5)
    found = found["sigma_1|g_sigma"].distribution
    assert float(found.log_prob(torch.tensor(0.7).double())) == pytest.approx(expected)


def test_levels_of_a_response_have_priors_each():
    found = table("c ~ x + (1 + z | g)", family="categorical")
    for name in ("Intercept", "x", "1|g_sigma", "z|g_sigma"):
        assert found[name].raw.event_shape == (2,)
    assert found["g_corr"].raw.event_shape == (2, 2)
    assert table("o ~ x + (1 | g)", family="ordinal")["threshold"].raw.event_shape == (2,)


def test_defaults_follow_the_units_of_the_data():
    """A response in other units: the same priors in those units, and the same raw priors."""
    data = frame()
    one = PriorTable(design("y ~ x + (1 + z | g)", data).spec)
    scaled = data.assign(y=1000.0 * data["y"], x=data["x"] / 50.0)
    other = PriorTable(design("y ~ x + (1 + z | g)", scaled).spec)
    assert float(normal(other["x"])[1]) == pytest.approx(50_000 * float(normal(one["x"])[1]))
    for name in ("x", "Intercept"):
        value = torch.tensor(0.3).double()
        assert float(other[name].raw.log_prob(value)) == pytest.approx(float(one[name].raw.log_prob(value)))


# --- raw values --------------------------------------------------------------------------------------------

USER = {
    "none": {},
    "normal": {"x": dist.Normal(1.0, 0.5), "Intercept": dist.Normal(-2.0, 3.0)},
    "student": {"x": dist.StudentT(4.0, 0.3, 2.0)},
    "laplace": {"c": dist.Laplace(torch.tensor([0.5, -1.0]), 0.7)},
    "cauchy": {"Intercept": dist.Cauchy(0.0, 4.0)},
    "transformed": {"x": dist.LogNormal(0.0, 0.5)},
    "mixture": {
        "x": dist.MixtureSameFamily(
            dist.Categorical(torch.tensor([0.3, 0.7])),
            dist.Normal(torch.tensor([-1.0, 2.0]), torch.tensor([0.5, 1.0])),
        )
    },
    "affine": {
        "x": dist.TransformedDistribution(dist.Normal(0.0, 1.0), [dist.transforms.AffineTransform(2.0, 3.0)])
    },
    "horseshoe-like": {"c": dist.Normal(0.0, torch.tensor([0.1, 3.0]))},
    "bounded": {"x": dist.Uniform(0.0, 3.0)},
    "sd": {"1|g_sigma": dist.Exponential(2.0), "sigma": dist.Gamma(2.0, 1.0)},
    "corr": {"g_corr": dist.LKJCholesky(2, 4.0)},
}


@pytest.mark.parametrize("name", USER)
def test_density_of_the_raw_site_is_that_on_the_datas_scale_times_the_jacobian(name):
    made = design("y ~ x + c + (1 + z | g)", frame())
    priors = PriorTable(made.spec, USER[name])
    module = MixedEffectsModule(made.spec, priors, data=made.training.batch)
    with local_parameters():
        trace = poutine.trace(module).get_trace()
    trace.compute_log_prob()
    told = trace.nodes
    for key in ("x", "c", "1|g_sigma", "sigma"):
        raw = told[f"{key}_raw" if f"{key}_raw" in told else key]
        prior = USER[name].get(key, None)
        value = told[key]["value"]
        if prior is None:
            density = priors[key].distribution.log_prob(value)
        else:
            density = prior.log_prob(value.float()).sum()
        jacobian = priors[key].unit.log().expand(value.shape).sum()
        assert float(raw["log_prob"]) == pytest.approx(float(density + jacobian), rel=1e-5), key
    # The reported intercept is at zero of the columns; its prior holds at their mean.
    prior = priors["Intercept"]
    center = prior.shift + prior.unit * told["Intercept_raw"]["value"]
    density = USER[name].get("Intercept", prior.distribution).log_prob(center)
    assert float(told["Intercept_raw"]["log_prob"]) == pytest.approx(
        float(density + prior.unit.log()), rel=1e-5
    )


@pytest.mark.parametrize("name", USER)
def test_draws_have_the_users_prior(name):
    made = design("y ~ x + c + (1 + z | g)", frame())
    priors = PriorTable(made.spec, USER[name])
    for key, prior in USER[name].items():
        if key == "g_corr":
            assert priors[key].raw.event_shape == (2, 2)
            continue
        chosen = priors[key]
        drawn = chosen.shift + chosen.unit * chosen.raw.sample((400,))
        expected = prior.expand(drawn.shape).sample().double()
        for found, wanted in zip(drawn.reshape(400, -1).T, expected.reshape(400, -1).T, strict=True):
            assert stats.ks_2samp(found.numpy(), wanted.numpy()).pvalue > 1e-4
        assert drawn.dtype == torch.float64


def test_a_users_prior_is_not_changed():
    prior = dist.Normal(torch.tensor(1.0), torch.tensor(2.0))
    found = table(user={"x": prior})
    found.apply(lambda tensor: tensor.float() * 0)
    assert (float(prior.loc), float(prior.scale), prior.scale.dtype) == (1.0, 2.0, torch.float32)


def test_describe_is_on_the_datas_scale():
    told = table(user={"x": dist.Normal(1.0, 0.5)}).describe()
    assert float(told["x"].loc) == 1.0
    assert isinstance(told["1|g_sigma"], HalfStudentT)


# --- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "message"),
    [
        ({"xx": dist.Normal(0.0, 1.0)}, r"priors has 'xx'.* Did you mean 'x'\? Known: Intercept, x, c"),
        ({"completely else": dist.Normal(0.0, 1.0)}, "priors has 'completely else', which this model"),
        ({"x": 1.0}, r"prior of 'x' must be a Pyro distribution .* not float"),
        ({"x": torch.distributions.Normal(0.0, 1.0)}, r"prior of 'x' .* take pyro.distributions.Normal"),
        ({"x": dist.Normal}, r"prior of 'x' must be a Pyro distribution .* not "),
        (
            {"x": dist.Normal(torch.zeros(3), 1.0)},
            r"prior of 'x' has shape \(3,\); the parameter has shape \(\)",
        ),
        ({"c": dist.Normal(torch.zeros(3), 1.0)}, r"prior of 'c' has shape \(3,\); .* shape \(2,\)"),
        ({"sigma": dist.Normal(0.0, 1.0)}, r"prior of 'sigma' must be positive, such as dist.HalfNormal"),
        ({"1|g_sigma": dist.Uniform(-1.0, 1.0)}, r"prior of '1\|g_sigma' must be positive"),
        ({"g_corr": dist.Normal(0.0, 1.0)}, r"prior of 'g_corr'"),
        ({"g_corr": dist.LKJCholesky(3, 1.0)}, r"prior of 'g_corr' has shape \(3, 3\)"),
        ({"x": dist.Poisson(3.0)}, r"prior of 'x' .*continuous"),
        ({"x": dist.Dirichlet(torch.ones(2))}, r"prior of 'x' has shape \(2,\)"),
    ],
)
def test_bad_priors(user, message):
    with pytest.raises(ArgumentError, match=message):
        table(user=user)


def test_priors_of_thresholds_must_be_ordered():
    with pytest.raises(ArgumentError, match="prior of 'threshold'"):
        table("o ~ x + (1 | g)", {"threshold": dist.Normal(torch.zeros(2), 1.0)}, "ordinal")


def test_priors_must_be_a_mapping():
    with pytest.raises(ArgumentError, match="priors"):
        table(user=[dist.Normal(0.0, 1.0)])


def test_a_network_has_no_prior_on_its_inputs():
    with pytest.raises(ArgumentError, match=r"priors has 'x', which this model does not have"):
        table("y ~ x + z + (1 | g)", {"x": dist.Normal(0.0, 1.0)}, features=3, network=True)


def test_draws_of_the_model_have_the_priors_spread():
    """A network's population prediction at the prior is on the response's scale, whatever its width."""
    torch.manual_seed(0)
    data = frame(20, 4)
    spreads = []
    for width in (4, 64):
        network = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1))
        module = module_of(design("y ~ x + z + (1 | g)", data, network=True), network, "2", width)
        assert "features" in module.priors
        with local_parameters():
            drawn = module.priors["features"].distribution.sample((300,))
        hidden, _ = module.hidden(module.data)
        spreads.append(float((hidden.detach() @ drawn.T).std()))
    s = data["y"].std()
    assert all(0.1 * s < spread < 2.6 * s for spread in spreads)


def test_positive_priors_of_vectors():
    prior = dist.HalfNormal(torch.tensor([1.0, 2.0])).to_event(1)
    found = table(
        "y ~ x + (0 + c | g)", {"c|g_sigma": dist.HalfNormal(torch.tensor([1.0, 2.0, 3.0])).to_event(1)}
    )
    assert found["c|g_sigma"].raw.event_shape == (3,)
    with pytest.raises(ArgumentError, match=r"prior of 'c\|g_sigma' has shape \(2,\); .* shape \(3,\)"):
        table("y ~ x + (0 + c | g)", {"c|g_sigma": prior})
