"""Effects of new groups: their law, what shares a draw and what does not."""

import math

import numpy as np
import pytest
import torch
from hand_made import design, frame, module_of, posterior_of
from torch import nn

from pyro_armed.errors import ArgumentError, UnseenGroupError
from pyro_armed.new_groups import check_mode, extend_effects
from pyro_armed.posterior import with_row_axis


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def extended(formula, sizes, mode="marginal", draws=20, fixed=None, family="gaussian", seed=0, **options):
    module = module_of(design(formula, frame(), family), **options)
    values = posterior_of(module, draws=draws, chains=1, fixed=fixed).chains[0].values
    before = with_row_axis(module, values)
    return before, extend_effects(module, before, sizes, mode, generator(seed))


# --- modes -------------------------------------------------------------------------------------------------


def test_unknown_mode_is_named():
    with pytest.raises(ArgumentError, match=r"new_groups='average'.*'population'"):
        check_mode("average", {})


def test_error_mode_names_the_group_and_its_first_labels():
    labels = ["s1", "s2", 3, "s4", "s5", "s6"]
    with pytest.raises(UnseenGroupError, match=r"'site'.*'s1', 's2', 3, 's4', 's5', \.\.\..*'marginal'"):
        check_mode("error", {"year": [], "site": labels})


@pytest.mark.parametrize("mode", ["error", "population", "marginal"])
def test_seen_groups_pass_every_mode(mode):
    check_mode(mode, {"site": []})
    check_mode("population", {"site": ["new"]})


# --- tables ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["population", "marginal"])
def test_effects_of_seen_groups_stay(mode):
    before, after = extended("y ~ x + (1 + z | g) + (1 | h)", {"g": 3}, mode)
    assert after["1|g"].shape == (20, 8)
    assert torch.equal(after["1|g"][:, :5], before["1|g"])
    assert torch.equal(after["z|g"][:, :5], before["z|g"])
    assert after["1|h"] is before["1|h"]
    assert after["x"] is before["x"]
    assert before["1|g"].shape == (20, 5)


def test_population_is_zero():
    _, after = extended("y ~ x + (1 + z | g)", {"g": 3}, "population")
    assert (after["1|g"][:, 5:] == 0).all()
    assert (after["z|g"][:, 5:] == 0).all()


def test_same_seed_same_effects_and_no_global_state(unmoved_rng):
    with unmoved_rng():
        _, first = extended("y ~ x + (1 + z | g)", {"g": 3}, seed=4)
    _, again = extended("y ~ x + (1 + z | g)", {"g": 3}, seed=4)
    _, other = extended("y ~ x + (1 + z | g)", {"g": 3}, seed=5)
    assert torch.equal(first["z|g"], again["z|g"])
    assert not torch.equal(first["z|g"][:, 5:], other["z|g"][:, 5:])


# --- the law of marginal effects ---------------------------------------------------------------------------

CORRELATION = np.array([[1.0, -0.6], [-0.6, 1.0]])
TAU = np.array([1.5, 0.4])


def correlated_draws():
    fixed = {"1|g_sigma": TAU[0], "z|g_sigma": TAU[1], "g_corr": np.linalg.cholesky(CORRELATION)}
    _, after = extended("y ~ x + (1 + z | g)", {"g": 2}, draws=40_000, fixed=fixed)
    return torch.stack([after["1|g"][:, 5:], after["z|g"][:, 5:]], dim=-1).numpy()  # (S, new, 2)


def test_covariance_of_a_new_group_is_sigma():
    drawn = correlated_draws()
    expected = TAU[:, None] * CORRELATION * TAU
    for group in range(2):
        found = np.cov(drawn[:, group], rowvar=False)
        np.testing.assert_allclose(found, expected, atol=4 * 2.25 * math.sqrt(2 / 40_000))
        np.testing.assert_allclose(drawn[:, group].mean(axis=0), 0.0, atol=4 * 1.5 / 200)


def test_new_groups_are_independent_of_each_other_and_of_the_posterior():
    drawn = correlated_draws()
    between = np.corrcoef(drawn[:, 0], drawn[:, 1], rowvar=False)[:2, 2:]
    assert np.abs(between).max() < 4 / 200
    assert abs(np.corrcoef(drawn[:-1, 0, 0], drawn[1:, 0, 0])[0, 1]) < 4 / 200


def test_uncorrelated_terms_and_factors_are_independent():
    fixed = {"1|g_sigma": 1.5, "z|g_sigma": 0.4, "1|h_sigma": 2.0}
    _, after = extended("y ~ x + (1 + z || g) + (1 | h)", {"g": 1, "h": 1}, draws=40_000, fixed=fixed)
    drawn = torch.stack([after["1|g"][:, -1], after["z|g"][:, -1], after["1|h"][:, -1]])
    np.testing.assert_allclose(drawn.std(dim=1), [1.5, 0.4, 2.0], rtol=0.03)
    assert np.abs(np.corrcoef(drawn.numpy())[np.triu_indices(3, 1)]).max() < 4 / 200


def test_each_draw_has_its_own_scale():
    """The spread follows each posterior draw's sd, not their mean."""
    module = module_of(design("y ~ x + (1 | g)", frame()))
    values = posterior_of(module, draws=20_000, chains=1).chains[0].values
    values["1|g_sigma"] = torch.where(torch.arange(20_000) % 2 == 0, 0.1, 3.0).double()
    after = extend_effects(module, with_row_axis(module, values), {"g": 1}, "marginal", generator())
    drawn = after["1|g"][:, 5]
    assert drawn[::2].std() == pytest.approx(0.1, rel=0.05)
    assert drawn[1::2].std() == pytest.approx(3.0, rel=0.05)


def test_slopes_of_levels():
    _, after = extended("y ~ x + (0 + c | g)", {"g": 2}, draws=20_000, fixed={"c|g_sigma": [0.5, 2.0, 1.0]})
    assert after["c|g"].shape == (20_000, 7, 3)
    np.testing.assert_allclose(after["c|g"][:, 6].std(dim=0), [0.5, 2.0, 1.0], rtol=0.03)


def test_effects_of_a_categorical_response():
    fixed = {"1|g_sigma": [0.5, 2.0]}
    _, after = extended("c ~ x + (1 + z | g)", {"g": 2}, draws=20_000, family="categorical", fixed=fixed)
    assert after["1|g"].shape == (20_000, 7, 2)
    np.testing.assert_allclose(after["1|g"][:, 6].std(dim=0), [0.5, 2.0], rtol=0.03)


def test_slopes_on_features():
    one = design("y ~ x + z + (1 + features | g)", frame(), network=True)
    network = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    module = module_of(one, network, "2", 3)
    fixed = {"features|g_sigma": [0.2, 1.0, 3.0]}
    values = posterior_of(module, draws=20_000, chains=1, fixed=fixed).chains[0].values
    after = extend_effects(module, with_row_axis(module, values), {"g": 2}, "marginal", generator())
    assert after["features|g"].shape == (20_000, 7, 3)
    np.testing.assert_allclose(after["features|g"][:, 5].std(dim=0), [0.2, 1.0, 3.0], rtol=0.03)


def test_effects_of_an_auxiliary_parameter():
    module = module_of(design(["y ~ x + (1 | g)", "sigma ~ x + (1 | g)"], frame()))
    fixed = {"sigma_1|g_sigma": 0.7, "1|g_sigma": 2.0}
    values = posterior_of(module, draws=20_000, chains=1, fixed=fixed).chains[0].values
    after = extend_effects(module, with_row_axis(module, values), {"g": 1}, "marginal", generator())
    assert after["sigma_1|g"][:, 5].std() == pytest.approx(0.7, rel=0.03)
    assert after["1|g"][:, 5].std() == pytest.approx(2.0, rel=0.03)
    assert abs(np.corrcoef(after["sigma_1|g"][:, 5], after["1|g"][:, 5])[0, 1]) < 4 / math.sqrt(20_000)
