"""Pareto smoothing and resampling of importance weights."""

import arviz as az
import numpy as np
import pytest
import torch
from scipy import stats

from pyro_armed.importance import KHAT_LIMIT, effective_size, pareto_smooth, systematic_resample

ARVIZ_0 = int(az.__version__.split(".")[0]) < 1


def log_weights(shape, scale=1.0, seed=0):
    return torch.as_tensor(np.random.default_rng(seed).normal(scale=scale, size=shape))


@pytest.mark.skipif(not ARVIZ_0, reason="ArviZ 1.x keeps psislw elsewhere")
@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_smoothing_is_that_of_arviz(scale):
    weights = log_weights(800, scale)
    ours, khat = pareto_smooth(weights)
    theirs, expected = az.psislw(weights.numpy().copy())
    assert float(khat) == pytest.approx(float(expected))
    np.testing.assert_allclose(ours, theirs - np.logaddexp.reduce(np.asarray(theirs)), atol=1e-12)


@pytest.mark.parametrize("shape", [0.3, 0.6, 0.9])
def test_khat_is_the_tail_of_a_pareto_law(shape):
    ratios = stats.genpareto(shape).rvs(20_000, random_state=np.random.default_rng(1))
    _, khat = pareto_smooth(torch.as_tensor(np.log(ratios)))
    assert float(khat) == pytest.approx(shape, abs=0.12)


def test_rows_are_smoothed_one_by_one():
    weights = log_weights((2, 3, 400))
    together, khat = pareto_smooth(weights)
    assert together.shape == weights.shape
    assert khat.shape == (2, 3)
    alone, one = pareto_smooth(weights[1, 2])
    torch.testing.assert_close(together[1, 2], alone)
    assert float(khat[1, 2]) == float(one)


def test_weights_sum_to_one_and_keep_their_order():
    weights = log_weights(500, 2.0)
    smoothed, _ = pareto_smooth(weights)
    assert float(smoothed.exp().sum()) == pytest.approx(1.0)
    assert (torch.diff(smoothed[weights.argsort()]) >= -1e-12).all()


def test_a_large_weight_stays_large():
    # ArviZ 1.x takes what ArviZ 0.x takes with the other sign.
    weights = log_weights(500)
    weights[7] = 20.0
    smoothed, khat = pareto_smooth(weights)
    assert int(smoothed.argmax()) == 7
    assert float(khat) > KHAT_LIMIT
    assert float(pareto_smooth(-weights)[1]) < KHAT_LIMIT


def test_a_constant_does_not_matter():
    weights = log_weights(500)
    torch.testing.assert_close(
        pareto_smooth(weights)[0], pareto_smooth(weights + 1e4)[0], rtol=1e-6, atol=1e-6
    )


def test_few_draws_have_no_tail():
    weights = log_weights((2, 24))
    smoothed, khat = pareto_smooth(weights)
    assert khat.isinf().all()
    torch.testing.assert_close(smoothed, torch.log_softmax(weights, -1))
    assert pareto_smooth(log_weights(60))[1].isfinite()


def test_equal_weights_have_no_tail():
    smoothed, khat = pareto_smooth(torch.zeros(100))
    assert float(khat) == -np.inf
    np.testing.assert_allclose(smoothed, -np.log(100))
    assert float(effective_size(smoothed)) == pytest.approx(100)


def test_impossible_draws_get_no_weight():
    weights = log_weights(500)
    weights[3], weights[4] = -np.inf, np.nan
    smoothed, khat = pareto_smooth(weights)
    assert torch.isfinite(smoothed).all()
    assert float(smoothed[3].exp()) == float(smoothed[4].exp()) == 0.0
    assert float(khat) < KHAT_LIMIT


def test_input_is_not_changed():
    weights = log_weights(300)
    before = weights.clone()
    pareto_smooth(weights)
    torch.testing.assert_close(weights, before, rtol=0, atol=0)


def test_effective_size():
    weights = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    assert float(effective_size(weights.log())) == pytest.approx(1 / (0.25 + 0.0625 + 0.0625))


def test_resampling_takes_each_draw_as_often_as_its_weight_says():
    smoothed, _ = pareto_smooth(log_weights(50))
    for seed in range(5):
        chosen = systematic_resample(smoothed, 400, torch.Generator().manual_seed(seed))
        counts = torch.bincount(chosen, minlength=50)
        assert len(chosen) == 400
        # Systematic: never further than one from its expectation.
        assert ((counts - 400 * smoothed.exp()).abs() < 1 + 1e-9).all()


def test_resampling_is_unbiased():
    smoothed = torch.tensor([0.05, 0.15, 0.5, 0.3], dtype=torch.float64).log()
    counts = sum(
        torch.bincount(systematic_resample(smoothed, 3, torch.Generator().manual_seed(seed)), minlength=4)
        for seed in range(3000)
    )
    np.testing.assert_allclose(counts / 9000, smoothed.exp(), atol=0.015)


def test_resampling_is_repeatable_and_shuffled():
    smoothed, _ = pareto_smooth(log_weights(200))
    first = systematic_resample(smoothed, 100, torch.Generator().manual_seed(3))
    again = systematic_resample(smoothed, 100, torch.Generator().manual_seed(3))
    assert torch.equal(first, again)
    assert not torch.equal(first, first.sort().values)


def test_resampling_leaves_the_random_state_alone(unmoved_rng):
    with unmoved_rng():
        smoothed, _ = pareto_smooth(log_weights(200))
        systematic_resample(smoothed, 100, torch.Generator().manual_seed(3))
