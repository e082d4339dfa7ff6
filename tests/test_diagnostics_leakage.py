"""Leakage of groups: probes on features that are known to tell them, or not to."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import pyro_armed as pa
from pyro_armed.diagnostics import leakage
from pyro_armed.diagnostics._leakage import _permuted, probe_accuracy
from pyro_armed.errors import ArgumentError


def draws(seed, n=300, groups=5):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, groups, n)
    return rng, codes, torch.tensor(rng.normal(size=(n, 3)))


@pytest.mark.parametrize("seed", range(3))
def test_features_that_carry_the_group_are_found(seed):
    _, codes, features = draws(seed)
    features[:, 1] += 0.8 * torch.tensor(codes)
    n_groups, accuracy, chance, _, high, p_value, leaks = probe_accuracy(
        features, torch.tensor(codes), seed=seed
    )
    assert n_groups == 5
    assert leaks
    assert accuracy > high > chance
    assert p_value == 1 / 401
    assert chance == pytest.approx(0.2, abs=0.03)


def within(seeds, make):
    """How often the accuracy is within the permutation interval."""
    inside = 0
    for seed in seeds:
        features, codes, response = make(seed)
        _, accuracy, _, low, high, *_ = probe_accuracy(
            features, codes, response, hidden=(4,), permutations=200, seed=seed
        )
        inside += low <= accuracy <= high
    return inside


def unrelated(seed):
    _, codes, features = draws(seed, n=120, groups=3)
    return features, torch.tensor(codes), None


def known_from_the_response(seed):
    """Features tell the class, and classes differ in their groups: nothing beyond the response."""
    rng, codes, features = draws(seed, n=120, groups=3)
    y = rng.binomial(1, np.array([0.1, 0.5, 0.9])[codes])
    features[:, 0] += 2.0 * torch.tensor(y)
    return features, torch.tensor(codes), (torch.tensor(y)[:, None].float(), torch.tensor(y))


@pytest.mark.parametrize("make", [unrelated, known_from_the_response])
def test_features_that_tell_nothing_are_within_the_interval(make):
    """Of 20 seeds 19 are expected; 16 or fewer have probability 0.016."""
    assert within(range(20), make) >= 17


@pytest.mark.slow
@pytest.mark.parametrize("make", [unrelated, known_from_the_response])
def test_the_interval_holds_in_95_percent_of_seeds(make):
    """50 seeds at 0.95: 42 or fewer have probability 0.003; ties of few rows make it conservative."""
    assert within(range(100, 150), make) >= 43


def test_given_the_response_what_it_explains_is_no_leak():
    features, codes, response = known_from_the_response(0)
    features, codes = features.repeat(5, 1), codes.repeat(5)
    response = tuple(part.repeat(5, *[1] * (part.dim() - 1)) for part in response)
    rng = np.random.default_rng(0)
    features = features + 0.5 * torch.tensor(rng.normal(size=features.shape))
    assert probe_accuracy(features[:, :1], codes)[-1]


def test_permutation_keeps_groups_in_their_strata():
    strata = np.repeat([0, 1, 2], 50)
    rng = np.random.default_rng(0)
    # Groups that are the strata: no permutation within strata changes them.
    assert {_permuted(strata, strata, strata, rng) for _ in range(5)} == {1.0}
    free = [_permuted(strata, strata, np.zeros(150), rng) for _ in range(200)]
    assert np.mean(free) == pytest.approx(1 / 3, abs=0.02)
    truth, shuffled = np.arange(150), np.arange(150)
    assert np.mean([_permuted(truth, shuffled, strata, rng) for _ in range(300)]) == pytest.approx(
        1 / 50, abs=0.005
    )


@pytest.fixture(scope="module")
def told():
    """A frozen network whose first feature is the group and whose second is noise."""
    rng = np.random.default_rng(0)
    code = np.repeat(np.arange(4), 60)
    frame = pd.DataFrame(
        {
            "a": code + 0.3 * rng.normal(size=240),
            "b": rng.normal(size=240),
            "site": [f"s{c}" for c in code],
            "ward": [f"w{c}" for c in np.arange(240) % 3],
            "y": rng.integers(0, 2, 240),
        }
    )
    network = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))
    with torch.no_grad():
        network[0].weight.copy_(torch.eye(2))
        network[0].bias.zero_()
    network.requires_grad_(False)
    model = pa.ARMED(
        "y ~ a + b + (1 | site) + (1 | ward)", frame, family="bernoulli", network=network, last_layer="point"
    )
    model.fit(
        guide="mean_field",
        restarts=2,
        draws=20,
        epochs=20,
        early_stopping=False,
        log_likelihood=False,
        progressbar=False,
    )
    return model, frame


pytestmark = pytest.mark.filterwarnings("ignore::pyro_armed.errors.ConvergenceWarning")


def test_factors_and_restarts_have_a_row_each(told):
    model, _ = told
    table = leakage(model, seed=1)
    assert table[["group", "chain"]].values.tolist() == [["site", 0], ["ward", 0], ["site", 1], ["ward", 1]]
    assert table.loc[table["group"] == "site", "leaks"].all()
    assert not table.loc[table["group"] == "ward", "leaks"].any()
    assert table["n_groups"].tolist() == [4, 3, 4, 3]
    pd.testing.assert_frame_equal(table, leakage(model, seed=1))
    given = leakage(model, factors="site", given_response=True)
    assert given["leaks"].all()


def test_new_groups_and_layers(told):
    model, frame = told
    new = frame.assign(site="new " + frame["site"])
    assert leakage(model, new, factors="site")["leaks"].all()
    assert leakage(model, new, factors="site", layers="0")["accuracy"].mean() > 0.8
    assert leakage(model, factors=["site"], layers=("0", "1"), rows=100)["n_groups"].tolist() == [4, 4]


def test_the_global_random_state_stays(told, unmoved_rng):
    with unmoved_rng():
        leakage(told[0], factors="ward", permutations=5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": 0}, "rows=0"),
        ({"permutations": 2.5}, "permutations=2.5"),
        ({"factors": "school"}, "'school'"),
        ({"layers": "body"}, "no layer named 'body'"),
        ({"groups": {"site": [1]}}, "belong to data="),
    ],
)
def test_unusable_arguments_are_named(told, arguments, message):
    with pytest.raises(ArgumentError, match=message):
        leakage(told[0], **arguments)


def test_what_cannot_leak_is_named(told):
    model, frame = told
    with pytest.raises(ArgumentError, match="two groups"):
        leakage(model, frame[:50], factors="site")
    linear = pa.ARMED("a ~ b + (1 | site)", frame)
    linear.fit(restarts=1, draws=5, log_likelihood=False, progressbar=False)
    with pytest.raises(ArgumentError, match="needs a network"):
        leakage(linear)
    with pytest.raises(ArgumentError, match="needs the model itself"):
        leakage(linear.idata)
