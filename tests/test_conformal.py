"""Intervals calibrated on groups: thresholds by brute force, coverage on simulated new groups, bad input."""

import math
import warnings

import numpy as np
import pandas as pd
import pytest
from hand_made import design, frame, module_of, posterior_of
from scipy import stats
from scipy.special import expit

import pyro_armed as pa
from pyro_armed import families
from pyro_armed.conformal import (
    Predictive,
    conformal_regions,
    conformity,
    group_threshold,
    least_groups,
    posterior_regions,
    predictive,
    regions_at,
    regions_of,
)
from pyro_armed.errors import ArgumentError, ArmedWarning, DataError, UnseenGroupError
from pyro_armed.new_groups import mode_of

MARGINAL = mode_of("marginal")
NONE = np.empty(0)


def numbers(center, half, above=None, ceiling=math.inf):
    """A predictive distribution with central intervals center - half to center + above."""
    center = np.asarray(center, dtype=float)
    half = np.broadcast_to(np.asarray(half, dtype=float), center.shape)
    above = half if above is None else above
    return Predictive(center, center - half, center + above, np.full(center.shape, ceiling), np.empty((0, 0)))


def levels(probability):
    return Predictive(NONE, NONE, NONE, NONE, np.asarray(probability, dtype=float))


# --- thresholds --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9])
def test_threshold_is_the_weighted_quantile(level):
    rng = np.random.default_rng(0)
    for _ in range(50):
        groups = rng.integers(0, 15, 60)
        scores = np.round(rng.exponential(size=60), 1)  # with ties
        k = len(np.unique(groups))
        mass = {
            t: sum((scores[groups == g] <= t).mean() for g in np.unique(groups)) / (k + 1) for t in scores
        }
        reached = [t for t in mass if mass[t] >= level - 1e-12]
        assert group_threshold(scores, groups, level) == (min(reached) if reached else math.inf)


@pytest.mark.parametrize("level", [0.1, 0.5, 0.75, 0.8, 0.9, 0.95, 0.99])
def test_least_groups_is_the_least(level):
    k = least_groups(level)
    assert np.isfinite(group_threshold(np.arange(k), np.arange(k), level))
    if k > 1:
        assert group_threshold(np.arange(k - 1), np.arange(k - 1), level) == math.inf
    assert k == next(n for n in range(1, 200) if n / (n + 1) >= level - 1e-12)


def test_groups_count_the_same_whatever_their_size():
    scores = np.concatenate([np.full(1000, 5.0), np.arange(9.0) / 10])
    groups = np.concatenate([np.zeros(1000), np.arange(1, 10)])
    assert group_threshold(scores, groups, 0.8) == 0.8  # 9 of 11 are at or below .8
    assert group_threshold(scores, groups, 0.9) == 5.0


# --- scores and regions ------------------------------------------------------------------------------------


def test_regions_are_what_scores_at_most_the_threshold():
    found = numbers([0.0, 1.0, 2.0], [1.0, 2.0, 0.5], above=np.array([3.0, 2.0, 0.5]))
    grid = np.linspace(-20, 20, 4001)
    for threshold in (0.3, 1.0, 2.5):
        region = regions_at(found, threshold, families.get("gaussian"))
        for row in range(3):
            one = numbers(
                np.full(grid.shape, found.center[row]),
                found.center[row] - found.low[row],
                above=found.high[row] - found.center[row],
            )
            inside = (grid >= region.lower[row]) & (grid <= region.upper[row])
            score = conformity(one, grid)
            np.testing.assert_array_equal(inside[np.abs(score - threshold) > 1e-9], (score <= threshold)[
                np.abs(score - threshold) > 1e-9
            ])  # fmt: skip


@pytest.mark.parametrize(
    ("family", "ceiling", "lower", "upper"),
    [
        ("poisson", math.inf, 0, 6),
        ("binomial", 5.0, 0, 5),
        ("gamma", math.inf, 0.0, 6.6),
        ("beta", 1.0, 0, 1),
    ],
)
def test_intervals_stay_within_the_range_of_the_response(family, ceiling, lower, upper):
    region = regions_at(numbers([1.8], 2.4, ceiling=ceiling), 2.0, families.get(family))
    assert region.lower[0] == lower
    assert region.upper[0] == pytest.approx(upper)
    unbounded = regions_at(numbers([1.8], 2.4, ceiling=ceiling), math.inf, families.get(family))
    assert (unbounded.lower[0], unbounded.upper[0]) == (0, ceiling)


def test_sets_are_never_empty_and_have_all_levels_without_a_threshold():
    found = levels([[0.5, 0.3, 0.2], [0.4, 0.4, 0.2]])
    np.testing.assert_array_equal(conformity(found, [0, 2]), [0.5, 0.8])
    few = regions_at(found, 0.1, families.get("categorical")).members
    assert few.tolist() == [[True, False, False], [True, True, False]]
    assert regions_at(found, 0.7, families.get("categorical")).members[0].tolist() == [True, True, False]
    assert regions_at(found, math.inf, families.get("categorical")).members.all()


# --- coverage of new groups, with stand-ins for the model -------------------------------------------------


def heavy(rng, x, u):
    """Student t noise with 2.5 degrees of freedom; the stand-in believes in a Gaussian of sd 1."""
    return x + u + rng.standard_t(2.5, len(x))


def unequal(rng, x, u):
    """Noise that grows with x and differs between groups."""
    return x + u + rng.normal(size=len(x)) * (0.3 + np.abs(x)) * np.exp(0.5 * u)


def simulated(rng, make, n_groups, rows):
    """Rows of groups of unequal sizes: x, group, y."""
    sizes = rng.integers(1, 2 * rows, n_groups)
    group = np.repeat(np.arange(n_groups), sizes)
    x, u = rng.normal(size=len(group)), rng.normal(size=n_groups)[group]
    return x, group, make(rng, x, u)


def one_row_each(rng, group):
    """Positions of one row of each group, at random: the guarantee is for a random row of a new group."""
    order = rng.permutation(len(group))
    return order[np.unique(group[order], return_index=True)[1]]


@pytest.mark.parametrize("n_groups", [20, 50, 200])
@pytest.mark.parametrize("make", [heavy, unequal])
def test_coverage_of_new_groups_with_a_wrong_model(make, n_groups):
    rng = np.random.default_rng(n_groups)
    level, half, repeats, new = 0.9, stats.norm.ppf(0.95) * math.sqrt(1.2), 150, 200
    covered, plain = [], []
    for _ in range(repeats):
        x, group, y = simulated(rng, make, n_groups, 6)
        threshold = group_threshold(conformity(numbers(x, half), y), group, level)
        x, group, y = simulated(rng, make, new, 6)
        rows = one_row_each(rng, group)
        region = regions_at(numbers(x[rows], half), threshold, families.get("gaussian"))
        covered.append(np.mean((y[rows] >= region.lower) & (y[rows] <= region.upper)))
        plain.append(np.mean(np.abs(y[rows] - x[rows]) <= half))
    se = np.std(covered) / math.sqrt(repeats)
    # Groups of unequal sizes: the upper limit of one size does not hold exactly, hence the 2 / K.
    assert 0.9 - 3 * se < np.mean(covered) < 0.9 + 2 / n_groups + 3 * se
    assert np.mean(plain) < 0.88  # what the wrong model itself promises as 90 %


@pytest.mark.parametrize("n_groups", [20, 50, 200])
def test_coverage_of_sets_with_a_wrong_model(n_groups):
    rng = np.random.default_rng(n_groups)
    covered, repeats = [], 150
    for _ in range(repeats):
        parts = []
        for number in (n_groups, 200):
            x, group, eta = simulated(rng, lambda _, x, u: x + 1.5 * u, number, 6)
            y = rng.uniform(size=len(x)) < expit(eta)
            sure = expit(3 * x)  # overconfident
            parts.append((levels(np.stack([1 - sure, sure], axis=1)), group, y.astype(int)))
        (known, codes, y), (new, group, truth) = parts
        threshold = group_threshold(conformity(known, y), codes, 0.8)
        members = regions_at(new, threshold, families.get("bernoulli")).members
        rows = one_row_each(rng, group)
        covered.append(members[rows, truth[rows]].mean())
    se = np.std(covered) / math.sqrt(repeats)
    assert 0.8 - 3 * se < np.mean(covered) < 0.8 + 2 / n_groups + 3 * se


# --- posteriors made by hand -------------------------------------------------------------------------------


def made(formula, family, data=None):
    one = design(formula, frame() if data is None else data, family)
    return one, posterior_of(module_of(one), draws=500)


def new_rows(n_groups, rows=4, seed=5):
    data = frame(n_groups, rows, seed)
    return data.assign(g="n" + data["g"])


@pytest.mark.parametrize(
    ("family", "formula"),
    [
        ("gaussian", "y ~ x + (1 | g)"),
        ("poisson", "count ~ x + (1 | g)"),
        ("binomial", "p(s, t) ~ x + (1 | g)"),
        ("beta", "p ~ x + (1 | g)"),
        ("bernoulli", "b ~ x + (1 | g)"),
        ("categorical", "c ~ x + (1 | g)"),
        ("ordinal", "o ~ x + (1 | g)"),
    ],
)
def test_families(family, formula):
    one, posterior = made(formula, family)
    calibration, rows = (one.encode(new_rows(30, seed=s), response=True) for s in (5, 6))
    y = rows.batch.response.numpy()
    # The rows to predict have the labels of the calibration rows: that is said.
    with pytest.warns(ArmedWarning, match="120 of 120 rows are of groups of 'g'"):
        found = regions_of(posterior, rows, MARGINAL, calibration, level=0.8, seed=0)
    plain = regions_of(posterior, rows, MARGINAL, None, level=0.8, seed=0)
    if family in ("bernoulli", "categorical", "ordinal"):
        assert found.members.shape == (120, 2 if family == "bernoulli" else 3)
        covered = found.members[np.arange(120), y.astype(int)]
        p = predictive(posterior, rows, MARGINAL, level=0.8, seed=0).probability
        kept = (p * plain.members).sum(axis=1)
        assert (kept >= 0.8).all()
        smallest = np.where(plain.members, p, np.inf).min(axis=1)
        assert (kept - smallest < 0.8).all()  # no level too many
    else:
        covered = (y >= found.lower) & (y <= found.upper)
        assert (plain.lower <= plain.upper).all()
    # Coverage of 30 groups of iid rows: sd about sqrt(.16 / 120 + .16 / 120).
    assert 0.65 < covered.mean() <= 1.0
    if family in ("poisson", "binomial"):
        for region in (found, plain):
            np.testing.assert_array_equal(region.lower, np.round(region.lower))
            np.testing.assert_array_equal(region.upper, np.round(region.upper))


def test_posterior_intervals_are_quantiles_of_the_predictive_distribution():
    data = frame()
    one = design("y ~ 1 + (1 | g)", data, "gaussian")
    fixed = {"Intercept": 1.0, "1|g_sigma": 2.0, "sigma": 1.5}
    posterior = posterior_of(module_of(one), draws=4000, fixed=fixed)
    region = posterior_regions(
        posterior, one.encode(data.assign(g="new"), response=True), MARGINAL, level=0.8, seed=0
    )
    half = stats.norm.ppf(0.9) * 2.5
    # 2000 draws: the se of a 10 % quantile is sqrt(.09 / 2000) / density = .038 sd = .1.
    np.testing.assert_allclose(region.lower, 1.0 - half, atol=0.4)
    np.testing.assert_allclose(region.upper, 1.0 + half, atol=0.4)


def test_too_few_groups_make_infinite_intervals_and_say_how_many_are_needed():
    one, posterior = made("y ~ x + (1 | g)", "gaussian")
    few = one.encode(new_rows(8), response=True)
    rows = one.encode(frame().assign(g="another"), response=True)
    with pytest.warns(ArmedWarning, match=r"8 calibration groups of 'g' are too few .* At least 9 groups"):
        found = conformal_regions(posterior, rows, MARGINAL, few, level=0.9, seed=0)
    assert np.isneginf(found.lower).all()
    assert np.isposinf(found.upper).all()
    enough = one.encode(new_rows(9), response=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(
            conformal_regions(posterior, rows, MARGINAL, enough, level=0.9, seed=0).upper
        ).all()


def test_the_factor_is_the_first_that_is_new_in_all_calibration_rows():
    one, posterior = made("y ~ x + (1 | g) + (1 | h)", "gaussian")
    data = new_rows(12)
    rows = one.encode(frame(1).assign(g="another"), response=True)
    conformal_regions(posterior, rows, MARGINAL, one.encode(data, response=True), level=0.9, seed=0)
    other = frame(5).assign(h=[f"k{i % 10}" for i in range(20)])
    rows = one.encode(frame(1).assign(h="another"), response=True)
    conformal_regions(posterior, rows, MARGINAL, one.encode(other, response=True), level=0.9, seed=0)
    with pytest.raises(DataError, match=r"Calibration groups of 'g' were trained on: 'g0', 'g1'"):
        conformal_regions(posterior, rows, MARGINAL, one.encode(frame(), response=True), level=0.9, seed=0)


def test_a_model_without_groups_has_no_group_intervals():
    one, posterior = made("y ~ x", "gaussian")
    with pytest.raises(ArgumentError, match="needs a model with group effects"):
        conformal_regions(posterior, one.training, MARGINAL, one.training, level=0.9, seed=0)


@pytest.mark.parametrize("level", [0.0, 1.0, 90, "0.9", True, math.nan])
def test_levels_are_probabilities(level):
    one, posterior = made("y ~ x + (1 | g)", "gaussian")
    with pytest.raises(ArgumentError, match="level="):
        posterior_regions(posterior, one.training, MARGINAL, level=level, seed=0)


# --- through the model -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted():
    frame = pa.simulate.mixed_model(80, 6, seed=0).frame
    names = sorted(frame["group"].unique())
    parts = [frame[frame["group"].isin(names[a:b])] for a, b in ((0, 20), (20, 40), (40, 80))]
    model = pa.ARMED("y ~ x1 + (1 | group)", parts[0])
    model.fit(restarts=1, draws=300, progressbar=False, log_likelihood=False)
    return model, parts[1], parts[2]


def test_predict_adds_intervals(fitted, unmoved_rng):
    model, calibration, new = fitted
    with unmoved_rng():
        found = model.predict(
            new, new_groups="marginal", intervals="conformal", calibration=calibration, level=0.8, seed=1
        )["predictions"]
    assert found["lower"].dims == found["upper"].dims == ("__obs__",)
    assert found.attrs["intervals"] == "conformal"
    assert found.attrs["level"] == 0.8
    again = model.predict(
        new, new_groups="marginal", intervals="conformal", calibration=calibration, level=0.8, seed=1
    )["predictions"]
    np.testing.assert_array_equal(found["lower"], again["lower"])
    plain = model.predict(new, new_groups="marginal", intervals="posterior", level=0.8, seed=1)["predictions"]
    y = new["y"].to_numpy()
    for region in (found, plain):
        covered = (y >= region["lower"].to_numpy()) & (y <= region["upper"].to_numpy())
        assert 0.65 < covered.mean() < 0.95
    assert "lower" not in model.predict(new, new_groups="marginal")["predictions"]


def test_bad_calibration(fitted):
    model, calibration, new = fitted
    ask = {"new_groups": "marginal", "intervals": "conformal"}
    with pytest.raises(ArgumentError, match="needs calibration="):
        model.predict(new, **ask)
    with pytest.raises(ArgumentError, match="intervals='exact' is not one of 'posterior', 'conformal'"):
        model.predict(new, new_groups="marginal", intervals="exact")
    with pytest.raises(ArgumentError, match="calibration= is for intervals='conformal'"):
        model.predict(new, new_groups="marginal", calibration=calibration)
    with pytest.raises(DataError, match="'y'"):
        model.predict(new, **ask, calibration=calibration.drop(columns="y"))
    with pytest.raises(UnseenGroupError, match="'marginal'"):
        model.predict(new, intervals="conformal", calibration=calibration)


def test_models_from_arrays_take_calibration_as_a_tuple():
    frame = pa.simulate.mixed_model(40, 6, seed=1).frame
    names = sorted(frame["group"].unique())
    known, rest = frame["group"].isin(names[:15]), frame["group"].isin(names[15:30])

    def arrays(rows):
        part = frame[rows]
        return part[["x1"]].to_numpy(), (part["y"] > 0).to_numpy(), {"site": part["group"].to_numpy()}

    model = pa.ARMED.from_arrays(*arrays(known), family="bernoulli")
    model.fit(restarts=1, draws=100, progressbar=False, log_likelihood=False)
    x, y, groups = arrays(~known & ~rest)
    ask = {"groups": groups, "new_groups": "marginal", "intervals": "conformal"}
    found = model.predict(x, **ask, calibration=arrays(rest))["predictions"]["in_set"]
    assert found.dims == ("__obs__", "y_dim")
    assert found["y_dim"].to_numpy().tolist() == [0, 1]
    covered = found.to_numpy()[np.arange(len(y)), y.astype(int)]
    assert covered.mean() > 0.75
    with pytest.raises(ArgumentError, match=r"must be \(x, y, groups\)"):
        model.predict(x, **ask, calibration=x)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gaussian", "bernoulli"])
def test_coverage_of_new_groups_with_a_fitted_model(family):
    """Heavy-tailed noise (t, 2.5 degrees of freedom), or slopes that the model does not know of."""
    rng = np.random.default_rng(7)

    def simulate(n_groups, prefix):
        x, group, y = simulated(rng, heavy, n_groups, 6)
        if family == "bernoulli":
            y = (rng.uniform(size=len(x)) < expit(x + (1.5 + x) * rng.normal(size=n_groups)[group])).astype(
                int
            )
        return pd.DataFrame({"x": x, "g": [f"{prefix}{g}" for g in group], "y": y})

    model = pa.ARMED("y ~ x + (1 | g)", simulate(20, "t"), family=family)
    model.fit(restarts=1, draws=500, progressbar=False, log_likelihood=False)
    for n_groups, repeats in ((20, 60), (50, 30), (200, 12)):
        covered = []
        for _ in range(repeats):
            calibration, new = simulate(n_groups, "c"), simulate(300, "n")
            new = new.iloc[one_row_each(rng, new["g"].to_numpy())]
            found = model.predict(
                new, new_groups="marginal", intervals="conformal", calibration=calibration, draws=1
            )["predictions"]
            y = new["y"].to_numpy()
            if family == "gaussian":
                inside = (y >= found["lower"].to_numpy()) & (y <= found["upper"].to_numpy())
            else:
                inside = found["in_set"].to_numpy()[np.arange(len(y)), y]
            covered.append(inside.mean())
        se = np.std(covered) / math.sqrt(repeats)
        print(family, n_groups, np.mean(covered).round(4), se.round(4))
        assert np.mean(covered) > 0.9 - 3 * se
        # A set of two levels cannot be fine-tuned: only numbers have the upper limit.
        assert family == "bernoulli" or np.mean(covered) < 0.9 + 2 / n_groups + 3 * se
