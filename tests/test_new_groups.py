"""Effects of new groups: their law, what shares a draw and what does not."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hand_made import design, frame, module_of, posterior_of
from scipy import stats
from torch import nn

from pyro_armed.batch import Batch
from pyro_armed.design import Encoded
from pyro_armed.errors import ArgumentError, UnseenGroupError
from pyro_armed.new_groups import MODES, Marginal, Mode, extend_chain, mode_of, row_modes
from pyro_armed.new_groups._stratified import stratified_normal
from pyro_armed.posterior import Chain


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows_of(one, sizes):
    """Rows of seen groups, and one row for each new group."""
    new = max(sizes.values())
    rows = frame().iloc[[0] * new]
    for group, size in sizes.items():
        rows = rows.assign(**{group: [f"new{min(i, size - 1)}" for i in range(new)]})
    return one.encode(pd.concat([frame(), rows], ignore_index=True))


def extended(formula, sizes, mode="marginal", draws=20, fixed=None, family="gaussian", seed=0, **options):
    one = design(formula, frame(), family)
    chain = posterior_of(module_of(one, **options), draws=draws, chains=1, fixed=fixed).chains[0]
    return chain.values, extend_chain(chain, rows_of(one, sizes), mode_of(mode), generator(seed)).values


# --- modes -------------------------------------------------------------------------------------------------


def test_unknown_mode_is_named():
    with pytest.raises(ArgumentError, match=r"new_groups='average'.*'population'"):
        mode_of("average")


def test_error_mode_names_the_group_and_its_first_labels():
    rows = Encoded(Batch(1, 1), {"year": [], "site": ["s1", "s2", 3, "s4", "s5", "s6"]})
    with pytest.raises(UnseenGroupError, match=r"'site'.*'s1', 's2', 3, 's4', 's5', \.\.\..*'marginal'"):
        mode_of("error").check(rows)


@pytest.mark.parametrize("mode", ["error", "population", "marginal"])
def test_seen_groups_pass_every_mode(mode):
    assert mode in MODES
    mode_of(mode).check(Encoded(Batch(1, 1), {"site": []}))
    mode_of("population").check(Encoded(Batch(1, 1), {"site": ["new"]}))


def test_a_mode_is_its_own_mode():
    mode = Marginal()
    assert mode_of(mode) is mode


def test_a_mode_of_ones_own_plugs_in():
    class Ones(Mode):
        name = "ones"

        def effects(self, chain, encoded, generator):
            return {"1|g": torch.ones(chain.n_draws, len(encoded.new_groups["g"]), dtype=torch.float64)}

    one = design("y ~ x + (1 | g)", frame())
    chain = posterior_of(module_of(one), chains=1).chains[0]
    found = extend_chain(chain, rows_of(one, {"g": 3}), Ones(), generator())
    assert (found.values["1|g"][:, 5:] == 1).all()


def test_chain_without_new_groups_is_the_chain_itself():
    one = design("y ~ x + (1 | g)", frame())
    chain = posterior_of(module_of(one), chains=1).chains[0]
    assert extend_chain(chain, one.encode(frame()), Marginal(), generator()) is chain


# --- which mode a row got ----------------------------------------------------------------------------------


def test_modes_of_rows_with_one_grouping_factor():
    one = design("y ~ x + (1 | g)", frame())
    encoded = one.encode(frame().iloc[:3].assign(g=["new", "g4", "other"]))
    rows, factors = row_modes(one.spec, encoded, {"g": ["adapt", "marginal"]})
    assert rows.tolist() == factors["g"].tolist() == ["adapt", "seen", "marginal"]


def test_modes_of_rows_with_several_grouping_factors_name_the_new_ones():
    one = design("y ~ x + (1 | g) + (1 | h)", frame())
    encoded = one.encode(frame().iloc[:4].assign(g=["new", "g4", "new", "g0"], h=["h0", "new", "new", "h1"]))
    rows, factors = row_modes(one.spec, encoded, Marginal().received(encoded))
    assert rows.tolist() == ["g: marginal", "h: marginal", "g: marginal, h: marginal", "seen"]
    assert factors["h"].tolist() == ["seen", "marginal", "marginal", "seen"]


def test_modes_of_rows_without_grouping_factors():
    one = design("y ~ x", frame())
    rows, factors = row_modes(one.spec, one.encode(frame()), {})
    assert rows.tolist() == ["seen"] * 20
    assert factors == {}


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


def marginal(one, chain: Chain, new: int) -> dict[str, torch.Tensor]:
    return extend_chain(chain, rows_of(one, {"g": new}), Marginal(), generator()).values


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
    one = design("y ~ x + (1 | g)", frame())
    chain = posterior_of(module_of(one), draws=20_000, chains=1).chains[0]
    chain.values["1|g_sigma"] = torch.where(torch.arange(20_000) % 2 == 0, 0.1, 3.0).double()
    drawn = marginal(one, chain, 1)["1|g"][:, 5]
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
    after = marginal(one, posterior_of(module, draws=20_000, chains=1, fixed=fixed).chains[0], 2)
    assert after["features|g"].shape == (20_000, 7, 3)
    np.testing.assert_allclose(after["features|g"][:, 5].std(dim=0), [0.2, 1.0, 3.0], rtol=0.03)


def test_effects_of_an_auxiliary_parameter():
    one = design(["y ~ x + (1 | g)", "sigma ~ x + (1 | g)"], frame())
    fixed = {"sigma_1|g_sigma": 0.7, "1|g_sigma": 2.0}
    after = marginal(one, posterior_of(module_of(one), draws=20_000, chains=1, fixed=fixed).chains[0], 1)
    assert after["sigma_1|g"][:, 5].std() == pytest.approx(0.7, rel=0.03)
    assert after["1|g"][:, 5].std() == pytest.approx(2.0, rel=0.03)
    assert abs(np.corrcoef(after["sigma_1|g"][:, 5], after["1|g"][:, 5])[0, 1]) < 4 / math.sqrt(20_000)


def test_draws_are_spread_evenly_over_the_distribution():
    drawn = stratified_normal((500, 3), generator(), torch.float64)
    uniform = torch.special.ndtr(drawn).numpy()
    # One in each of 500 intervals, in an order that does not go from one column to the next.
    assert all(sorted(np.floor(column * 500).astype(int)) == list(range(500)) for column in uniform.T)
    assert np.abs(np.corrcoef(drawn.numpy(), rowvar=False)[np.triu_indices(3, 1)]).max() < 4 / math.sqrt(500)
    assert torch.equal(drawn, stratified_normal((500, 3), generator(), torch.float64))


def test_a_single_draw_is_standard_normal():
    drawn = stratified_normal((1, 100_000), generator(), torch.float32)
    assert drawn.dtype == torch.float32
    assert stats.kstest(drawn[0].double().numpy(), "norm").pvalue > 0.01


def test_the_mean_over_draws_of_a_new_groups_prediction_is_steady():
    """A logistic curve's mean over 100 draws of an effect of sd 2: .016 sd of independent draws."""
    one = design("y ~ x + (1 | g)", frame())
    chain = posterior_of(module_of(one), draws=100, chains=1, fixed={"1|g_sigma": 2.0}).chains[0]
    effects = marginal(one, chain, 400)["1|g"][:, 5:]
    independent = 2.0 * torch.randn(effects.shape, generator=generator(), dtype=effects.dtype)
    means = [torch.sigmoid(1.0 + sample).mean(0) for sample in (effects, independent)]
    assert means[0].std() < 0.1 * means[1].std()
    assert means[0].mean() == pytest.approx(float(means[1].mean()), abs=4 * 0.03 / 20)
