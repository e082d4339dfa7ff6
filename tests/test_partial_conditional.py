"""Effects of some groups given rows: closed forms, quadrature, and what is given and what is not."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hand_made import design, frame, module_of, posterior_of
from scipy import stats
from torch import nn

from pyro_armed.partial_conditional import PartialConditional, draw_free_effects


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chain_of(one, draws, fixed=None, network=None):
    module = module_of(one, *(network or ()))
    return posterior_of(module, draws=draws, chains=1, fixed=fixed).chains[0]


def new_codes(one, encoded, *groups):
    return {g: one.spec.group(g).size + torch.arange(len(encoded.new_groups[g])) for g in groups}


def support(rows=6, seed=3, **columns) -> pd.DataFrame:
    return frame(n_groups=1, rows=rows, seed=seed).assign(**{"g": "new", **columns})


# --- a Gaussian response: the closed form ------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
def test_gaussian_effects_have_their_conjugate_posterior_at_each_draw(weighted):
    """Whitened by the closed form of their own draw they are standard normal; effects of h are given."""
    draws = 8000
    weights = {"weights": "w"} if weighted else {}
    one = design("y ~ x + offset(p) + (1 + z | g) + (1 | h)", frame(), **weights)
    rows = support()
    encoded = one.encode(rows, response=True)
    chain = chain_of(one, draws)
    found = draw_free_effects(chain, encoded.batch, new_codes(one, encoded, "g"), generator())
    u = torch.stack([found["1|g"][:, 0], found["z|g"][:, 0]], -1).numpy()

    value = {name: tensor.numpy() for name, tensor in chain.report().items()}
    tau = np.stack([value["1|g_sigma"], value["z|g_sigma"]], -1)
    prior = tau[:, :, None] * value["g_corr"] * tau[:, None, :]
    design_rows = np.column_stack([np.ones(6), rows["z"]])
    given = value["Intercept"][:, None] + value["x"][:, None] * rows["x"].to_numpy() + rows["p"].to_numpy()
    given = given + value["1|h"][:, rows["h"].str[1:].astype(int)]
    noise = (rows["w"].to_numpy() if weighted else np.ones(6)) / value["sigma"][:, None] ** 2
    precision = np.linalg.inv(prior) + np.einsum("nk,sn,nl->skl", design_rows, noise, design_rows)
    score = np.einsum("nk,sn,sn->sk", design_rows, noise, rows["y"].to_numpy() - given)
    mean = np.linalg.solve(precision, score[..., None])[..., 0]
    white = np.einsum("sji,sj->si", np.linalg.cholesky(precision), u - mean)
    np.testing.assert_allclose(white.mean(0), 0.0, atol=4 / math.sqrt(draws))
    np.testing.assert_allclose(np.cov(white.T), np.eye(2), atol=4 * math.sqrt(2 / draws))


def test_gaussian_effects_of_two_new_crossed_groups_are_drawn_together():
    """The joint posterior of (u_g, u_h) of two new groups whose rows are the same."""
    draws = 8000
    fixed = {"Intercept": 0.0, "x": 0.0, "1|g_sigma": 1.5, "1|h_sigma": 0.8, "sigma": 1.0}
    one = design("y ~ x + (1 | g) + (1 | h)", frame())
    rows = support(4, h=["new", "new", "h0", "new"], y=[2.0, 1.0, 3.0, -0.5])
    encoded = one.encode(rows, response=True)
    chain = chain_of(one, draws, {**fixed, "1|h": [0.4, -0.2, 0.1]})
    chain.values["x"] *= 0  # and the intercept, which the model keeps at the mean of x
    found = draw_free_effects(chain, encoded.batch, new_codes(one, encoded, "g", "h"), generator())
    u = torch.stack([found["1|g"][:, 0], found["1|h"][:, 0]], -1).numpy()

    both = np.array([[1, 1], [1, 1], [1, 0], [1, 1]])
    precision = np.diag([1.5**-2, 0.8**-2]) + both.T @ both
    mean = np.linalg.solve(precision, both.T @ (rows["y"].to_numpy() - np.array([0, 0, 0.4, 0])))
    covariance = np.linalg.inv(precision)
    np.testing.assert_allclose(u.mean(0), mean, atol=4 * math.sqrt(covariance.max() / draws))
    np.testing.assert_allclose(np.cov(u.T), covariance, atol=5 * covariance.max() * math.sqrt(2 / draws))


def test_rows_of_zero_weight_tell_nothing():
    one = design("y ~ x + (1 | g)", frame(), weights="w")
    encoded = one.encode(support(w=[1.0, 1.0, 1.0, 0.0, 0.0, 0.0], y=[1.0, 2, 3, 90, 90, 90]), response=True)
    fewer = one.encode(support().iloc[:3].assign(w=1.0, y=[1.0, 2, 3]), response=True)
    chain = chain_of(one, 50)
    found, expected = (
        draw_free_effects(chain, rows.batch, new_codes(one, rows, "g"), generator())["1|g"]
        for rows in (encoded, fewer)
    )
    torch.testing.assert_close(found, expected)


# --- other responses: quadrature ---------------------------------------------------------------------------

GRID = np.linspace(-12, 12, 4001)


def quadrature(log_density):
    """Mean, sd and distribution function on the grid of an unnormalised log density."""
    weight = np.exp(log_density - log_density.max())
    weight /= weight.sum()
    mean = weight @ GRID
    return mean, math.sqrt(weight @ (GRID - mean) ** 2), np.cumsum(weight)


@pytest.mark.parametrize("ones", [6, 4])
def test_bernoulli_intercept_has_the_posterior_of_quadrature(ones):
    """Also where all six outcomes are alike and the posterior is skewed, far from its Gaussian."""
    draws, tau = 6000, 3.0
    fixed = {"Intercept": 0.3, "x": 0.0, "1|g_sigma": tau}
    one = design("b ~ x + (1 | g)", frame(), "bernoulli")
    encoded = one.encode(support(b=[1] * ones + [0] * (6 - ones)), response=True)
    found = draw_free_effects(
        chain_of(one, draws, fixed), encoded.batch, new_codes(one, encoded, "g"), generator()
    )["1|g"][:, 0].numpy()
    eta = GRID + 0.3
    log_density = ones * -np.logaddexp(0, -eta) - (6 - ones) * np.logaddexp(0, eta) - 0.5 * (GRID / tau) ** 2
    mean, sd, distribution = quadrature(log_density)
    assert found.mean() == pytest.approx(mean, abs=4 * sd / math.sqrt(draws))
    assert found.std() == pytest.approx(sd, rel=5 / math.sqrt(2 * draws))
    assert stats.kstest(found, lambda x: np.interp(x, GRID, distribution)).pvalue > 1e-3


def test_binomial_and_poisson_count_trials_and_offsets():
    draws = 6000
    one = design("p(s, t) ~ x + offset(z) + (1 | g)", frame(), "binomial")
    rows = support(s=[0, 1, 0, 2, 0, 0])
    encoded = one.encode(rows, response=True)
    fixed = {"Intercept": 0.0, "x": 0.0, "1|g_sigma": 2.0}
    found = draw_free_effects(
        chain_of(one, draws, fixed), encoded.batch, new_codes(one, encoded, "g"), generator()
    )["1|g"][:, 0].numpy()
    eta = GRID[:, None] + rows["z"].to_numpy()
    s, t = rows["s"].to_numpy(), rows["t"].to_numpy()
    mean, sd, _ = quadrature((s * eta - t * np.logaddexp(0, eta)).sum(1) - 0.5 * (GRID / 2.0) ** 2)
    assert found.mean() == pytest.approx(mean, abs=4 * sd / math.sqrt(draws))
    assert found.std() == pytest.approx(sd, rel=5 / math.sqrt(2 * draws))


def two_dimensional(log_likelihood, tau):
    """Means and covariance of two effects by brute force."""
    axis = np.linspace(-9, 9, 361)
    a, b = np.meshgrid(axis, axis, indexing="ij")
    log_density = log_likelihood(a, b) - 0.5 * (a / tau[0]) ** 2 - 0.5 * (b / tau[1]) ** 2
    weight = np.exp(log_density - log_density.max())
    points = np.stack([a.ravel(), b.ravel()])
    return points @ weight.ravel() / weight.sum(), np.cov(points, aweights=weight.ravel(), ddof=0)


def bernoulli(y, eta):
    return np.where(y == 1, -np.logaddexp(0, -eta), -np.logaddexp(0, eta))


def test_bernoulli_intercept_and_slope_have_the_posterior_of_quadrature():
    draws = 6000
    fixed = {"Intercept": 0.0, "x": 0.0, "1|g_sigma": 1.5, "z|g_sigma": 2.0}
    one = design("b ~ x + (1 + z || g)", frame(), "bernoulli")
    rows = support(b=[1, 1, 1, 0, 1, 1], z=[0.5, 1.0, 1.5, -1.0, 2.0, 0.2])
    encoded = one.encode(rows, response=True)
    drawn = draw_free_effects(
        chain_of(one, draws, fixed), encoded.batch, new_codes(one, encoded, "g"), generator()
    )
    found = np.stack([drawn["1|g"][:, 0], drawn["z|g"][:, 0]])
    mean, covariance = two_dimensional(
        lambda a, b: sum(bernoulli(y, a + b * z) for y, z in zip(rows["b"], rows["z"], strict=True)),
        (1.5, 2.0),
    )
    np.testing.assert_allclose(found.mean(1), mean, atol=4 * math.sqrt(covariance.max() / draws))
    np.testing.assert_allclose(np.cov(found), covariance, atol=6 * covariance.max() / math.sqrt(draws))


def test_bernoulli_crossed_new_groups_have_the_posterior_of_quadrature():
    draws = 6000
    fixed = {"Intercept": 0.0, "x": 0.0, "1|g_sigma": 2.0, "1|h_sigma": 1.0, "1|h": [0.5, -0.5, 0.0]}
    one = design("b ~ x + (1 | g) + (1 | h)", frame(), "bernoulli")
    rows = support(b=[1, 1, 1, 1, 1, 0], h=["new", "new", "h0", "new", "new", "new"])
    encoded = one.encode(rows, response=True)
    drawn = draw_free_effects(
        chain_of(one, draws, fixed), encoded.batch, new_codes(one, encoded, "g", "h"), generator()
    )
    found = np.stack([drawn["1|g"][:, 0], drawn["1|h"][:, 0]])
    mean, covariance = two_dimensional(
        lambda a, b: 4 * bernoulli(1, a + b) + bernoulli(0, a + b) + bernoulli(1, a + 0.5), (2.0, 1.0)
    )
    np.testing.assert_allclose(found.mean(1), mean, atol=4 * math.sqrt(covariance.max() / draws))
    np.testing.assert_allclose(np.cov(found), covariance, atol=6 * covariance.max() / math.sqrt(draws))


# --- all kinds of models -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "response"),
    [
        ("gaussian", "y"),
        ("student_t", "y"),
        ("bernoulli", "b"),
        ("binomial", "p(s, t)"),
        ("categorical", "c"),
        ("ordinal", "o"),
        ("poisson", "count"),
        ("negative_binomial", "count"),
        ("gamma", "p"),
        ("beta", "p"),
    ],
)
def test_families(family, response):
    one = design(f"{response} ~ x + (1 + z | g) + (0 + x | h)", frame(), family)
    encoded = one.encode(pd.concat([support(), support(4, seed=4, g="newer", h="other")]), response=True)
    chain = chain_of(one, 30)
    found = draw_free_effects(chain, encoded.batch, new_codes(one, encoded, "g", "h"), generator())
    for name, like in chain.values.items():
        if "|" in name and not name.endswith("_sigma"):
            new = 2 if name.endswith("|g") else 1
            assert found[name].shape == (30, new, *like.shape[2:])
            assert found[name].isfinite().all()
            assert (found[name].std(0) > 0).all()


def test_effects_of_an_auxiliary_parameter_learn_from_the_spread():
    one = design(["y ~ x + (1 | g)", "sigma ~ x + (1 | g)"], frame())
    narrow, wide = ([0.01, -0.01, 0.02, 0.0, -0.02, 0.01], [9.0, -8.0, 7.0, -9.0, 8.0, -7.0])
    rows = pd.concat([support(y=narrow), support(y=wide, g="newer")])
    encoded = one.encode(rows, response=True)
    fixed = {"Intercept": 0.0, "x": 0.0, "sigma_Intercept": 0.0, "sigma_x": 0.0, "sigma_1|g_sigma": 2.0}
    found = draw_free_effects(
        chain_of(one, 300, fixed), encoded.batch, new_codes(one, encoded, "g"), generator()
    )["sigma_1|g"].mean(0)
    assert found[0] < -2.0
    assert found[1] > 1.5


def test_slopes_on_features_explain_the_support():
    one = design("y ~ x + z + (1 + features | g)", frame(), network=True)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    fixed = {"1|g_sigma": 2.0, "features|g_sigma": 2.0, "sigma": 0.05}
    chain = chain_of(one, 40, fixed, (network, "2", 3))
    rows = support(12, y=np.linspace(-1, 1, 12), x=np.linspace(0, 2, 12), z=0.0)
    encoded = one.encode(rows, response=True)
    found = draw_free_effects(chain, encoded.batch, new_codes(one, encoded, "g"), generator())
    grown = {name: torch.cat([value, found[name]], 1) if name in found else value[:, None]
             for name, value in chain.values.items()}  # fmt: skip
    module = chain.module
    eta = module.linear_predictor(module.spec.mu, grown, encoded.batch, module.hidden(encoded.batch))
    np.testing.assert_allclose(eta.detach().mean(0), rows["y"], atol=0.15)


def test_same_seed_same_effects_and_no_global_state(unmoved_rng):
    one = design("b ~ x + (1 | g)", frame(), "bernoulli")
    encoded = one.encode(support(), response=True)
    chain, free = chain_of(one, 20), new_codes(one, encoded, "g")
    with unmoved_rng():
        first = draw_free_effects(chain, encoded.batch, free, generator(4))["1|g"]
    assert torch.equal(first, draw_free_effects(chain, encoded.batch, free, generator(4))["1|g"])
    assert not torch.equal(first, draw_free_effects(chain, encoded.batch, free, generator(5))["1|g"])


def test_draws_are_taken_some_at_a_time(monkeypatch):
    one = design("b ~ x + (1 + z | g)", frame(), "bernoulli")
    encoded = one.encode(support(), response=True)
    chain, free = chain_of(one, 20), new_codes(one, encoded, "g")
    conditional = PartialConditional(chain.module, encoded.batch, None, free)
    assert conditional.draws_at_once() > 20
    monkeypatch.setattr("pyro_armed.partial_conditional._ELEMENTS", 100)
    assert conditional.draws_at_once() == 4
    assert draw_free_effects(chain, encoded.batch, free, generator())["z|g"].shape == (20, 1)
