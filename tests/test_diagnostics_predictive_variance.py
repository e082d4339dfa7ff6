"""Predictive variance by source against closed forms, quadrature, and the variance of drawn responses."""

import numpy as np
import pytest
import torch
from hand_made import frame, posterior_of
from numpy.polynomial.hermite_e import hermegauss
from scipy.special import expit

import pyro_armed as pa
from pyro_armed.diagnostics import predictive_variance
from pyro_armed.errors import ArgumentError, UnseenGroupError


def made(formula, family="gaussian", draws=2000, fixed=None, data=None):
    model = pa.ARMED(formula, frame() if data is None else data, family=family)
    model._posterior = posterior_of(model.module, draws=draws, chains=1, fixed=fixed)
    return model


def new_rows():
    data = frame(2, 3, seed=8)
    return data.assign(g="n" + data["g"], h="n" + data["h"])


# 1000 draws and 8 replicates: relative Monte Carlo errors of about 2 % (effects) and 4.5 % (parameters).
SLOPES = {"1|g_sigma": 0.7, "x|g_sigma": 0.3, "g_corr": [[1.0, 0.0], [0.6, 0.8]], "sigma": 0.5}


def test_new_groups_of_a_gaussian_model_in_closed_form():
    model = made("y ~ z + (1 + x | g)", fixed=SLOPES)
    rows = new_rows()
    found = predictive_variance(model, rows, new_groups="marginal")
    assert found.columns.tolist() == ["noise", "g", "parameters", "total"]
    assert found.index.tolist() == list(range(6))
    x = rows["x"].to_numpy()
    np.testing.assert_allclose(found["noise"], 0.25)
    effects = 0.49 + 2 * x * 0.6 * 0.7 * 0.3 + x**2 * 0.09
    np.testing.assert_allclose(found["g"], effects, rtol=0.1)
    eta = model.predict(rows, new_groups="population", kind="linear")["predictions"]["y"].to_numpy()
    np.testing.assert_allclose(found["parameters"], eta.var(axis=(0, 1)), rtol=0.25, atol=0.01)
    np.testing.assert_allclose(found["total"], found[["noise", "g", "parameters"]].sum(axis=1))


def test_crossed_factors_share_the_variance_exactly_where_the_link_is_the_identity():
    model = made("y ~ x + (1 | g) + (1 | h)", fixed={"1|g_sigma": 1.0, "1|h_sigma": 0.5, "sigma": 0.5})
    found = predictive_variance(model, new_rows(), new_groups="marginal")
    np.testing.assert_allclose(found["g"], 1.0, rtol=0.1)
    np.testing.assert_allclose(found["h"], 0.25, rtol=0.15)


def test_the_average_group_has_no_variance_of_effects():
    found = predictive_variance(made("y ~ x + (1 | g) + (1 | h)"), new_rows(), new_groups="population")
    assert (found[["g", "h"]] == 0).to_numpy().all()
    assert (found["parameters"] > 0).all()


def test_seen_groups_keep_what_their_rows_leave_open():
    """Var(u | y) = 1 / (n / sigma^2 + 1 / tau^2) for an intercept, whatever the other parameters are."""
    model = made("y ~ x + (1 | g)", fixed={"1|g_sigma": 0.8, "sigma": 0.5})
    rows = frame().iloc[[0, 4, 9]]
    found = predictive_variance(model, rows)
    np.testing.assert_allclose(found["g"], 1 / (4 / 0.25 + 1 / 0.64), rtol=0.1)
    mixed = predictive_variance(model, rows.assign(g=["g0", "new", "g2"]), new_groups="marginal")
    np.testing.assert_allclose(mixed["g"], [found["g"].iloc[0], 0.64, found["g"].iloc[2]], rtol=0.1)
    training = predictive_variance(model, draws=200)
    assert len(training) == 20
    np.testing.assert_allclose(training["g"], 1 / (4 / 0.25 + 1 / 0.64), rtol=0.25)


def test_a_nonlinear_link_on_the_scale_of_the_response():
    model = made("b ~ x + (1 | g)", "bernoulli", fixed={"Intercept": -1.0, "x": 0.4, "1|g_sigma": 1.5})
    rows = new_rows()
    found = predictive_variance(model, rows, new_groups="marginal")
    eta = model.predict(rows, new_groups="population", kind="linear", draws=1)["predictions"]["b"].to_numpy()[
        0, 0
    ]
    nodes, weights = hermegauss(41)
    p = expit(eta[:, None] + 1.5 * nodes)
    weights = weights / weights.sum()
    mean = p @ weights
    np.testing.assert_allclose(found["g"], (p**2) @ weights - mean**2, rtol=0.1)
    np.testing.assert_allclose(found["noise"], (p * (1 - p)) @ weights, rtol=0.05)
    np.testing.assert_allclose(found["total"], mean * (1 - mean), rtol=0.05)
    assert (found["parameters"] < 0.01).all()  # they are known


@pytest.mark.parametrize(
    ("family", "formula"),
    [("poisson", "count ~ x + (1 | g)"), ("gamma", "p ~ x + (1 | g)"), ("binomial", "p(s, t) ~ x + (1 | g)")],
)
def test_the_total_is_the_variance_of_drawn_responses(family, formula):
    data = frame().assign(x=lambda rows: rows["x"] / 4)
    fixed = {"alpha": 3.0} if family == "gamma" else {}
    model = made(formula, family, fixed={"1|g_sigma": 0.4, **fixed}, data=data)
    rows = new_rows().assign(x=0.2)
    found = predictive_variance(model, rows, new_groups="marginal", draws=2000)
    name = model.spec.response
    drawn = model.predict(rows, new_groups="marginal", kind="response")["predictions"][name].to_numpy()
    # Heavy right tails: the variance of 2000 draws is known to about 10 %.
    np.testing.assert_allclose(found["total"], drawn.var(axis=(0, 1)), rtol=0.4)
    total = drawn.var(axis=(0, 1)).mean()
    assert found["total"].mean() == pytest.approx(total, rel=0.15)


def test_the_seed_repeats_it(unmoved_rng):
    model = made("b ~ x + (1 | g)", "bernoulli", draws=30)
    with unmoved_rng():
        first, again, other = (predictive_variance(model, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_models_without_group_effects_have_noise_and_parameters():
    found = predictive_variance(made("y ~ x", fixed={"sigma": 0.5}))
    assert found.columns.tolist() == ["noise", "parameters", "total"]
    np.testing.assert_allclose(found["noise"], 0.25)


def test_bad_input():
    model = made("y ~ x + (1 | g)", draws=10)
    with pytest.raises(ArgumentError, match="replicates=1 must be a whole number of at least 2"):
        predictive_variance(model, replicates=1)
    with pytest.raises(ArgumentError, match="draws=0"):
        predictive_variance(model, draws=0)
    with pytest.raises(UnseenGroupError, match="'ng0'"):
        predictive_variance(model, new_rows())
    with pytest.raises(ArgumentError, match=r"that of family 'categorical' has levels"):
        predictive_variance(made("c ~ x + (1 | g)", "categorical", draws=4))
    with pytest.raises(ArgumentError, match="grouping factor 'noise' is called like a column"):
        predictive_variance(made("y ~ x + (1 | noise)", draws=4, data=frame().assign(noise=frame()["g"])))
    with pytest.raises(ArgumentError, match="needs the model itself"):
        predictive_variance(object())
    model._training = None
    with pytest.raises(ArgumentError, match="data is needed"):
        predictive_variance(model)
    with pytest.raises(ArgumentError, match="a loaded model does not have the training rows"):
        predictive_variance(model, frame())
    assert torch.get_default_dtype() == torch.float32
    assert len(predictive_variance(model, new_rows(), new_groups="marginal")) == 6
