"""Scores of posteriors made by hand, against SciPy, loops over rows and draws, and closed forms."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hand_made import design, frame, module_of, posterior_of
from scipy import special, stats
from torch import nn

from pyro_armed import evaluation, metrics
from pyro_armed.design import Encoded
from pyro_armed.errors import ArgumentError, DataError, UnseenGroupError
from pyro_armed.evaluation import evaluate, pointwise
from pyro_armed.predict import predict_draws

MODELS = {
    "gaussian": "y ~ x + (1 + x | g)",
    "student_t": "y ~ x + (1 | g)",
    "poisson": "count ~ x + (1 | g) + (1 | h)",
    "negative_binomial": "count ~ x + (1 | g)",
    "gamma": "p ~ x + (1 | g)",
    "beta": "p ~ x + (1 | g)",
    "binomial": "p(s, t) ~ x + (1 | g)",
    "bernoulli": "b ~ x + (1 | g)",
    "categorical": "c ~ x + (1 | g)",
    "ordinal": "o ~ x + (1 | g)",
}
NUMERIC = ["gaussian", "student_t", "poisson", "negative_binomial", "gamma", "beta", "binomial"]


def made(family, **options):
    data = frame()
    one = design(MODELS[family], data, family, **options)
    return one, posterior_of(module_of(one))


def table(scores: pd.DataFrame) -> dict[str, float]:
    return dict(zip(scores["metric"], scores["value"], strict=True))


def scipy_density(family, eta, aux, batch):
    """Density of each row under one draw; eta (N,) or (N, R)."""
    y = batch.response.numpy()
    if family == "gaussian":
        return stats.norm.pdf(y, eta, aux["sigma"])
    if family == "student_t":
        return stats.t.pdf(y, aux["nu"], eta, aux["sigma"])
    if family == "poisson":
        return stats.poisson.pmf(y, np.exp(eta))
    if family == "negative_binomial":
        alpha = aux["alpha"]
        return stats.nbinom.pmf(y, alpha, alpha / (alpha + np.exp(eta)))
    if family == "gamma":
        return stats.gamma.pdf(y, aux["alpha"], scale=np.exp(eta) / aux["alpha"])
    if family == "beta":
        mu, kappa = special.expit(eta), aux["kappa"]
        return stats.beta.pdf(y, mu * kappa, (1 - mu) * kappa)
    if family == "binomial":
        return stats.binom.pmf(y, batch.trials.numpy(), special.expit(eta))
    if family == "bernoulli":
        return stats.bernoulli.pmf(y, special.expit(eta))
    return probabilities(family, eta, aux)[np.arange(len(y)), y.astype(int)]


def probabilities(family, eta, aux):
    if family == "categorical":
        return special.softmax(np.column_stack([np.zeros(len(eta)), eta]), axis=1)
    cumulative = special.expit(np.asarray(aux["threshold"]) - eta[:, None])
    edges = np.column_stack([np.zeros(len(eta)), cumulative, np.ones(len(eta))])
    return np.diff(edges, axis=1)


def by_draw(one, posterior):
    """Linear predictor and auxiliaries of each draw of each chain."""
    etas = predict_draws(posterior, one.training, "error", kind="linear", seed=0).numpy()
    for chain, eta in zip(posterior.chains, etas, strict=True):
        for s in range(len(eta)):
            yield eta[s], {n: chain.values[n][s].numpy() for n in one.family.auxiliaries}


@pytest.mark.parametrize("family", MODELS)
def test_nlpd_of_each_row_is_that_of_the_mean_density(family):
    one, posterior = made(family)
    densities = [scipy_density(family, eta, aux, one.training.batch) for eta, aux in by_draw(one, posterior)]
    assert len(densities) == 40
    expected = -np.log(np.mean(densities, axis=0))
    rows = pointwise(posterior, one.training, "error", seed=0)
    np.testing.assert_allclose(rows["nlpd"], expected, rtol=1e-9)
    scores = evaluate(posterior, one.training, "error", seed=0).set_index("metric")
    assert scores.loc["nlpd", "value"] == pytest.approx(expected.mean())
    w = one.training.batch.weights
    assert w is None
    factors = ["g", "h"] if family == "poisson" else ["g"]
    robust = [metrics.mean_score(expected, clusters=frame()[factor]).se for factor in factors]
    assert scores.loc["nlpd", "se"] == pytest.approx(max(stats.sem(expected), *robust))


@pytest.mark.parametrize("family", MODELS)
def test_metrics_of_each_family(family):
    one, posterior = made(family)
    scores = evaluate(posterior, one.training, "error", seed=0)
    assert list(scores.columns) == ["metric", "value", "se"]
    numeric = ["nlpd", "rmse", "crps", "coverage_50", "coverage_80", "coverage_95"]
    levels = ["nlpd", "accuracy", "brier"]
    expected = {"bernoulli": ["nlpd", "auroc", "brier", "ece"], "categorical": levels, "ordinal": levels}
    assert scores["metric"].tolist() == expected.get(family, numeric)
    assert np.isfinite(scores[["value", "se"]].to_numpy()).all()
    assert scores.attrs["n_rows"] == 20
    assert scores.attrs["n_draws"] == 40


@pytest.mark.parametrize("family", NUMERIC)
def test_rmse_crps_and_coverage_of_numeric_responses(family):
    data = frame()
    one = design(MODELS[family], data, family)
    fixed = {"nu": 5.0} if family == "student_t" else {}
    posterior = posterior_of(module_of(one), draws=900, fixed=fixed)
    y = one.training.batch.response.numpy()
    mean = predict_draws(posterior, one.training, "error", kind="mean", seed=0).mean((0, 1)).numpy()
    if family == "binomial":
        mean = mean * one.training.batch.trials.numpy()
    scores = table(evaluate(posterior, one.training, "error", seed=0))
    assert scores["rmse"] == pytest.approx(math.sqrt(np.mean((y - mean) ** 2)))
    # Other draws of the same predictive distribution: what is left is Monte Carlo error.
    drawn = predict_draws(posterior, one.training, "error", kind="response", seed=77).flatten(0, 1).numpy()
    crps = metrics.crps(drawn, y)
    assert scores["crps"] == pytest.approx(crps.mean(), rel=0.05)
    for probability in (0.5, 0.8, 0.95):
        expected = metrics.coverage(drawn, y, probability).mean()
        assert scores[f"coverage_{probability * 100:.0f}"] == pytest.approx(expected, abs=0.06)


def test_scores_of_a_binary_response():
    one, posterior = made("bernoulli")
    y = one.training.batch.response.numpy()
    p = np.mean([special.expit(eta) for eta, _ in by_draw(one, posterior)], axis=0)
    scores = table(evaluate(posterior, one.training, "error", seed=0))
    assert scores["auroc"] == pytest.approx(metrics.auroc(p, y).value)
    assert scores["brier"] == pytest.approx(np.mean((p - y) ** 2))
    assert scores["ece"] == pytest.approx(metrics.expected_calibration_error(p, y).value)


@pytest.mark.parametrize("family", ["categorical", "ordinal"])
def test_scores_of_levels(family):
    one, posterior = made(family)
    y = one.training.batch.response.numpy().astype(int)
    p = np.mean([probabilities(family, eta, aux) for eta, aux in by_draw(one, posterior)], axis=0)
    scores = table(evaluate(posterior, one.training, "error", seed=0))
    assert scores["accuracy"] == pytest.approx(np.mean(p.argmax(axis=1) == y))
    assert scores["brier"] == pytest.approx(((p - np.eye(3)[y]) ** 2).sum(axis=1).mean())


def test_auroc_of_one_outcome_is_nan_and_says_why():
    one, posterior = made("bernoulli")
    ones = one.encode(frame().query("b == 1"), response=True)
    scores = evaluate(posterior, ones, "error", seed=0)
    assert math.isnan(table(scores)["auroc"])
    assert "one outcome" in scores.attrs["notes"]["auroc"]
    assert np.isfinite(table(scores)["brier"])


# --- rows, draws, weights ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gaussian", "bernoulli", "categorical"])
def test_rows_taken_some_at_a_time_score_the_same(family, monkeypatch):
    one, posterior = made(family)
    rows = frame().assign(g=np.repeat(["g0", "new", "g1", "other"], 5))
    encoded = one.encode(rows, response=True)
    whole = pointwise(posterior, encoded, "marginal", seed=3)
    monkeypatch.setattr(evaluation, "_ELEMENTS", 3 * 40)  # three rows at a time
    monkeypatch.setattr("pyro_armed.predict._ELEMENTS", 3 * 7)  # a few draws at a time
    parts = pointwise(posterior, encoded, "marginal", seed=3)
    exact = [
        name for name in whole if name != "crps" and not name.startswith("covered")
    ]  # from drawn responses
    pd.testing.assert_frame_equal(parts[exact], whole[exact])
    if family == "gaussian":
        assert parts["crps"].mean() == pytest.approx(whole["crps"].mean(), rel=0.2)


def test_at_most_two_thousand_predictive_draws_but_all_draws_for_the_density(monkeypatch):
    one = design(MODELS["gaussian"], frame(), "gaussian")
    posterior = posterior_of(module_of(one), draws=1500)
    seen = []
    original = metrics.crps
    monkeypatch.setattr(metrics, "crps", lambda draws, y: seen.append(draws.shape) or original(draws, y))
    monkeypatch.setattr("pyro_armed.predict._ELEMENTS", 20 * 2 * 333)
    scores = evaluate(posterior, one.training, "error", seed=0)
    assert seen == [(2000, 20)]
    assert scores.attrs["n_draws"] == 3000


def test_fewer_draws():
    one, posterior = made("gaussian")
    first = evaluate(posterior, one.training, "error", seed=0, draws=1)
    assert first.attrs["n_draws"] == 2
    densities = [scipy_density("gaussian", e, a, one.training.batch) for e, a in by_draw(one, posterior)]
    expected = -np.log(np.mean([densities[0], densities[20]], axis=0)).mean()
    assert table(first)["nlpd"] == pytest.approx(expected)
    with pytest.raises(ArgumentError, match="draws=21"):
        evaluate(posterior, one.training, "error", seed=0, draws=21)


def test_weighted_rows():
    data = frame()
    one = design(MODELS["poisson"], data, "poisson", weights="w")
    posterior = posterior_of(module_of(one))
    rows = pointwise(posterior, one.training, "error", seed=0)
    np.testing.assert_array_equal(rows["weight"], data["w"])
    scores = table(evaluate(posterior, one.training, "error", seed=0))
    for metric, column in {"nlpd": "nlpd", "crps": "crps"}.items():
        assert scores[metric] == pytest.approx(np.average(rows[column], weights=data["w"]))
    assert scores["rmse"] == pytest.approx(math.sqrt(np.average(rows["squared_error"], weights=data["w"])))
    plain = table(evaluate(posterior, _without_weights(one.training), "error", seed=0))
    assert scores["nlpd"] != pytest.approx(plain["nlpd"])


def _without_weights(encoded: Encoded) -> Encoded:
    return replace(encoded, batch=replace(encoded.batch, weights=None))


def test_pointwise_names_the_rows_of_the_data():
    data = frame()
    data.loc[3, "x"] = np.nan
    one = design(MODELS["gaussian"], data, missing="drop")
    rows = pointwise(posterior_of(module_of(one)), one.training, "error", seed=0)
    assert rows.index.tolist() == [i for i in range(20) if i != 3]
    assert rows.index.name == "__obs__"
    covered = ["covered_50", "covered_80", "covered_95"]
    assert list(rows) == ["nlpd", "squared_error", "crps", "expected", *covered]


def test_rows_without_response_are_refused():
    one, posterior = made("gaussian")
    with pytest.raises(DataError, match="response"):
        evaluate(posterior, one.encode(frame().drop(columns="y")), "error", seed=0)


# --- new groups --------------------------------------------------------------------------------------------


def new_rows(n: int) -> pd.DataFrame:
    rng = np.random.default_rng(8)
    return pd.DataFrame({"x": 0.0, "g": [f"new{i}" for i in range(n)], "y": rng.normal(0.0, 1.5, n)})


def test_marginal_density_of_a_new_group_has_both_variances():
    one = design("y ~ 0 + x + (1 | g)", frame())
    fixed = {"x": 0.0, "1|g_sigma": 1.2, "sigma": 0.9}
    posterior = posterior_of(module_of(one), draws=20_000, fixed=fixed)
    encoded = one.encode(new_rows(8), response=True)
    y = new_rows(8)["y"].to_numpy()
    marginal = pointwise(posterior, encoded, "marginal", seed=1)
    both = math.hypot(1.2, 0.9)
    np.testing.assert_allclose(marginal["nlpd"], -stats.norm.logpdf(y, 0.0, both), atol=0.03)
    # Draws of the response have that distribution too: crps in closed form.
    z = y / both
    closed = both * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / math.sqrt(math.pi))
    np.testing.assert_allclose(marginal["crps"], closed, rtol=0.05, atol=0.05)
    population = pointwise(posterior, encoded, "population", seed=1)
    np.testing.assert_allclose(population["nlpd"], -stats.norm.logpdf(y, 0.0, 0.9))


def test_calibrated_predictions_of_new_groups_cover_what_they_say():
    rng = np.random.default_rng(2)
    one = design("y ~ 0 + x + (1 | g)", frame())
    posterior = posterior_of(module_of(one), draws=200, fixed={"x": 0.0, "1|g_sigma": 1.2, "sigma": 0.9})
    rows = pd.DataFrame({"x": 0.0, "g": [f"new{i}" for i in range(2000)]})
    rows["y"] = rng.normal(0.0, math.hypot(1.2, 0.9), 2000)
    scores = evaluate(posterior, one.encode(rows, response=True), "marginal", seed=4).set_index("metric")
    for probability in (50, 80, 95):
        value, se = scores.loc[f"coverage_{probability}"]
        assert value == pytest.approx(probability / 100, abs=4 * se)
    too_narrow = evaluate(posterior, one.encode(rows, response=True), "population", seed=4)
    assert table(too_narrow)["coverage_80"] < 0.7


def test_error_mode_refuses_new_groups():
    one, posterior = made("gaussian")
    encoded = one.encode(frame().assign(g="new"), response=True)
    with pytest.raises(UnseenGroupError, match="'new'"):
        evaluate(posterior, encoded, "error", seed=0)
    assert evaluate(posterior, encoded, "marginal", seed=0).attrs["new_groups"] == "marginal"


# --- randomness and networks -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gaussian", "bernoulli"])
def test_same_seed_same_scores_and_no_global_state(family, unmoved_rng):
    one, posterior = made(family)
    encoded = one.encode(frame().assign(g="new"), response=True)
    with unmoved_rng():
        first = evaluate(posterior, encoded, "marginal", seed=5)
    torch.manual_seed(999)
    pd.testing.assert_frame_equal(first, evaluate(posterior, encoded, "marginal", seed=5))
    assert not first.equals(evaluate(posterior, encoded, "marginal", seed=6))


def test_network_in_single_precision():
    one = design("b ~ x + z + (1 + features | g)", frame(), "bernoulli", network=True, dtype=torch.float32)
    torch.manual_seed(3)
    network = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    posterior = posterior_of(module_of(one, network, "2", 4))
    logits = predict_draws(posterior, one.training, "error", kind="linear", seed=0).double().flatten(0, 1)
    y = one.training.batch.response.numpy()
    density = stats.bernoulli.pmf(y, special.expit(logits.numpy())).mean(axis=0)
    scores = evaluate(posterior, one.training, "error", seed=0)
    assert table(scores)["nlpd"] == pytest.approx(-np.log(density).mean(), rel=1e-5)
