"""Draws of the global variables and of the group effects: against integrals over a grid, and part by part."""

import math

import numpy as np
import pytest
import torch
from hand_made import frame
from hand_made_guides import fitted, grouped, guide_of
from scipy import stats
from scipy.special import roots_hermitenorm

from pyro_armed import global_draws
from pyro_armed.global_draws import correct_globals, draw_effects, marginal, quadrature_order

F64 = torch.float64


def moments(grids, log_density):
    """Means, sds and log integral of a density on a product of equally spaced grids."""
    axes = np.meshgrid(*grids, indexing="ij")
    weight = np.exp(log_density - log_density.max())
    total = weight.sum()
    means = [float((weight * axis).sum() / total) for axis in axes]
    sds = [
        math.sqrt((weight * (axis - mean) ** 2).sum() / total) for axis, mean in zip(axes, means, strict=True)
    ]
    volume = math.prod(grid[1] - grid[0] for grid in grids)
    return means, sds, math.log(total * volume) + log_density.max()


def gaussian_grid(data):
    """log p(y, intercept, log tau, log sigma) of ``y ~ 1 + (1 | g)`` from sums of squares."""
    y = data["y"].to_numpy().reshape(12, 6)
    center, s = y.mean(), y.std()
    grids = [np.linspace(center - 2.5, center + 2.5, 71), np.linspace(-5, 2, 91), np.linspace(-0.8, 0.8, 71)]
    mu, log_tau, log_sigma = np.meshgrid(*grids, indexing="ij")
    tau, sigma = np.exp(log_tau), np.exp(log_sigma)
    total = stats.norm(center, 2.5 * s).logpdf(mu)
    total += np.log(2) + stats.t(3, scale=2.5 * s).logpdf(tau) + log_tau
    total += np.log(2) + stats.t(4, scale=s).logpdf(sigma) + log_sigma
    within = ((y - y.mean(1, keepdims=True)) ** 2).sum(1)
    for group in range(12):
        variance = sigma**2 + 6 * tau**2
        total += -0.5 * (within[group] / sigma**2 + 6 * (y[group].mean() - mu) ** 2 / variance)
        total += -0.5 * (6 * math.log(2 * math.pi) + 5 * np.log(sigma**2) + np.log(variance))
    return moments(grids, total)


def bernoulli_grid(data):
    """log p(y, intercept, log tau) of ``b ~ 1 + (1 | g)`` by quadrature with many nodes."""
    successes = data["b"].to_numpy().reshape(12, 6).sum(1)
    center = math.log(data["b"].mean() / (1 - data["b"].mean()))
    grids = [np.linspace(center - 3, center + 3, 81), np.linspace(-6, 2.5, 121)]
    mu, log_tau = np.meshgrid(*grids, indexing="ij")
    total = stats.norm(center, 2.5).logpdf(mu)
    total += np.log(2) + stats.t(3, scale=2.5).logpdf(np.exp(log_tau)) + log_tau
    nodes, weights = roots_hermitenorm(81)
    eta = mu[..., None] + np.exp(log_tau)[..., None] * nodes
    yes, no = -np.logaddexp(0, -eta), -np.logaddexp(0, eta)
    for k in successes:
        log_terms = k * yes + (6 - k) * no + np.log(np.maximum(weights, 1e-300) / weights.sum())
        total += np.logaddexp.reduce(log_terms, axis=-1)
    return moments(grids, total)


def check_against_grid(guide, result, order, means, sds, log_evidence):
    draws = correct_globals(guide, 2000, seed=0)
    assert result.converged
    assert draws.corrected
    assert draws.khat < 0.7
    theta = draws.theta.numpy()
    raw = {site.name: k for k, site in enumerate(guide.space.sites)}
    module = guide.space.module
    prior = module.priors["Intercept"]
    theta[:, raw["Intercept_raw"]] = float(prior.shift) + float(prior.unit) * theta[:, raw["Intercept_raw"]]
    for name, mean, sd in zip(order, means, sds, strict=True):
        column = theta[:, raw[name]]
        assert column.mean() == pytest.approx(mean, abs=0.1 * sd), name
        assert column.std() == pytest.approx(sd, rel=0.1), name
    # The weights are against the guide's own units: raw values of the intercept.
    log_weight = guide_weights(guide)
    evidence = float(torch.logsumexp(log_weight, 0)) - math.log(len(log_weight))
    assert evidence == pytest.approx(log_evidence, abs=0.1)


def guide_weights(guide):
    generator = torch.Generator().manual_seed(0)
    order = quadrature_order(guide)
    with torch.no_grad():
        return global_draws._adaptive_draws(guide, 2000, math.inf, 2, order, generator)[1]


def test_gaussian_posterior_and_evidence_against_a_grid():
    data = grouped()
    guide, result = fitted("y ~ 1 + (1 | g)", data=data)
    check_against_grid(guide, result, ["Intercept_raw", "1|g_sigma", "sigma"], *gaussian_grid(data))


def test_bernoulli_posterior_and_evidence_against_a_grid():
    data = grouped()
    guide, result = fitted("b ~ 1 + (1 | g)", "bernoulli", data)
    check_against_grid(guide, result, ["Intercept_raw", "1|g_sigma"], *bernoulli_grid(data))


def test_bernoulli_effects_against_a_grid():
    """The effects' exact conditional at fixed globals: draws chosen among candidates have its moments."""
    data = grouped()
    guide = guide_of("b ~ 1 + (1 | g)", "bernoulli", data)
    theta = guide.space.start.clone()
    theta[[s.name for s in guide.space.sites].index("1|g_sigma")] = math.log(2.0)
    values, ratio = draw_effects(guide, theta.expand(8000, -1), seed=0, candidates=16)
    base = float(values["Intercept"][0])
    drawn = values["1|g"].numpy()
    assert ratio.shape == drawn.shape == (8000, 12)
    grid = np.linspace(-16, 16, 4001)
    for group, k in enumerate(data["b"].to_numpy().reshape(12, 6).sum(1)):
        density = k * -np.logaddexp(0, -(base + grid)) + (6 - k) * -np.logaddexp(0, base + grid)
        (mean,), (sd,), _ = moments([grid], density + stats.norm(0, 2).logpdf(grid))
        column = int(guide.space.module.spec.group("g").labels.index(f"g{group}"))
        assert drawn[:, column].mean() == pytest.approx(mean, abs=0.06 * sd)
        assert drawn[:, column].std() == pytest.approx(sd, rel=0.05)


def test_weights_repair_a_guide_that_is_off():
    """The guide one to two sds away and too narrow: rounds of proposals find the posterior all the same."""
    data = grouped()
    guide, _ = fitted("y ~ 1 + (1 | g)", data=data)
    mean, factor = (part.detach().clone() for part in guide.mean_and_factor())
    good = correct_globals(guide, 2000, seed=0)
    guide.set_gaussian(mean + 1.5 * factor.diagonal(), 0.7 * torch.linalg.cholesky(factor @ factor.mT))
    repaired = correct_globals(guide, 2000, seed=0)
    assert repaired.corrected
    assert repaired.effective_size > 2000
    spread = good.theta.std(0)
    assert ((repaired.theta.mean(0) - good.theta.mean(0)).abs() < 0.12 * spread).all()
    torch.testing.assert_close(repaired.theta.std(0), spread, rtol=0.1, atol=0)


def test_marginal_without_group_effects():
    guide = guide_of("y ~ x")
    theta = guide.space.start.unsqueeze(0)
    values, log_prior = guide.space.evaluate(theta)
    eta = guide.space.module.linear_predictor(guide.space.module.spec.mu, values, guide.space.module.data)
    expected = stats.norm(eta[0], float(values["sigma"])).logpdf(frame(8, 6)["y"]).sum()
    assert float(marginal(guide, theta)) == pytest.approx(expected + float(log_prior))


def test_quadrature_improves_on_laplace_and_agrees_with_more_nodes():
    guide = guide_of("b ~ x + (1 | g)", "bernoulli")
    theta = guide.space.start.unsqueeze(0) + 0.5
    values = {order: float(marginal(guide, theta, order)) for order in (1, 9, 31)}
    assert abs(values[9] - values[31]) < 0.1 * abs(values[1] - values[31])


@pytest.mark.parametrize(
    ("formula", "family", "expected"),
    [
        ("y ~ x + (1 | g)", "gaussian", 1),
        ("b ~ x + (1 | g)", "bernoulli", 9),
        ("b ~ x + (1 + z | g)", "bernoulli", 3),
        ("b ~ x + (1 + z + x | g)", "bernoulli", 32),
        ("b ~ x + (1 | g) + (1 | h)", "bernoulli", 15),
        ("b ~ x", "bernoulli", 1),
    ],
)
def test_where_quadrature_pays(formula, family, expected):
    assert quadrature_order(guide_of(formula, family)) == expected


def test_crossed_factors_cost_what_their_dense_part_costs():
    data = frame(40, 10)
    data["h"] = np.arange(len(data)) % 37
    one, two = guide_of("y ~ 1 + (1 | g)", data=data), guide_of("y ~ 1 + (1 | g) + (1 | h)", data=data)
    dense = 37**2 * (37 + 40) // 5000
    assert global_draws.affordable(one, 10**7) == 10**7 // 40
    assert global_draws.affordable(two, 10**7) == 10**7 // (77 * 2 + dense)


def test_draws_are_not_corrected_where_khat_says_no(monkeypatch):
    guide, _ = fitted("y ~ x + (1 | g)", max_steps=25)
    smooth = global_draws.pareto_smooth
    monkeypatch.setattr(global_draws, "pareto_smooth", lambda w: (smooth(w)[0], torch.tensor(0.9)))
    draws = correct_globals(guide, 300, seed=0)
    assert not draws.corrected
    assert draws.khat == pytest.approx(0.9)
    mean, factor = (part.detach() for part in guide.mean_and_factor())
    # They are the guide's own, with weights against it.
    white = torch.linalg.solve_triangular(factor, (draws.theta - mean).mT, upper=False)
    assert float(white.mean().abs()) < 0.15
    assert float(white.std()) == pytest.approx(1.0, abs=0.1)
    law = torch.distributions.MultivariateNormal(mean, factor @ factor.mT)
    with torch.no_grad():
        torch.testing.assert_close(draws.log_weight, marginal(guide, draws.theta) - law.log_prob(draws.theta))


def test_effects_of_a_gaussian_model_need_no_candidates():
    for formula in ("y ~ x + (1 + z | g)", "y ~ x + (1 | g) + (1 | h)"):
        guide = guide_of(formula)
        values, ratio = draw_effects(guide, guide.space.start.expand(4, -1), seed=0)
        assert ratio.shape == (4, 0)
        assert values["1|g"].shape == (4, 8)


def test_effects_of_gaussian_draws_have_the_exact_moments():
    guide = guide_of("y ~ x + (1 | g) + (1 | h)")
    theta = guide.space.start.expand(6000, -1)
    values, _ = draw_effects(guide, theta, seed=0)
    problem = guide.conditional.problem(guide.space.evaluate(guide.space.start.unsqueeze(0))[0])
    effects = guide.conditional.solve(problem)
    exact = guide.conditional.effects(problem.values, effects.mean)
    for name in ("1|g", "1|h"):
        error = 5 * values[name].std(0) / math.sqrt(6000)
        assert ((values[name].mean(0) - exact[name][0]).abs() < error).all()


def test_a_failed_factorisation_is_an_impossible_draw(monkeypatch):
    guide = guide_of("y ~ x + (1 | g)")
    theta = guide.space.start.expand(3, -1).clone()
    theta[1, 0] = 77.0
    plain = global_draws.marginal

    def fragile(guide, theta, order=1):
        if (theta == 77.0).any():
            raise torch.linalg.LinAlgError("not positive definite")
        return plain(guide, theta, order)

    monkeypatch.setattr(global_draws, "marginal", fragile)
    value = global_draws._safe_marginal(guide, theta, 1)
    assert value[1] == -math.inf
    assert torch.isfinite(value[[0, 2]]).all()
