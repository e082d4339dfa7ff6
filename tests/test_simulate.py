"""Simulated data: moments, truth, seeds and the Bayes-optimal classifiers."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from scipy.special import expit

from pyro_armed import simulate
from pyro_armed.errors import ArgumentError, DataError, UnseenGroupError

GRID = np.deg2rad(np.arange(360))


def _images(n=60, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random((n, 6, 5)), rng.integers(0, 3, n)


MAKERS = {
    "spirals": lambda seed: simulate.spirals(4, 30, seed=seed),
    "confounded_spirals": lambda seed: simulate.confounded_spirals(4, 30, seed=seed),
    "mixed_model": lambda seed: simulate.mixed_model(4, 10, sds=(1.0, 0.5), unbalanced=True, seed=seed),
    "crossed": lambda seed: simulate.crossed(5, 4, observed=0.8, seed=seed),
    "nested": lambda seed: simulate.nested(3, 2, 4, seed=seed),
    "within_between": lambda seed: simulate.within_between(4, 5, seed=seed),
}


@pytest.mark.parametrize("name", MAKERS)
def test_same_seed_same_data_and_other_seed_other_data(name):
    one, again, other = (MAKERS[name](seed).frame for seed in (3, 3, 4))
    pd.testing.assert_frame_equal(one, again)
    assert not one.equals(other)


@pytest.mark.parametrize("name", MAKERS)
def test_global_random_state_is_untouched(name):
    torch.manual_seed(1)
    before_torch = torch.get_rng_state()
    before_numpy = np.random.get_state()[1].copy()  # noqa: NPY002 - the state that users share is the point
    MAKERS[name](0)
    assert torch.equal(torch.get_rng_state(), before_torch)
    np.testing.assert_array_equal(np.random.get_state()[1], before_numpy)  # noqa: NPY002


@pytest.mark.parametrize("seed", [-1, 1.5, None, True])
def test_unusable_seed_is_refused(seed):
    with pytest.raises(ArgumentError, match="seed"):
        simulate.spirals(2, 2, seed=seed)


# ---------------------------------------------------------------------------------------------- spirals


def _spiral_density(x, y, radius, noise):
    """Density of one point given class and radius, straight from the description of the data."""
    turn = GRID + np.pi * y
    means = (radius * GRID / (2 * np.pi))[:, None] * np.column_stack([np.cos(turn), np.sin(turn)])
    return stats.norm.pdf(x, means, noise).prod(1).mean()


def test_bayes_probability_with_known_radius_is_bayes_rule():
    data = simulate.spirals(3, 10, seed=1)
    expected = []
    for row in data.frame.itertuples():
        zero, one = (_spiral_density([row.x1, row.x2], k, data.radii[row.group], data.noise) for k in (0, 1))
        expected.append(one / (zero + one))
    np.testing.assert_allclose(data.bayes_probability(), expected, rtol=1e-6, atol=1e-12)


def test_bayes_probability_with_unknown_radius_is_quadrature_over_the_radius():
    # A wide population, so that the cut at 0 matters.
    data = simulate.spirals(3, 6, radius_mean=0.5, radius_sd=0.4, noise=0.2, seed=2)
    radius = np.linspace(0, 2.5, 501)
    weight = stats.norm.pdf(radius, 0.5, 0.4)
    weight[0] /= 2
    expected = []
    for row in data.frame.itertuples():
        zero, one = (
            sum(w * _spiral_density([row.x1, row.x2], k, r, 0.2) for r, w in zip(radius, weight, strict=True))
            for k in (0, 1)
        )
        expected.append(one / (zero + one))
    np.testing.assert_allclose(data.bayes_probability(known_radius=False), expected, rtol=1e-4)


def test_unknown_radius_agrees_with_counting():
    """Near a point, the share of class 1 among very many new groups of one row is the probability."""
    data = simulate.spirals(400_000, 1, seed=5)
    x = data.frame[["x1", "x2"]].to_numpy()
    for centre in ([0.3, 0.1], [-0.5, 0.4], [0.2, -0.7]):
        near = np.hypot(*(x - centre).T) < 0.05
        share = data.frame["y"].to_numpy()[near].mean()
        expected = data.bayes_probability(data.frame[near], known_radius=False).mean()
        assert near.sum() > 500
        assert abs(share - expected) < 4 * np.sqrt(0.25 / near.sum())


def test_bayes_probabilities_are_calibrated_and_limit_accuracy():
    data = simulate.spirals(1500, 10, seed=1)
    y = data.frame["y"].to_numpy()
    for known, accuracy in ((True, 0.919), (False, 0.847)):
        p = data.bayes_probability(known_radius=known)
        assert abs(data.bayes_accuracy(known_radius=known) - accuracy) < 0.012
        # The accuracy that the probabilities promise, and the one seen.
        assert abs(np.maximum(p, 1 - p).mean() - data.bayes_accuracy(known_radius=known)) < 0.012
        for low in np.arange(0, 1, 0.25):
            inside = (p >= low) & (p < low + 0.25)
            assert abs(p[inside].mean() - y[inside].mean()) < 0.03


def test_published_limits_are_within_what_ten_groups_give():
    """The limits reported for one draw of ten groups, .908 and .818, are ordinary draws of this geometry."""
    found = []
    for seed in range(30):
        data = simulate.spirals(rows_per_group=100, seed=seed)
        found.append([data.bayes_accuracy(), data.bayes_accuracy(known_radius=False)])
    low, high = np.quantile(found, [0.05, 0.95], axis=0)
    assert (low < [0.908, 0.818]).all()
    assert (high > [0.908, 0.818]).all()


def test_spiral_moments_and_columns():
    data = simulate.spirals(4000, 5, seed=0)
    assert list(data.frame.columns) == ["x1", "x2", "group", "y"]
    assert abs(data.radii.mean() - 1) < 4 * 0.3 / np.sqrt(4000)
    assert abs(data.radii.std() - 0.3) < 0.015
    assert abs(data.frame["y"].mean() - 0.5) < 0.02
    # E|x|^2 = E[radius^2] E[(angle / 360)^2] + 2 noise^2.
    expected = 1.09 * np.mean((np.arange(360) / 360) ** 2) + 0.02
    assert abs((data.frame["x1"] ** 2 + data.frame["x2"] ** 2).mean() - expected) < 0.02


def test_radii_stay_above_zero():
    assert (simulate.spirals(500, 1, radius_mean=0.1, radius_sd=1.0, seed=0).radii > 0).all()


def test_no_spread_of_radii_means_nothing_is_unknown():
    data = simulate.spirals(2, 20, radius_sd=0.0, seed=0)
    np.testing.assert_allclose(data.bayes_probability(), data.bayes_probability(known_radius=False))


@pytest.mark.parametrize("make", [simulate.spirals, simulate.confounded_spirals])
def test_new_spiral_groups_are_new(make):
    data = make(3, 20, seed=7)
    new = data.new_groups(4, rows_per_group=6, seed=7)
    newer = new.new_groups(2, seed=7)
    seen = [set(d.frame["group"]) for d in (data, new, newer)]
    assert len(set.union(*seen)) == 3 + 4 + 2
    assert new.frame.groupby("group").size().tolist() == [6] * 4
    assert type(new) is type(data)
    radii = np.concatenate([d.radii for d in (data, new, newer)])
    assert len(np.unique(radii)) == 9
    with pytest.raises(UnseenGroupError, match="g03"):
        data.bayes_probability(new.frame)
    assert data.bayes_probability(new.frame, known_radius=False).shape == (24,)


def test_frame_without_columns_is_refused():
    data = simulate.spirals(2, 2, seed=0)
    with pytest.raises(DataError, match="x2"):
        data.bayes_probability(data.frame.drop(columns="x2"))
    with pytest.raises(DataError, match="'y'"):
        data.bayes_accuracy(data.frame.drop(columns="y"))
    confounded = simulate.confounded_spirals(2, 2, seed=0)
    with pytest.raises(DataError, match="probe1"):
        confounded.bayes_probability(data.frame, known_radius=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_groups", 0),
        ("rows_per_group", 2.5),
        ("radius_mean", 0.0),
        ("radius_sd", -1),
        ("noise", 0),
        ("noise", np.nan),
    ],
)
def test_spirals_refuse_arguments_out_of_range(name, value):
    with pytest.raises(ArgumentError, match=name):
        simulate.spirals(**{"n_groups": 2, "rows_per_group": 2, name: value})


# ------------------------------------------------------------------------------------ confounded spirals


def test_confounded_ratios_and_probes():
    data = simulate.confounded_spirals(3000, 20, seed=0)
    ratio = data.class_ratio.to_numpy()
    assert ratio.min() == 0.1
    assert ratio.max() == 0.9
    clipped = np.clip(stats.norm(0.5, 0.2).ppf((np.arange(10_000) + 0.5) / 10_000), 0.1, 0.9)
    assert abs(ratio.std() - clipped.std()) < 0.01
    by_group = data.frame.groupby("group")
    row_ratio = data.class_ratio[data.frame["group"]].to_numpy()
    residual = data.frame["probe1"] - row_ratio
    assert abs(residual.mean()) < 0.004
    assert abs(residual.std() - 0.2) < 0.003
    assert abs((by_group["y"].mean() - data.class_ratio).mean()) < 0.01
    # Across groups the probe tells of the class, within a group it does not.
    assert data.frame[["probe1", "y"]].corr().iloc[0, 1] > 0.2
    assert abs(np.corrcoef(residual, data.frame["y"] - row_ratio)[0, 1]) < 0.02


def test_confounded_bayes_probability_is_calibrated():
    data = simulate.confounded_spirals(1500, 6, seed=3)
    y = data.frame["y"].to_numpy()
    for known in (True, False):
        p = data.bayes_probability(known_radius=known)
        assert abs(np.maximum(p, 1 - p).mean() - data.bayes_accuracy(known_radius=known)) < 0.015
        assert abs(p.mean() - y.mean()) < 0.015
    assert data.bayes_accuracy() > data.bayes_accuracy(known_radius=False) + 0.03


def test_confounded_unknown_ratio_is_brute_force_over_draws():
    data = simulate.confounded_spirals(2, 3, noise=0.2, seed=4)
    rng = np.random.default_rng(0)
    radius, ratio = np.abs(rng.normal(1, 0.3, 2000)), np.clip(rng.normal(0.5, 0.2, 2000), 0.1, 0.9)
    for row, p in zip(data.frame.itertuples(), data.bayes_probability(known_radius=False), strict=True):
        probes = stats.norm.pdf(np.array([row.probe1, row.probe2]), ratio[:, None], 0.2).prod(1)
        zero, one = (
            np.mean([_spiral_density([row.x1, row.x2], k, r, 0.2) for r in radius]) * np.mean(probes * share)
            for k, share in ((0, 1 - ratio), (1, ratio))
        )
        assert abs(one / (zero + one) - p) < 0.03


def test_probes_alone_give_the_ratio_that_quadrature_gives():
    """With coordinates drowned in noise, the probability of class 1 is the ratio expected from the probes."""
    data = simulate.confounded_spirals(4, 10, noise=1e4, seed=0)
    ratio = np.clip(stats.norm(0.5, 0.2).ppf((np.arange(100_000) + 0.5) / 100_000), 0.1, 0.9)
    probes = data.frame[["probe1", "probe2"]].to_numpy()
    for row, p in zip(probes, data.bayes_probability(known_radius=False), strict=True):
        weight = stats.norm.pdf(row[0], ratio, 0.2) * stats.norm.pdf(row[1], ratio, 0.2)
        assert abs(p - np.average(ratio, weights=weight)) < 5e-4


@pytest.mark.parametrize(("name", "value"), [("clip", (0.9, 0.1)), ("clip", (0.0, 0.9)), ("probe_sd", 0.0)])
def test_confounded_spirals_refuse_arguments_out_of_range(name, value):
    with pytest.raises(ArgumentError, match=name):
        simulate.confounded_spirals(2, 2, **{name: value})


# ------------------------------------------------------------------------------------------ mixed models


def test_mixed_model_gives_back_its_truth():
    data = simulate.mixed_model(
        4000, 10, fixed=(1.0, -0.5, 2.0), sds=(1.5, 0.7), correlation=-0.4, sigma=0.8, seed=0
    )
    assert data.formula == "y ~ x1 + x2 + (1 + x1 | group)"
    assert list(data.frame.columns) == ["x1", "x2", "group", "y"]
    effects = data.effects["group"]
    assert list(effects.columns) == ["1", "x1"]
    np.testing.assert_allclose(effects.std(), [1.5, 0.7], rtol=0.04)
    assert abs(effects.corr().iloc[0, 1] + 0.4) < 0.05
    assert abs((data.frame["y"] - data.linear_predictor).std() - 0.8) < 0.01
    x = data.frame[["x1", "x2"]]
    own = effects.loc[data.frame["group"]].to_numpy()
    expected = 1 + own[:, 0] + (-0.5 + own[:, 1]) * x["x1"] + 2 * x["x2"]
    np.testing.assert_allclose(data.linear_predictor, expected)
    design = np.column_stack([np.ones(len(x)), x])
    np.testing.assert_allclose(np.linalg.lstsq(design, data.frame["y"])[0], data.coefficients, atol=0.1)


def test_unbalanced_groups_keep_the_total():
    sizes = simulate.mixed_model(40, 20, unbalanced=True, seed=0).frame.groupby("group").size()
    assert len(sizes) == 40
    assert sizes.sum() == 800
    assert sizes.min() >= 1
    assert sizes.std() > 8


def test_rows_of_each_group_can_be_given():
    frame = simulate.mixed_model(3, [1, 5, 2], seed=0).frame
    assert frame.groupby("group").size().tolist() == [1, 5, 2]


def test_correlation_matrix_is_used():
    matrix = np.array([[1, 0.5, -0.3], [0.5, 1, 0.2], [-0.3, 0.2, 1]])
    data = simulate.mixed_model(5000, 1, fixed=(0, 1, 1), sds=(1, 2, 3), correlation=matrix, seed=0)
    np.testing.assert_allclose(data.effects["group"].corr(), matrix, atol=0.06)
    np.testing.assert_array_equal(data.correlation["group"], matrix)


def test_new_mixed_groups_are_new_and_of_the_same_population():
    data = simulate.mixed_model(3, 4, fixed=(0.0, 1.0), sds=(2.0,), family="poisson", seed=0)
    new = data.new_groups(500, seed=0)
    assert not set(data.frame["group"]) & set(new.frame["group"])
    assert not np.isin(data.effects["group"], new.effects["group"]).any()
    assert (new.family, new.formula) == (data.family, data.formula)
    assert abs(new.effects["group"]["1"].std() - 2) < 0.3
    pd.testing.assert_series_equal(new.coefficients, data.coefficients)
    assert new.new_groups(1, rows_per_group=2, seed=0).frame["group"].tolist() == ["g503", "g503"]


REFERENCES = {
    "gaussian": ({}, lambda eta: stats.norm(eta, 0.5)),
    "student_t": ({"nu": 5.0}, lambda eta: stats.t(5, eta, 0.5)),
    "bernoulli": ({}, lambda eta: stats.bernoulli(expit(eta))),
    "poisson": ({}, lambda eta: stats.poisson(np.exp(eta))),
    "negative_binomial": ({"alpha": 3.0}, lambda eta: stats.nbinom(3, 3 / (3 + np.exp(eta)))),
    "gamma": ({"alpha": 3.0}, lambda eta: stats.gamma(3, scale=np.exp(eta) / 3)),
    "beta": ({"kappa": 6.0}, lambda eta: stats.beta(6 * expit(eta), 6 * (1 - expit(eta)))),
}


@pytest.mark.parametrize("family", REFERENCES)
def test_responses_follow_their_family(family):
    auxiliary, reference = REFERENCES[family]
    data = simulate.mixed_model(
        20_000, 1, fixed=(0.7,), sds=(0.0,), family=family, sigma=0.5, auxiliary=auxiliary, seed=0
    )
    y, law = data.frame["y"].to_numpy(), reference(0.7)
    assert data.formula == "y ~ 1 + (1 | group)"
    assert abs(y.mean() - law.mean()) < 4 * law.std() / np.sqrt(y.size)
    assert abs(y.std() / law.std() - 1) < 0.05
    for q in (0.2, 0.5, 0.9):
        assert abs((y <= law.ppf(q)).mean() - law.cdf(law.ppf(q))) < 0.015


def test_ordinal_responses_follow_the_cumulative_logit():
    data = simulate.mixed_model(
        20_000, 1, fixed=(0.7,), sds=(0.0,), family="ordinal", auxiliary={"threshold": (-0.5, 1.0)}, seed=0
    )
    shares = data.frame["y"].value_counts(normalize=True).sort_index()
    assert shares.index.tolist() == [0, 1, 2]
    np.testing.assert_allclose(shares.cumsum()[:2], expit(np.array([-0.5, 1.0]) - 0.7), atol=0.015)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"fixed": ()}, "fixed"),
        ({"fixed": (1.0, "a")}, "fixed"),
        ({"sds": (1.0, -1.0)}, "sds"),
        ({"sds": (1.0, 1.0, 1.0)}, "sds has 3 entries"),
        ({"sds": (1.0, 1.0), "correlation": 1.0}, "correlation"),
        ({"sds": (1.0, 1.0), "correlation": np.eye(3)}, "correlation"),
        ({"family": "cauchy"}, "bernoulli"),
        ({"sigma": -1.0}, "sigma"),
        ({"auxiliary": {"nu": 3.0}}, "nu"),
        ({"family": "ordinal", "auxiliary": {"threshold": (1, 0)}}, "threshold"),
        ({"rows_per_group": [1, 2]}, "rows_per_group"),
        ({"rows_per_group": 0}, "rows_per_group"),
    ],
)
def test_mixed_model_refuses_arguments_out_of_range(arguments, match):
    with pytest.raises(ArgumentError, match=match):
        simulate.mixed_model(3, **arguments)


def test_crossed_effects_add_up():
    data = simulate.crossed(300, 200, rows_per_cell=2, subject_sd=1.0, item_sd=0.5, sigma=0.3, seed=0)
    frame = data.frame
    assert (frame.groupby(["subject", "item"]).size() == 2).all()
    assert len(frame) == 300 * 200 * 2
    subject = data.effects["subject"].loc[frame["subject"], "1"].to_numpy()
    item = data.effects["item"].loc[frame["item"], "1"].to_numpy()
    np.testing.assert_allclose(data.linear_predictor, frame["x1"] + subject + item, atol=1e-12)
    np.testing.assert_allclose([subject.std(), item.std()], [1.0, 0.5], rtol=0.15)


def test_crossed_keeps_the_share_asked_for():
    frame = simulate.crossed(10, 10, observed=0.3, seed=0).frame
    assert len(frame) == 30
    assert (frame.groupby(["subject", "item"]).size() == 1).all()
    with pytest.raises(ArgumentError, match="observed"):
        simulate.crossed(2, 2, observed=0.0)


def test_nested_classes_lie_in_one_school():
    data = simulate.nested(200, 5, 4, school_sd=1.0, classroom_sd=0.5, seed=0)
    frame = data.frame
    assert (frame.groupby("classroom")["school"].nunique() == 1).all()
    assert frame["classroom"].nunique() == 1000
    assert frame["class_number"].nunique() == 5
    pair = frame["school"] + "." + frame["class_number"]
    assert (pair == frame["classroom"]).all()
    school = data.effects["school"].loc[frame["school"], "1"].to_numpy()
    room = data.effects["classroom"].loc[frame["classroom"], "1"].to_numpy()
    np.testing.assert_allclose(data.linear_predictor, frame["x1"] + school + room, atol=1e-12)
    np.testing.assert_allclose([school.std(), room.std()], [1.0, 0.5], rtol=0.15)


def test_slopes_within_and_between_differ():
    data = simulate.within_between(2000, 10, within=1.0, between=-1.0, seed=0)
    frame = data.frame
    means = frame.groupby("group")[["x1", "y"]].transform("mean")
    np.testing.assert_allclose(frame["x1_mean"], means["x1"], atol=1e-12)
    within = np.polyfit(frame["x1"] - means["x1"], frame["y"] - means["y"], 1)[0]
    between = np.polyfit(means["x1"], means["y"], 1)[0]
    assert abs(within - 1) < 0.03
    assert abs(between + 1) < 0.05
    # Whoever ignores the groups gets neither.
    assert abs(np.polyfit(frame["x1"], frame["y"], 1)[0]) < 0.2
    design = np.column_stack([np.ones(len(frame)), frame["x1"], frame["x1_mean"]])
    np.testing.assert_allclose(np.linalg.lstsq(design, frame["y"])[0], data.coefficients, atol=0.06)


# ------------------------------------------------------------------------------------------------ images


def test_site_images_are_made_as_said():
    images, labels = _images(4000)
    kept = images.copy()
    data = simulate.site_images(images, labels, 5, seed=0)
    np.testing.assert_array_equal(images, kept)
    np.testing.assert_array_equal(data.original, kept)
    assert data.bias_field.shape == (5, 6, 5)
    for code, site in enumerate(data.gain.index):
        mine = data.site == site
        residual = data.images[mine] - (
            data.gain[site] * data.bias_field[code] * kept[mine] + data.offset[site]
        )
        assert abs(residual.mean()) < 0.003
        assert abs(residual.std() / data.noise[site] - 1) < 0.05
    assert np.abs(data.bias_field - 1).max() <= 0.25
    assert data.bias_field.std() > 0.02


def test_sites_are_dealt_evenly_or_confounded():
    images, labels = _images(600)
    even = pd.crosstab(labels, simulate.site_images(images, labels, 4, seed=0).site)
    shares = even.div(even.sum(axis=1), axis=0).to_numpy()
    assert np.ptp(shares, axis=0).max() < 0.02
    skewed = pd.crosstab(labels, simulate.site_images(images, labels, 4, confounding=2.0, seed=0).site)
    assert np.ptp(skewed.div(skewed.sum(axis=1), axis=0).to_numpy(), axis=0).max() > 0.2


def test_every_site_gets_an_image():
    images, labels = _images(12)
    for seed in range(20):
        data = simulate.site_images(images, labels, 8, confounding=5.0, seed=seed)
        assert set(data.site) == set(data.gain.index)


def test_no_strength_leaves_images_and_types_alone():
    images, labels = _images()
    images = images.astype(np.float32)
    data = simulate.site_images(images, labels, 3, strength=0.0, seed=0)
    np.testing.assert_array_equal(data.images, images)
    assert simulate.site_images(images, labels, 3, seed=0).images.dtype == np.float32


def test_site_images_seed_and_global_state():
    images, labels = _images()
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    one, again, other = (simulate.site_images(images, labels, 3, seed=s).images for s in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"images": np.ones((4, 8))}, DataError, "images"),
        ({"images": np.ones((60, 6, 5), dtype=int)}, DataError, "int"),
        ({"images": np.full((60, 6, 5), np.nan)}, DataError, "finite"),
        ({"labels": np.zeros(3)}, DataError, "labels"),
        ({"n_sites": 61}, ArgumentError, "n_sites"),
        ({"strength": -1}, ArgumentError, "strength"),
    ],
)
def test_site_images_refuse_what_cannot_be_used(change, error, match):
    images, labels = _images()
    with pytest.raises(error, match=match):
        simulate.site_images(**{"images": images, "labels": labels, **change})


def test_results_are_frozen():
    with pytest.raises(AttributeError):
        simulate.spirals(2, 2, seed=0).noise = 2.0
