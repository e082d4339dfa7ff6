"""Fitting the structured guide: mode, Hessian, SVI, and when there is none."""

import dataclasses

import numpy as np
import pytest
import torch
from hand_made import frame
from hand_made_guides import fitted, grouped, guide_of
from scipy.special import expit

from pyro_armed import global_draws, structured_fit
from pyro_armed.global_draws import correct_globals, draw_effects, marginal

F64 = torch.float64


def test_mode_and_hessian():
    guide, _ = fitted("count ~ x + (1 | g)", "poisson", max_steps=25)
    mode, found = structured_fit._mode(guide, torch.Generator().manual_seed(0))
    assert found
    theta = mode.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(marginal(guide, theta.unsqueeze(0))[0], theta)
    assert float(gradient.abs().max()) < 1e-2
    hessian = structured_fit.negative_hessian(guide, mode)
    numeric = torch.zeros_like(hessian)
    steps = 0.01 * torch.eye(len(mode), dtype=F64)
    for i, a in enumerate(steps):
        for j, b in enumerate(steps):
            corners = torch.stack([mode + a + b, mode + a - b, mode - a + b, mode - a - b])
            with torch.no_grad():
                value = marginal(guide, corners)
            numeric[i, j] = -(value[0] - value[1] - value[2] + value[3]) / 4e-4
    torch.testing.assert_close(hessian, numeric, rtol=0.02, atol=0.05)


def test_inverse_root_bounds_flat_directions():
    hessian = torch.diag(torch.tensor([4.0, 1e-9, -3.0], dtype=F64))
    root = structured_fit._inverse_root(hessian)
    torch.testing.assert_close(root @ root.mT, torch.diag(torch.tensor([0.25, 2.0, 2.0], dtype=F64)))


def test_elbo_is_that_of_the_gaussian():
    """One step's ELBO against a plain Monte Carlo mean of log p(y, theta) - log q(theta)."""
    guide, _ = fitted("y ~ x + (1 | g)", max_steps=25)
    mean, factor = (part.detach() for part in guide.mean_and_factor())
    noise = torch.randn(20_000, len(mean), generator=torch.Generator().manual_seed(0), dtype=F64)
    with torch.no_grad():
        theta = mean + noise @ factor.mT
        law = torch.distributions.MultivariateNormal(mean, factor @ factor.mT)
        ratio = torch.cat([marginal(guide, part) for part in theta.split(2000)]) - law.log_prob(theta)
    optimizer = torch.optim.SGD(guide.parameters(), lr=0.0)
    ours = structured_fit._ascend(guide, optimizer, noise)
    assert float(ours) == pytest.approx(float(ratio.mean()), abs=0.05)


def test_memory_bound_changes_nothing(monkeypatch):
    results = []
    for bound in (global_draws._ELEMENTS, 1):
        monkeypatch.setattr(global_draws, "_ELEMENTS", bound)
        guide, result = fitted("y ~ 1 + (1 | g)", data=frame(5, 4), max_steps=5)
        draws = correct_globals(guide, 20, seed=1)
        results.append((result.elbo, draws.theta))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_seeds(unmoved_rng):
    runs = []
    with unmoved_rng():
        for seed in (0, 0, 1):
            guide, _ = fitted("y ~ x + (1 | g)", seed=seed, max_steps=25)
            draws = correct_globals(guide, 50, seed=seed)
            values, _ = draw_effects(guide, draws.theta, seed=seed)
            runs.append(values["1|g"])
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_random_starts_find_one_mode():
    guide = guide_of("y ~ x + (1 + z | g)")
    modes = [structured_fit._mode(guide, torch.Generator().manual_seed(seed))[0] for seed in range(3)]
    densities = [float(marginal(guide, mode.unsqueeze(0)).detach()) for mode in modes]
    assert max(densities) - min(densities) < 1e-3


def test_few_steps_are_not_converged():
    _, result = fitted("y ~ x + (1 | g)", max_steps=10)
    assert result.elbo.shape == (10,)
    assert not result.converged


def test_expensive_fits_keep_the_gaussian_of_the_hessian(monkeypatch):
    """Few noisy steps would leave it worse than they found it."""
    monkeypatch.setattr(structured_fit, "_STEP_BUDGET", 1)
    guide = guide_of("y ~ 1 + (1 | g)", data=grouped())
    result = structured_fit.fit_structured(guide, seed=0, progressbar=False)
    assert result.converged
    assert len(result.elbo) == 10
    mean, factor = guide.mean_and_factor()
    expected = torch.linalg.inv(structured_fit.negative_hessian(guide, mean.detach()))
    torch.testing.assert_close(factor @ factor.mT, expected, rtol=1e-3, atol=1e-6)
    assert result.elbo.std() < 1.0


def test_expensive_fits_are_at_the_mode_of_the_quadrature(monkeypatch):
    """10,000 groups of five binary rows: Laplace's variance was 14 % too small, its interval beside 1."""
    monkeypatch.setattr(structured_fit, "_STEP_BUDGET", 1)
    data = frame(60, 3)
    random = np.random.default_rng(0)
    data["b"] = (random.uniform(size=180) < expit(np.repeat(random.normal(0, 1.5, 60), 3))).astype(int)
    guide = guide_of("b ~ 1 + (1 | g)", "bernoulli", data)
    structured_fit.fit_structured(guide, seed=0, progressbar=False)
    mean = guide.mean_and_factor()[0].detach().unsqueeze(0).requires_grad_()

    def slope(order):
        (gradient,) = torch.autograd.grad(marginal(guide, mean, order).sum(), mean)
        return float(gradient.abs().max())

    assert slope(9) < 1e-2 < 0.1 * slope(1)


def test_results_are_records():
    _, result = fitted("y ~ x", max_steps=25)
    assert dataclasses.is_dataclass(result)
    assert result.elbo.ndim == 1


# --- weights that vouch for the Gaussian at the mode -----------------------------------------------------


def test_where_weights_vouch_there_are_no_steps():
    """The guide then has the mean and covariance of the weighted draws, the ELBO is that of the guide."""
    guide, result = fitted("b ~ 1 + (1 | g)", "bernoulli", grouped(), draws=2000)
    assert result.converged
    assert len(result.elbo) == 10
    assert result.draws.corrected
    assert result.draws.theta.shape == (2000, 2)
    mean, factor = guide.mean_and_factor()
    theta = result.draws.theta
    assert torch.allclose(mean, theta.mean(0), atol=0.05 * float(theta.std(0).max()))
    torch.testing.assert_close(
        (factor @ factor.mT).diagonal().sqrt(), theta.std(0), rtol=0.05, atol=0, check_dtype=False
    )
    _, refined = fitted("b ~ 1 + (1 | g)", "bernoulli", grouped())
    n_rows = guide.conditional.batch.n_rows
    # SVI maximises the ELBO (by Laplace); the moments lose a tenth of a nat at most.
    assert float(result.elbo.mean() - refined.elbo[-25:].mean()) * n_rows > -0.3


def test_where_they_do_not_there_are(monkeypatch):
    plain = structured_fit.correct_globals
    asked = []

    def doubtful(guide, draws, *, seed):
        found = plain(guide, draws, seed=seed)
        asked.append(found)
        return found if len(asked) > 1 else dataclasses.replace(found, khat=0.6)

    monkeypatch.setattr(structured_fit, "correct_globals", doubtful)
    _, result = fitted("y ~ x + (1 | g)", draws=100, max_steps=25)
    assert len(asked) == 2
    assert result.draws is asked[1]
    assert result.elbo.shape == (25,)


def test_without_draws_asked_for_there_are_none():
    _, result = fitted("y ~ x + (1 | g)", max_steps=25)
    assert result.draws is None
    assert result.elbo.shape == (25,)
