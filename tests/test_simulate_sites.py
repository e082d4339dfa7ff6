"""Simulated images of sites and batches, and the simulated cohort."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import logit
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

import pyro_armed as pa
from pyro_armed.errors import ArgumentError
from pyro_armed.simulate._acquisition import ellipse, grid, standard_scores

MAKERS = {"phantoms": pa.simulate.phantoms, "cells": pa.simulate.cells}


@pytest.mark.parametrize("name", MAKERS)
def test_the_same_seed_gives_the_same_images(name, unmoved_rng):
    one, two, other = (MAKERS[name](3, 8, unseen=1, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.images, two.images)
    assert not np.array_equal(one.images, other.images)
    assert one.images.dtype == np.float32
    assert np.isfinite(one.images).all()


@pytest.mark.parametrize("name", MAKERS)
def test_rates_and_confounding_are_those_asked_for_among_the_groups_to_train_with(name):
    data = MAKERS[name](10, 4, unseen=2, rate_sd=1.7, confounding=0.4, seed=3)
    seen = data.effects[data.effects["seen"]]
    odds = logit(seen["rate"])
    assert odds.std() == pytest.approx(1.7)
    assert np.corrcoef(odds, np.log(seen["gain"]))[0, 1] == pytest.approx(0.4)
    pd.testing.assert_series_equal(
        pa.simulate.group_logits(data.effects)[seen.index], odds, check_names=False
    )


@pytest.mark.parametrize("name", MAKERS)
def test_the_size_alone_reaches_the_auroc_that_the_docstring_gives(name):
    data = MAKERS[name](4, 1500, unseen=0, rate_sd=0.0, separation=1.2, strength=0.0, size=16, seed=0)
    assert roc_auc_score(data.labels, data.size) == pytest.approx(norm.cdf(1.2 / np.sqrt(2)), abs=0.02)


@pytest.mark.parametrize("name", MAKERS)
def test_without_strength_images_are_clean(name):
    data = MAKERS[name](3, 5, unseen=0, strength=0.0, seed=0)
    np.testing.assert_allclose(data.images, data.clean, atol=1e-6)


def test_scanners_do_what_their_effects_say():
    data = pa.simulate.phantoms(6, 60, unseen=0, jitter=0.0, seed=1)
    corner = np.array([data.images[data.groups == g][:, :3, :3].mean() for g in data.effects.index])
    noise = np.array([data.images[data.groups == g][:, :3, :3].std() for g in data.effects.index])
    # Beside the head there is brightness and noise alone.
    np.testing.assert_allclose(corner, data.effects["offset"], atol=0.01)
    np.testing.assert_allclose(noise, data.effects["noise"], rtol=0.1)
    inside = np.array([data.images[data.groups == g].max((1, 2)).mean() for g in data.effects.index])
    assert np.corrcoef(inside - corner, data.effects["gain"])[0, 1] > 0.9


def test_the_structure_grows_with_its_size():
    data = pa.simulate.phantoms(2, 150, unseen=0, seed=0)
    assert np.corrcoef(data.mask.mean((1, 2)), data.size)[0, 1] > 0.9
    ventricles, head = data.clean[data.mask], data.clean[:, 15:17, 8:24]
    assert ventricles.mean() < 0.3 < head.mean()


def test_cells_lengthen_with_their_score():
    data = pa.simulate.cells(2, 150, unseen=0, seed=0)
    v, h = grid(28)
    ratios = []
    for mask in data.mask:
        values = np.linalg.eigvalsh(np.cov(v[0][mask], h[0][mask]))
        ratios.append(np.log(values[1] / values[0]) / 2)
    assert np.corrcoef(ratios, data.size)[0, 1] > 0.85


def test_an_ellipse_has_its_area():
    one = np.ones(1)
    drawn = ellipse(*grid(64), (0 * one, 0 * one), (0.5 * one, 0.3 * one), 0.4 * one)
    assert drawn.sum() * (2 / 64) ** 2 == pytest.approx(np.pi * 0.5 * 0.3, rel=0.02)


def test_scores_are_standard_in_every_sample():
    scores = standard_scores(np.random.default_rng(0), 12, 5)
    np.testing.assert_allclose(np.cov(scores.T), np.eye(5), atol=1e-9)
    few = standard_scores(np.random.default_rng(0), 3, 5)
    np.testing.assert_allclose(few.std(0, ddof=1), 1.0)
    # The sign is the draw's, so that scores are as often low as high.
    first = [standard_scores(np.random.default_rng(seed), 12, 5)[0, 0] > 0 for seed in range(200)]
    assert 0.35 < np.mean(first) < 0.65


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"size": 8}, "size has to be at least 16 pixels"),
        ({"confounding": 1.5}, "confounding has to be in"),
        ({"strength": -1.0}, "strength has to be"),
        ({"unseen": -1}, "unseen has to be"),
        ({"seed": -1}, "seed has to be"),
    ],
)
def test_errors_name_the_argument(arguments, words):
    with pytest.raises(ArgumentError, match=words):
        pa.simulate.phantoms(2, 4, **arguments)


# --- cohort ------------------------------------------------------------------------------------------------


def test_the_cohort_has_visits_and_missing_values_as_the_real_one():
    data = pa.simulate.cohort(1200, 40, seed=0)
    frame = data.frame
    assert set(frame["VISCODE"]) == {"bl", "m06", "m12", "m18", "m24", "m36"}
    baseline = frame[frame["VISCODE"] == "bl"]
    assert baseline["RID"].is_unique
    assert baseline["DX"].notna().all()
    assert 0.25 < baseline["FDG"].isna().mean() < 0.45 < 1 - baseline["ADAS13"].isna().mean()
    assert set(baseline["DX_bl"]) == {"CN", "SMC", "EMCI", "LMCI", "AD"}
    sizes = baseline["SITE"].value_counts()
    assert sizes.iloc[0] > 5 * sizes.median() / 2
    assert frame.groupby("RID")["SITE"].nunique().max() == 1


def test_conversion_follows_severity_and_site():
    data = pa.simulate.cohort(6000, 12, logit_sd=1.5, seed=0)
    table = pa.datasets.conversion(data.frame)
    severity = data.severity[table["RID"]].to_numpy()
    assert roc_auc_score(table["converted"], severity) > 0.65
    rates = table.groupby("SITE")["converted"].mean()
    truth = data.sites["logit"].rename(index=str)[rates.index]
    assert np.corrcoef(logit(rates.clip(0.02, 0.98)), truth)[0, 1] > 0.9
