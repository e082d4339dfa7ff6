"""Predictions from stored draws against NumPy, closed forms, and the law of new groups' effects."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hand_made import design, frame, module_of, posterior_of
from scipy import special, stats
from torch import nn

from pyro_armed.errors import ArgumentError, UnseenGroupError
from pyro_armed.predict import evaluated_chunks, extended_chains, predict_draws, stream


def made(formula="y ~ x + c + (1 + z | g) + (1 | h)", family="gaussian", draws=20, fixed=None, **options):
    one = design(formula, frame(), family, **options)
    return one, posterior_of(module_of(one), draws=draws, fixed=fixed)


def predict(one, posterior, data, mode="error", **options):
    return predict_draws(posterior, one.encode(data), mode, **{"seed": 0, **options})


def mixed_rows() -> pd.DataFrame:
    """Rows of a seen group, of two new ones, and again of the first new one."""
    rows = frame().iloc[[0, 1, 6, 7, 12, 13]].reset_index(drop=True)
    return rows.assign(g=["g0", "new1", "new1", "new2", "g3", "new1"])


# --- the linear predictor of stored draws ------------------------------------------------------------------


def test_linear_predictor_is_the_sum_on_raw_columns():
    data = frame(rows=3, seed=9)
    one, posterior = made()
    found = predict(one, posterior, data, kind="linear")
    assert found.shape == (2, 20, 15)
    code = data["g"].str[1:].astype(int).to_numpy()
    other = data["h"].str[1:].astype(int).to_numpy()
    for chain, eta in zip(posterior.chains, found.numpy(), strict=True):
        value = {name: tensor.numpy() for name, tensor in chain.report().items()}
        for s in (0, 7, 19):
            by_hand = value["Intercept"][s] + value["x"][s] * data["x"].to_numpy()
            by_hand += value["c"][s] @ np.stack([data["c"] == "mid", data["c"] == "top"])
            by_hand += value["1|g"][s][code] + value["z|g"][s][code] * data["z"] + value["1|h"][s][other]
            np.testing.assert_allclose(eta[s], by_hand, rtol=1e-10)


def test_linear_predictor_of_a_network_with_slopes_on_features():
    one = design("y ~ x + z + (1 + features | g)", frame(), network=True)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    posterior = posterior_of(module_of(one, network, "2", 3))
    data = frame()
    columns = np.column_stack([(data[n] - data[n].mean()) / data[n].std(ddof=0) for n in ("x", "z")])
    layer = network[0]
    hidden = np.tanh(columns @ layer.weight.detach().numpy().T + layer.bias.detach().numpy())
    code = data["g"].str[1:].astype(int).to_numpy()
    found = predict(one, posterior, data, kind="linear").numpy()
    value = {name: tensor.numpy() for name, tensor in posterior.chains[1].values.items()}
    for s in (0, 11):
        by_hand = value["Intercept"][s] + hidden @ value["features"][s]
        by_hand += value["1|g"][s][code] + (value["features|g"][s][code] * hidden).sum(axis=1)
        np.testing.assert_allclose(found[1, s], by_hand, rtol=1e-10)


def test_linear_predictor_of_levels_has_one_column_for_each_but_the_first():
    data = frame()
    one, posterior = made("c ~ x + (1 | g)", "categorical")
    found = predict(one, posterior, data, kind="linear")
    assert found.shape == (2, 20, 20, 2)
    value = posterior.chains[0].report()
    code = torch.tensor(data["g"].str[1:].astype(int).to_numpy())
    x = torch.tensor(data["x"].to_numpy())
    by_hand = value["Intercept"][:, None] + value["x"][:, None] * x[:, None] + value["1|g"][:, code]
    torch.testing.assert_close(found[0], by_hand)
    means = predict(one, posterior, data, kind="mean")
    zero = torch.zeros_like(by_hand[..., :1])
    torch.testing.assert_close(means[0], torch.softmax(torch.cat([zero, by_hand], -1), -1))


def test_modelled_auxiliary_and_offset():
    data = frame()
    one, posterior = made(["y ~ x + offset(z) + (1 | g)", "sigma ~ x + (1 | g)"])
    (part, *_) = evaluated_chunks(posterior, one.encode(data), "error", seed=0)
    value = posterior.chains[0].report()
    code = torch.tensor(data["g"].str[1:].astype(int).to_numpy())
    x, z = (torch.tensor(data[n].to_numpy()) for n in ("x", "z"))
    eta = value["Intercept"][:, None] + value["x"][:, None] * x + z + value["1|g"][:, code]
    torch.testing.assert_close(part.etas["mu"], eta)
    log_sigma = value["sigma_Intercept"][:, None] + value["sigma_x"][:, None] * x
    log_sigma = log_sigma + value["sigma_1|g"][:, code]
    torch.testing.assert_close(part.etas["sigma"], log_sigma)


# --- kinds -------------------------------------------------------------------------------------------------


def test_kinds_of_a_nonlinear_link():
    one, posterior = made("count ~ x + (1 | g)", "poisson", draws=4000)
    data = frame()
    eta = predict(one, posterior, data, kind="linear")
    mean = predict(one, posterior, data, kind="mean")
    drawn = predict(one, posterior, data, kind="response")
    torch.testing.assert_close(mean, eta.exp())
    assert torch.equal(drawn, drawn.round())
    assert (drawn >= 0).all()
    # A draw varies around the mean of its own draw of the parameters, with the variance of the family.
    residual = ((drawn - mean) / mean.sqrt()).flatten(0, 1)
    assert residual.mean(0).abs().max() < 5 / math.sqrt(8000)
    torch.testing.assert_close(residual.var(0), torch.ones(20).double(), atol=0.12, rtol=0)


def test_mean_of_a_binomial_is_that_of_one_trial_and_a_response_needs_trials():
    one, posterior = made("p(s, t) ~ x + (1 | g)", "binomial")
    data = frame()
    mean = predict(one, posterior, data, kind="mean")
    torch.testing.assert_close(mean, torch.sigmoid(predict(one, posterior, data, kind="linear")))
    drawn = predict(one, posterior, data, kind="response")
    assert (drawn <= torch.tensor(data["t"].to_numpy())).all()
    with pytest.raises(ArgumentError, match="trials"):
        predict(one, posterior, data.drop(columns=["s", "t"]), kind="response")


def test_unknown_kind():
    one, posterior = made()
    with pytest.raises(ArgumentError, match=r"kind='median'.*'linear'"):
        predict(one, posterior, frame(), kind="median")


# --- new groups --------------------------------------------------------------------------------------------


def test_error_mode_names_the_labels():
    one, posterior = made()
    with pytest.raises(UnseenGroupError, match=r"'g'.*'new1', 'new2'.*'marginal'"):
        predict(one, posterior, mixed_rows())
    with pytest.raises(ArgumentError, match="new_groups='none'"):
        predict(one, posterior, frame(), "none")


def test_population_has_no_effect_of_the_new_group():
    one, posterior = made("y ~ x + (1 + z | g) + (1 | h)")
    rows = mixed_rows()
    found = predict(one, posterior, rows, "population", kind="linear")
    value = {name: tensor.numpy() for name, tensor in posterior.chains[0].report().items()}
    fixed = value["Intercept"][:, None] + value["x"][:, None] * rows["x"].to_numpy()
    crossed = value["1|h"][:, rows["h"].str[1:].astype(int)]
    new = rows["g"].str.startswith("new").to_numpy()
    np.testing.assert_allclose(found[0].numpy()[:, new], (fixed + crossed)[:, new], rtol=1e-10)


@pytest.mark.parametrize("mode", ["population", "marginal"])
@pytest.mark.parametrize("kind", ["linear", "mean"])
def test_seen_groups_are_predicted_alike_in_each_mode(mode, kind):
    one, posterior = made()
    rows = mixed_rows()
    seen = rows["g"].isin(["g0", "g3"]).to_numpy(copy=True)
    found = predict(one, posterior, rows, mode, kind=kind)[..., seen]
    torch.testing.assert_close(found, predict(one, posterior, rows[seen], "error", kind=kind))


def test_rows_of_a_new_group_share_its_effect_and_groups_do_not():
    one, posterior = made("y ~ x + (1 | g)", draws=10_000, fixed={"1|g_sigma": 1.5, "x": 0.0})
    rows = mixed_rows()
    linear = predict(one, posterior, rows, "marginal", kind="linear").flatten(0, 1)
    population = predict(one, posterior, rows, "population", kind="linear").flatten(0, 1)
    effect = (linear - population)[:, [1, 2, 5, 3]]  # new1, new1, new1, new2
    assert torch.equal(effect[:, 0], effect[:, 1])
    assert torch.equal(effect[:, 0], effect[:, 2])
    covariance = np.cov(effect[:, [0, 3]].numpy(), rowvar=False)
    np.testing.assert_allclose(covariance, [[2.25, 0.0], [0.0, 2.25]], atol=4 * 2.25 * math.sqrt(2 / 20_000))


def test_covariance_of_rows_is_that_of_intercepts_and_slopes():
    correlation, tau = np.array([[1.0, 0.5], [0.5, 1.0]]), np.array([1.2, 0.6])
    fixed = {"1|g_sigma": 1.2, "z|g_sigma": 0.6, "g_corr": np.linalg.cholesky(correlation)}
    one, posterior = made("y ~ x + (1 + z | g)", draws=20_000, fixed=fixed)
    rows = frame().iloc[:3].assign(g="new", z=[-1.0, 0.0, 2.0])
    linear = predict(one, posterior, rows, "marginal", kind="linear").flatten(0, 1)
    population = predict(one, posterior, rows, "population", kind="linear").flatten(0, 1)
    found = np.cov((linear - population).numpy(), rowvar=False)
    w = np.column_stack([np.ones(3), rows["z"]])
    expected = w @ (tau[:, None] * correlation * tau) @ w.T
    np.testing.assert_allclose(found, expected, atol=4 * expected.max() * math.sqrt(2 / 40_000))


def test_marginal_mean_of_a_probit_model_has_its_closed_form():
    """E[Phi(eta + u)] = Phi(eta / sqrt(1 + tau^2)), which is not the population's Phi(eta)."""
    fixed = {"x": 0.8, "Intercept": 0.3, "1|g_sigma": 1.7}
    one, posterior = made("b ~ x + (1 | g)", "bernoulli", draws=20_000, fixed=fixed, link="probit")
    rows = frame().iloc[:4].assign(g=["a", "a", "b", "c"], x=[-2.0, 0.0, 1.0, 3.0])
    eta = predict(one, posterior, rows, "population", kind="linear")[0, 0].numpy()
    marginal = predict(one, posterior, rows, "marginal", kind="mean").mean((0, 1)).numpy()
    expected = special.ndtr(eta / math.sqrt(1 + 1.7**2))
    np.testing.assert_allclose(marginal, expected, atol=4 * 0.5 / math.sqrt(40_000))
    population = predict(one, posterior, rows, "population", kind="mean").mean((0, 1)).numpy()
    np.testing.assert_allclose(population, special.ndtr(eta), rtol=1e-10)
    assert np.abs(marginal - population).max() > 0.1
    drawn = predict(one, posterior, rows, "marginal", kind="response").mean((0, 1)).numpy()
    np.testing.assert_allclose(drawn, expected, atol=4 * 0.5 / math.sqrt(40_000))


def test_marginal_mean_of_a_logistic_model_is_that_of_quadrature():
    fixed = {"x": 0.8, "Intercept": 1.0, "1|g_sigma": 2.0}
    one, posterior = made("b ~ x + (1 | g)", "bernoulli", draws=20_000, fixed=fixed)
    rows = frame().iloc[:3].assign(g=["a", "b", "c"], x=[-2.0, 1.0, 4.0])
    eta = predict(one, posterior, rows, "population", kind="linear")[0, 0].numpy()
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    expected = special.expit(eta[:, None] + 2.0 * nodes) @ weights / weights.sum()
    marginal = predict(one, posterior, rows, "marginal", kind="mean").mean((0, 1)).numpy()
    np.testing.assert_allclose(marginal, expected, atol=4 * 0.5 / math.sqrt(40_000))
    population = predict(one, posterior, rows, "population", kind="mean").mean((0, 1)).numpy()
    np.testing.assert_allclose(population, special.expit(eta), rtol=1e-10)
    # Averaging over groups pulls towards one half.
    assert (np.abs(expected - 0.5) < np.abs(population - 0.5)).all()
    assert np.abs(marginal - population).max() > 0.05


@pytest.mark.parametrize("seed", [0, 3, 1009])
def test_noise_of_responses_is_independent_of_new_groups_effects(seed):
    """The same random numbers for both would add the sds instead of the variances."""
    fixed = {"x": 0.0, "Intercept": 0.0, "1|g_sigma": 1.0, "sigma": 1.0}
    one, posterior = made("y ~ x + (1 | g)", draws=10_000, fixed=fixed)
    rows = frame().iloc[:1].assign(g="new")
    drawn = predict(one, posterior, rows, "marginal", kind="response", seed=seed).flatten().numpy()
    assert stats.kstest(drawn, stats.norm(0.0, math.sqrt(2.0)).cdf).pvalue > 1e-4


def test_new_groups_effects_are_independent_of_draws_made_with_the_same_seed():
    """Posterior draws and predictions commonly share ``seed=0``."""
    one = design("y ~ x + (1 | g)", frame())
    posterior = posterior_of(module_of(one), draws=10_000, chains=1, fixed={"1|g_sigma": 1.0})
    generator = torch.Generator().manual_seed(0)
    posterior.chains[0].values["x"] = torch.randn(10_000, 1, generator=generator, dtype=torch.float64)[:, 0]
    encoded = one.encode(frame().iloc[:1].assign(g="new"))
    (chain,) = extended_chains(posterior, encoded, "marginal", seed=0)
    correlation = np.corrcoef(chain.values["x"], chain.values["1|g"][:, 5])[0, 1]
    assert abs(correlation) < 4 / 100


def test_extended_chains_leave_the_posterior_alone():
    one, posterior = made()
    before = {name: value.clone() for name, value in posterior.chains[0].values.items()}
    chains = extended_chains(posterior, one.encode(mixed_rows()), "marginal", seed=0)
    assert chains[0].values["1|g"].shape == (20, 7)
    assert chains[0].values["1|h"].shape == (20, 3)
    for name, value in posterior.chains[0].values.items():
        assert torch.equal(value, before[name])


# --- draws, chunks, seeds ----------------------------------------------------------------------------------


def test_fewer_draws_are_evenly_spaced_and_include_the_ends():
    one, posterior = made(draws=9)
    every = predict(one, posterior, frame(), kind="linear")
    some = predict(one, posterior, frame(), kind="linear", draws=3)
    torch.testing.assert_close(some, every[:, [0, 4, 8]])
    torch.testing.assert_close(predict(one, posterior, frame(), kind="linear", draws=9), every)
    assert predict(one, posterior, mixed_rows(), "marginal", kind="response", draws=4).shape == (2, 4, 6)


@pytest.mark.parametrize("draws", [0, -1, 2.0, True, "3"])
def test_numbers_of_draws_that_cannot_be(draws):
    one, posterior = made()
    with pytest.raises(ArgumentError, match="draws="):
        predict(one, posterior, frame(), draws=draws)


def test_more_draws_than_stored():
    one, posterior = made()
    with pytest.raises(ArgumentError, match="draws=21 is more than the 20"):
        predict(one, posterior, frame(), draws=21)


@pytest.mark.parametrize("mode", ["population", "marginal"])
@pytest.mark.parametrize("kind", ["mean", "linear"])
def test_draws_taken_some_at_a_time_predict_the_same(mode, kind, monkeypatch):
    one, posterior = made()
    encoded = one.encode(mixed_rows())
    whole = predict_draws(posterior, encoded, mode, kind=kind, seed=1)
    monkeypatch.setattr("pyro_armed.predict._ELEMENTS", 100)
    starts = [
        (p.chain, p.start, len(p.etas["mu"])) for p in evaluated_chunks(posterior, encoded, mode, seed=1)
    ]
    assert starts[:3] == [(0, 0, 8), (0, 8, 8), (0, 16, 4)]
    assert starts[3] == (1, 0, 8)
    torch.testing.assert_close(predict_draws(posterior, encoded, mode, kind=kind, seed=1), whole)


@pytest.mark.parametrize("mode", ["population", "marginal"])
@pytest.mark.parametrize("kind", ["mean", "response", "linear"])
@pytest.mark.parametrize("draws", [None, 7])
def test_same_seed_same_predictions_on_every_path(mode, kind, draws, unmoved_rng):
    one, posterior = made()
    rows = mixed_rows()
    with unmoved_rng():
        first = predict(one, posterior, rows, mode, kind=kind, draws=draws, seed=5)
    torch.manual_seed(31)
    assert torch.equal(first, predict(one, posterior, rows, mode, kind=kind, draws=draws, seed=5))
    other = predict(one, posterior, rows, mode, kind=kind, draws=draws, seed=6)
    assert torch.equal(first, other) == (mode == "population" and kind != "response")


def test_threads_are_put_back():
    torch.set_num_threads(2)
    one, posterior = made()
    predict(one, posterior, frame())
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)


def test_streams_differ_by_seed_and_purpose():
    seeds = {stream(seed, purpose, n) for seed in range(20) for purpose in ("a", "b") for n in range(3)}
    assert len(seeds) == 120
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert stream(7, "a") == stream(7, "a")
