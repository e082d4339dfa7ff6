"""Draws of effects from a conditional that is far from its Gaussian."""

import math

import numpy as np
import pytest
import torch
from hand_made import design, frame, module_of, posterior_of
from scipy import stats

from pyro_armed.conditional import GroupConditional
from pyro_armed.effect_draws import choose_effects, slice_sample
from pyro_armed.gaussian_conditional import GaussianConditional

DRAWS = 3000
GRID = np.linspace(-15, 15, 6001)


def skewed(draws=DRAWS):
    """Each group but the first has four outcomes, all one; the posterior of z is nearly half a normal."""
    one = design(
        "b ~ 1 + (1 | g)", frame().assign(b=1, y=0.0).assign(b=lambda d: (d["g"] != "g0") * 1), "bernoulli"
    )
    chain = posterior_of(module_of(one), draws, 1, {"Intercept": 0.0, "1|g_sigma": 4.0}).chains[0]
    conditional = GroupConditional(chain.module, one.training.batch)
    problem = conditional.problem(next(chain.chunks(draws)))
    return conditional, problem, conditional.solve(problem)


def distribution(z):
    """That of z = u / 4 for a group of four ones."""
    weight = np.exp(-4 * np.logaddexp(0, -4 * GRID) - 0.5 * GRID**2)
    return np.interp(z, GRID, np.cumsum(weight) / weight.sum())


def test_the_gaussian_alone_is_far_off():
    conditional, problem, effects = skewed()
    z, _ = choose_effects(conditional, problem, effects, 1, torch.Generator().manual_seed(0))
    assert stats.kstest(z[0][:, 1, 0].numpy(), distribution).statistic > 0.1


def test_slice_sampling_reaches_the_conditional_from_a_bad_start_and_stays_there():
    conditional, problem, effects = skewed()
    generator = torch.Generator().manual_seed(0)
    far = [torch.full_like(effects.mean[0], 2.5)]
    one = slice_sample(conditional, problem, effects, far, 1, generator)
    many = slice_sample(conditional, problem, effects, far, 30, generator)
    more = slice_sample(conditional, problem, effects, many, 10, generator)
    assert stats.kstest(one[0][:, 1, 0].numpy(), distribution).pvalue < 1e-6
    for group in (1, 4):
        assert stats.kstest(many[0][:, group, 0].numpy(), distribution).pvalue > 1e-3
        assert stats.kstest(more[0][:, group, 0].numpy(), distribution).pvalue > 1e-3
    # Groups move on their own, and mirrored outcomes mirror the effects.
    assert stats.kstest(-many[0][:, 0, 0].numpy(), distribution).pvalue > 1e-3
    assert abs(np.corrcoef(many[0][:, 1, 0].numpy(), many[0][:, 2, 0].numpy())[0, 1]) < 4 / math.sqrt(DRAWS)


def test_no_steps_leave_the_draws_alone():
    conditional, problem, effects = skewed(5)
    start = [effects.mean[0] + 1.0]
    assert slice_sample(conditional, problem, effects, start, 0, torch.Generator())[0] is start[0]


def test_candidates_come_nearer():
    conditional, problem, effects = skewed()
    distances = []
    for candidates in (1, 8):
        generator = torch.Generator().manual_seed(0)
        z, ratio = choose_effects(conditional, problem, effects, candidates, generator)
        assert ratio.shape == (DRAWS, 5)
        distances.append(stats.kstest(z[0][:, 1, 0].numpy(), distribution).statistic)
    assert distances[1] < 0.5 * distances[0]


@pytest.mark.parametrize("kind", [GaussianConditional, GroupConditional])
def test_slice_steps_keep_an_exact_gaussian(kind):
    one = design("y ~ x + (1 | g)", frame())
    chain = posterior_of(module_of(one), DRAWS, 1, {"1|g_sigma": 1.0, "sigma": 1.0}).chains[0]
    conditional = kind(chain.module, one.training.batch)
    problem = conditional.problem(next(chain.chunks(DRAWS)))
    effects = conditional.solve(problem)
    generator = torch.Generator().manual_seed(1)
    z, ratio = choose_effects(conditional, problem, effects, 8, generator)
    if kind is GroupConditional:
        z = slice_sample(conditional, problem, effects, z, 3, generator)
        # Constant in z for an exact Gaussian: what varies is the evidence of each draw.
        evidence = conditional.by_group(problem, effects.mean) - conditional.density_by_group(
            effects, effects.mean
        )
        torch.testing.assert_close(ratio, evidence)
    else:
        assert ratio.shape == (DRAWS, 0)
    white = ((z[0] - effects.mean[0])[..., 0] * effects.primary[..., 0, 0]).numpy()
    assert stats.kstest(white.ravel(), stats.norm.cdf).pvalue > 1e-3
