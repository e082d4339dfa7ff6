"""Scores against scikit-learn, SciPy, closed forms and brute force."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats
from sklearn import metrics as sklearn_metrics

from pyro_armed import metrics
from pyro_armed.errors import ArgumentError


@pytest.fixture
def rng():
    return np.random.default_rng(5)


# --- densities and errors ----------------------------------------------------------------------------------


def test_log_predictive_density_is_log_of_mean_density(rng):
    log_prob = rng.normal(size=(7, 3))
    expected = np.log(np.exp(log_prob).mean(axis=0))
    np.testing.assert_allclose(metrics.log_predictive_density(log_prob), expected)


def test_log_predictive_density_does_not_underflow():
    assert metrics.log_predictive_density([[-2000.0], [-2000.0]])[0] == pytest.approx(-2000.0)
    assert metrics.log_predictive_density([[-math.inf], [0.0]])[0] == pytest.approx(-math.log(2.0))


def test_rmse_against_sklearn_and_its_error_against_the_bootstrap(rng):
    y, mean, w = rng.normal(size=400), rng.normal(size=400), rng.uniform(0.2, 3.0, 400)
    estimate = metrics.rmse((y - mean) ** 2, w)
    assert estimate.value == pytest.approx(sklearn_metrics.root_mean_squared_error(y, mean, sample_weight=w))
    rows = rng.integers(400, size=(2000, 400))
    repeated = [metrics.rmse((y - mean)[r] ** 2, w[r]).value for r in rows]
    assert estimate.se == pytest.approx(np.std(repeated), rel=0.1)


def test_rmse_of_perfect_predictions_has_no_standard_error():
    value, se = metrics.rmse(np.zeros(5))
    assert value == 0.0
    assert math.isnan(se)


# --- crps --------------------------------------------------------------------------------------------------


def brute_crps(draws, y, fair):
    s = len(draws)
    pairs = sum(abs(a - b) for a, b in itertools.product(draws, draws))
    return np.mean(np.abs(draws - y)) - pairs / (2 * s * (s - 1 if fair else s))


@pytest.mark.parametrize("fair", [True, False])
@pytest.mark.parametrize("n_draws", [2, 3, 8, 25])
def test_crps_against_all_pairs(rng, fair, n_draws):
    draws, y = np.round(rng.normal(size=(n_draws, 6)), 1), rng.normal(size=6)
    expected = [brute_crps(draws[:, i], y[i], fair) for i in range(6)]
    np.testing.assert_allclose(metrics.crps(draws, y, fair), expected, atol=1e-14)


def test_empirical_crps_is_the_integral_over_the_squared_distance_of_distribution_functions(rng):
    draws, y = rng.normal(size=9), 0.3

    def squared(t):
        return (np.mean(draws <= t) - (t >= y)) ** 2

    corners = sorted([*draws, y])
    expected = sum(integrate.quad(squared, a, b)[0] for a, b in itertools.pairwise(corners))
    assert metrics.crps(draws[:, None], [y], fair=False)[0] == pytest.approx(expected, rel=1e-6)


def test_fair_crps_has_the_closed_form_of_the_normal_as_its_mean_for_few_draws(rng):
    y, few = 0.7, rng.normal(size=(5, 200_000))
    closed = y * (2 * stats.norm.cdf(y) - 1) + 2 * stats.norm.pdf(y) - 1 / math.sqrt(math.pi)
    fair = metrics.crps(few, np.full(200_000, y))
    assert fair.mean() == pytest.approx(closed, abs=4 * fair.std() / math.sqrt(200_000))
    assert metrics.crps(few, np.full(200_000, y), fair=False).mean() > closed + 0.05


def test_crps_keeps_its_digits_far_from_zero(rng):
    draws, y = rng.normal(size=(50, 4)), rng.normal(size=4)
    np.testing.assert_allclose(metrics.crps(draws + 1e9, y + 1e9), metrics.crps(draws, y), atol=1e-6)


def test_crps_of_one_draw_is_the_absolute_error():
    assert metrics.crps([[1.0]], [3.5])[0] == 2.5


# --- coverage ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probability", [0.5, 0.8, 0.95])
def test_coverage_of_continuous_draws_is_that_of_the_quantile_interval(rng, probability):
    draws, y = rng.normal(size=(1999, 300)), rng.normal(size=300) * 1.5
    tail = (1 - probability) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    inside = (y > low) & (y < high)
    covered = metrics.coverage(draws, y, probability)
    assert np.mean(covered != inside) < 0.02  # rows at the very edge
    assert covered.mean() == pytest.approx(inside.mean(), abs=0.01)


@pytest.mark.parametrize("n_draws", [1, 4, 37])
@pytest.mark.parametrize("probability", [0.5, 0.95])
def test_coverage_of_exchangeable_rows_is_nominal_for_any_number_of_draws(rng, n_draws, probability):
    everything = rng.normal(size=(n_draws + 1, 40_000))
    covered = metrics.coverage(everything[1:], everything[0], probability)
    error = max(covered.std(), 1e-9) / math.sqrt(40_000)
    assert covered.mean() == pytest.approx(probability, abs=4 * error + 1e-9)


@pytest.mark.parametrize("rate", [0.1, 1.5, 20.0])
@pytest.mark.parametrize("probability", [0.5, 0.8, 0.95])
def test_coverage_of_counts_is_nominal_where_a_closed_interval_covers_too_much(rng, rate, probability):
    draws, y = rng.poisson(rate, (200, 20_000)), rng.poisson(rate, 20_000)
    covered = metrics.coverage(draws, y, probability)
    assert covered.mean() == pytest.approx(probability, abs=4 * covered.std() / math.sqrt(20_000))
    tail = (1 - probability) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    closed = ((y >= low) & (y <= high)).mean()
    assert closed > probability + 0.002


def test_coverage_is_the_expected_value_of_the_randomised_transform(rng):
    draws, y = rng.poisson(2.0, (99, 1)), np.array([3])
    less, equal = (draws < 3).sum(), (draws == 3).sum()
    u = (less + (equal + 1) * rng.uniform(size=400_000)) / 100
    simulated = ((u > 0.25) & (u < 0.75)).mean()
    assert metrics.coverage(draws, y, 0.5)[0] == pytest.approx(simulated, abs=0.004)


def test_too_narrow_predictions_cover_too_little(rng):
    draws, y = 0.5 * rng.normal(size=(500, 3000)), rng.normal(size=3000)
    expected = stats.norm.cdf(0.5 * stats.norm.ppf(0.9)) * 2 - 1
    assert metrics.coverage(draws, y, 0.8).mean() == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("probability", [0.0, 1.0, 80.0])
def test_coverage_refuses_what_is_no_probability(probability):
    with pytest.raises(ArgumentError, match="probability="):
        metrics.coverage([[0.0]], [0.0], probability)


# --- probabilities -----------------------------------------------------------------------------------------


def test_brier_of_two_outcomes_and_of_levels_against_sklearn(rng):
    y, p = rng.integers(0, 2, 50), rng.uniform(size=50)
    assert metrics.squared_errors(p, y).mean() == pytest.approx(sklearn_metrics.brier_score_loss(y, p))
    levels, table = rng.integers(0, 4, 50), rng.dirichlet(np.ones(4), 50)
    expected = sklearn_metrics.brier_score_loss(levels, table, labels=[0, 1, 2, 3], scale_by_half=False)
    assert metrics.squared_errors(table, levels).mean() == pytest.approx(expected)
    # Codes may come as floating numbers, as a Batch holds them.
    np.testing.assert_array_equal(
        metrics.squared_errors(table, levels), metrics.squared_errors(table, levels * 1.0)
    )


def test_accuracy_against_sklearn(rng):
    levels, table = rng.integers(0, 4, 80).astype(float), rng.dirichlet(np.ones(4), 80)
    expected = sklearn_metrics.accuracy_score(levels, table.argmax(axis=1))
    assert metrics.correct(table, levels).mean() == pytest.approx(expected)


@given(st.integers(0, 10_000), st.booleans(), st.booleans())
def test_auroc_against_sklearn_with_ties_and_weights(seed, ties, weighted):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(4, 60))
    y = rng.permutation(np.arange(n) % 2)
    scores = rng.normal(size=n) + y
    scores = np.round(scores) if ties else scores
    w = rng.integers(0, 4, n) + (np.arange(n) < 2) if weighted else None
    if w is not None and not (w[y == 1].any() and w[y == 0].any()):
        return
    expected = sklearn_metrics.roc_auc_score(y, scores, sample_weight=w)
    assert metrics.auroc(scores, y, w).value == pytest.approx(expected, abs=1e-12)


def test_standard_error_of_auroc_against_delong_by_hand_and_the_bootstrap(rng):
    y = rng.integers(0, 2, 300)
    scores = np.round(rng.normal(size=300) + y, 1)
    ones, zeros = scores[y == 1], scores[y == 0]
    psi = (ones[:, None] > zeros) + 0.5 * (ones[:, None] == zeros)
    by_hand = math.sqrt(psi.mean(1).var(ddof=1) / len(ones) + psi.mean(0).var(ddof=1) / len(zeros))
    se = metrics.auroc(scores, y).se
    assert se == pytest.approx(by_hand)
    rows = rng.integers(300, size=(2000, 300))
    assert se == pytest.approx(np.std([metrics.auroc(scores[r], y[r]).value for r in rows]), rel=0.1)


def test_auroc_needs_both_outcomes():
    assert all(math.isnan(v) for v in metrics.auroc([0.1, 0.2], [1, 1]))
    assert all(math.isnan(v) for v in metrics.auroc([0.1, 0.2], [1, 0], [1.0, 0.0]))


def test_ece_against_bins_by_hand(rng):
    p = rng.permutation(np.linspace(0.01, 0.99, 100))
    y = (rng.uniform(size=100) < p**2).astype(float)
    order = np.argsort(p)
    bins = order.reshape(10, 10)
    expected = np.mean([abs(p[b].mean() - y[b].mean()) for b in bins])
    assert metrics.expected_calibration_error(p, y).value == pytest.approx(expected)


def test_ece_keeps_equal_probabilities_together_whatever_the_order(rng):
    p = rng.choice([0.2, 0.5, 0.9], 60)
    y = rng.integers(0, 2, 60)
    expected = sum(abs((p[p == v] - y[p == v]).sum()) for v in (0.2, 0.5, 0.9)) / 60
    assert metrics.expected_calibration_error(p, y, bins=60).value == pytest.approx(expected)
    for _ in range(5):
        rows = rng.permutation(60)
        value = metrics.expected_calibration_error(p[rows], y[rows]).value
        assert value == pytest.approx(metrics.expected_calibration_error(p, y).value)
    assert metrics.expected_calibration_error(p, y, bins=1).value == pytest.approx(abs((p - y).mean()))


def test_ece_weights_count_rows_more_than_once(rng):
    p, y, w = rng.uniform(size=40), rng.integers(0, 2, 40), rng.integers(0, 4, 40)
    repeated = np.repeat(np.arange(40), w)
    expected = metrics.expected_calibration_error(p[repeated], y[repeated], bins=4).value
    assert metrics.expected_calibration_error(p, y, w, bins=4).value == pytest.approx(expected)


def test_ece_of_calibrated_and_of_overconfident_probabilities(rng, unmoved_rng):
    truth = rng.uniform(0.2, 0.8, 20_000)
    y = rng.uniform(size=20_000) < truth
    with unmoved_rng():
        good = metrics.expected_calibration_error(truth, y)
    assert good.value < 0.02
    assert 0.0 < good.se < 0.01
    assert good == metrics.expected_calibration_error(truth, y)
    bad = metrics.expected_calibration_error(np.where(truth > 0.5, 0.99, 0.01), y)
    assert bad.value == pytest.approx(0.34, abs=0.02)
    # sd of a mean of 20000 Bernoulli rows
    assert bad.se == pytest.approx(math.sqrt(0.65 * 0.35 / 20_000), rel=0.25)


def test_ece_refuses_no_bins():
    with pytest.raises(ArgumentError, match="bins=0"):
        metrics.expected_calibration_error([0.5], [1], bins=0)


# --- means -------------------------------------------------------------------------------------------------


def test_mean_score_is_the_mean_and_its_standard_error(rng):
    scores = rng.normal(size=30)
    estimate = metrics.mean_score(scores)
    assert estimate.value == pytest.approx(scores.mean())
    assert estimate.se == pytest.approx(stats.sem(scores))


def test_weights_of_any_scale_give_the_same_estimate_and_zero_drops_a_row(rng):
    scores, w = rng.normal(size=30), rng.uniform(0.5, 2.0, 30)
    value, se = metrics.mean_score(scores, w)
    assert value == pytest.approx(np.average(scores, weights=w))
    assert metrics.mean_score(scores, 1e-3 * w) == pytest.approx((value, se))
    dropped = np.append(w, 0.0)
    assert metrics.mean_score(np.append(scores, math.inf), dropped) == pytest.approx((value, se))
    assert metrics.mean_score(scores, np.full(30, 7.0)).se == pytest.approx(stats.sem(scores))


def test_weighted_standard_error_against_the_bootstrap(rng):
    scores, w = rng.normal(size=500), rng.exponential(size=500)
    rows = rng.integers(500, size=(4000, 500))
    repeated = [metrics.mean_score(scores[r], w[r]).value for r in rows]
    assert metrics.mean_score(scores, w).se == pytest.approx(np.std(repeated), rel=0.08)


def test_mean_score_of_one_row_or_an_impossible_one():
    assert math.isnan(metrics.mean_score([2.0]).se)
    value, se = metrics.mean_score([1.0, math.inf])
    assert value == math.inf
    assert math.isnan(se)


# --- rows of one group depend on each other ----------------------------------------------------------------


def grouped(rng, n_groups, rows, share):
    """Scores whose variance of one is shared between groups to the given part; and the groups' codes."""
    groups = np.repeat(np.arange(n_groups), rows)
    between = rng.normal(size=n_groups)[groups]
    return math.sqrt(share) * between + math.sqrt(1 - share) * rng.normal(size=n_groups * rows), groups


def test_standard_error_of_a_mean_allows_for_groups():
    # Var(mean) = (share + (1 - share) / rows) / groups in closed form.
    rng = np.random.default_rng(0)
    found = [grouped(rng, 40, 10, 0.5) for _ in range(400)]
    squares = [metrics.mean_score(scores, clusters=groups).se ** 2 for scores, groups in found]
    # The sd of one estimate is about sqrt(2 / 39) of it: of 400 it is 1.1 %.
    assert np.mean(squares) == pytest.approx((0.5 + 0.05) / 40, rel=0.04)
    naive = np.mean([metrics.mean_score(scores).se ** 2 for scores, _ in found])
    assert naive < 0.3 * np.mean(squares)


def test_clusters_of_one_row_are_rows():
    scores, w = np.random.default_rng(0).gamma(1.0, size=(2, 30))
    w[:4] = 0.0
    labels = [f"g{i}" for i in range(30)]
    assert metrics.mean_score(scores, w, labels) == pytest.approx(metrics.mean_score(scores, w))
    assert metrics.rmse(scores, w, labels) == pytest.approx(metrics.rmse(scores, w))
    assert math.isnan(metrics.mean_score(scores, clusters=np.zeros(30)).se)


def test_weights_and_clusters_by_hand():
    scores, w, groups = [1.0, 2.0, 4.0, 8.0], [1.0, 3.0, 2.0, 0.0], [0, 0, 1, 2]
    mean = (1 + 6 + 8) / 6  # the row of weight zero does not count, nor does its group
    sums = np.array([(1 - mean) + 3 * (2 - mean), 2 * (4 - mean)]) / 6
    expected = math.sqrt(2 * sums @ sums)
    assert metrics.mean_score(scores, w, groups) == pytest.approx((mean, expected))


def test_standard_error_of_auroc_allows_for_groups():
    rng = np.random.default_rng(1)
    values, errors, naive = [], [], []
    for _ in range(400):
        shared, groups = grouped(rng, 40, 10, 0.6)
        y = rng.integers(0, 2, 40)[groups]  # outcomes of a group are equal: the extreme
        estimate = metrics.auroc(shared + 0.8 * y, y, clusters=groups)
        values.append(estimate.value)
        errors.append(estimate.se)
        naive.append(metrics.auroc(shared + 0.8 * y, y).se)
    # The sd of 400 values is known to about 3.5 %.
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.12)
    assert np.mean(naive) < 0.6 * np.mean(errors)


def test_standard_error_of_calibration_error_allows_for_groups():
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(20), 25)
    p = rng.uniform(0.2, 0.8, 500)
    y = (rng.uniform(size=500) < np.clip(p + rng.choice([-0.2, 0.2], 20)[groups], 0, 1)).astype(float)
    by_row = metrics.expected_calibration_error(p, y, bins=1)
    by_group = metrics.expected_calibration_error(p, y, clusters=groups, bins=1)
    assert by_group.value == by_row.value
    assert by_group.se > 1.5 * by_row.se
    assert math.isnan(metrics.expected_calibration_error(p, y, clusters=np.zeros(500)).se)
    assert math.isnan(metrics.expected_calibration_error(p, y, replicates=0).se)


def test_the_widest_standard_error_is_taken():
    scores = np.array([1.0, 1.0, 3.0, 3.0])
    rows = metrics.mean_score(scores).se

    def mean(codes):
        return metrics.mean_score(scores, clusters=codes)

    assert metrics.widest(mean, [[0, 0, 1, 1], [0, 1, 0, 1]]).se == 1.0 > rows
    assert metrics.widest(mean, [[0, 1, 0, 1]]).se == pytest.approx(rows)  # zero by chance
    assert metrics.widest(mean, [[0, 0, 0, 0]]).se == pytest.approx(rows)
    assert metrics.widest(mean, []).se == pytest.approx(rows)


def test_calibration_error_of_intervals():
    covered = np.array([[1.0, 1.0], [1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    assert metrics.interval_calibration_error(covered, [0.5, 0.8]).value == pytest.approx((0.0 + 0.05) / 2)
    weighted = metrics.interval_calibration_error(covered, [0.5, 0.8], weights=[1, 1, 0, 0])
    assert weighted.value == pytest.approx((0.5 + 0.2) / 2)
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 10)
    inside = (rng.uniform(size=30) < 0.5).astype(float)[groups][:, None]
    by_row = metrics.interval_calibration_error(inside, [0.8])
    by_group = metrics.interval_calibration_error(inside, [0.8], clusters=groups)
    assert by_group.se > 2 * by_row.se  # rows of a group are all inside or all outside: sqrt(10) in theory
