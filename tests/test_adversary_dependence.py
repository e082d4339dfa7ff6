"""The kernel measure of dependence against its definition, its law, and what minimising it does."""

import numpy as np
import pytest
import torch
from test_objective import networked
from torch import nn

import pyro_armed as pa
from pyro_armed import diagnostics
from pyro_armed.adversary import GroupDependence
from pyro_armed.errors import ArgumentError
from pyro_armed.local import local_parameters
from pyro_armed.objective import Objective
from pyro_armed.seeds import seeded


def rows(n=60, groups=3, classes=2, seed=0):
    rng = np.random.default_rng(seed)
    codes, labels = rng.integers(0, groups, n), rng.integers(0, classes, n)
    features = torch.as_tensor(rng.normal(size=(n, 2)) + codes[:, None] * [1.0, 0.0])
    return features, torch.as_tensor(codes), torch.as_tensor(labels)


def by_hand(features, codes, classes, weights=None):
    """The definition, pair by pair, from the counts of these rows."""
    z = ((features - features.mean(0)) / features.std(0, correction=0)).numpy()
    codes, classes = codes.numpy(), classes.numpy()
    weights = np.ones(len(z)) if weights is None else weights.numpy()
    total = pairs = 0.0
    for i in range(len(z)):
        peers = np.sum(classes == classes[i]) - 1
        own = np.sum((classes == classes[i]) & (codes == codes[i])) - 1
        for j in range(len(z)):
            if i == j or classes[i] != classes[j] or own == 0:
                continue
            distance = np.mean((z[i] - z[j]) ** 2)
            kernel = (np.exp(-distance / 2) + np.exp(-2 * distance)) / 2
            total += weights[i] * weights[j] * kernel * ((codes[i] == codes[j]) * peers / own - 1.0)
            pairs += weights[i] * weights[j]
    return total / pairs


@pytest.mark.parametrize("weighted", [False, True])
def test_value_is_that_of_the_definition(weighted):
    features, codes, classes = rows()
    weights = torch.arange(60).double() % 3 if weighted else None
    found = GroupDependence(codes, 3, classes)(features, codes, classes, weights)
    assert float(found) == pytest.approx(by_hand(features, codes, classes, weights), rel=1e-4)


def test_without_classes_all_rows_are_compared():
    features, codes, _ = rows()
    found = GroupDependence(codes, 3)(features, codes)
    assert float(found) == pytest.approx(by_hand(features, codes, torch.zeros_like(codes)), rel=1e-4)


def test_mean_over_permutations_within_classes_is_zero():
    features, codes, classes = rows()
    codes[0], classes[0] = 3, 0  # a group of one row has no pair
    dependence = GroupDependence(codes, 4, classes)
    rng, found = np.random.default_rng(1), []
    for _ in range(400):
        order = np.arange(60)
        for label in (0, 1):
            own = np.flatnonzero(classes.numpy() == label)
            order[own] = rng.permutation(own)
        found.append(float(dependence(features[order], codes, classes)))
    assert np.mean(found) == pytest.approx(0.0, abs=4 * np.std(found) / 20)
    assert float(dependence(features, codes, classes)) > np.quantile(found, 0.99)


def test_the_mean_over_minibatches_is_near_the_value_of_all_rows():
    features, codes, classes = rows(2000)
    dependence = GroupDependence(codes, 3, classes)
    rng = np.random.default_rng(0)
    found = []
    for _ in range(200):
        some = rng.choice(2000, 40, replace=False)
        found.append(float(dependence(features[some], codes[some], classes[some])))
    whole = float(dependence(features, codes, classes))
    # The standardisation is the batch's own, and takes a little off.
    assert np.mean(found) == pytest.approx(whole, abs=4 * np.std(found) / 14 + 0.1 * whole)


def test_features_that_tell_the_class_alone_do_not_depend_on_the_group():
    rng = np.random.default_rng(0)
    codes = torch.as_tensor(rng.integers(0, 2, 1000))
    classes = torch.as_tensor((rng.random(1000) < np.where(codes == 0, 0.2, 0.8)).astype(int))
    features = classes[:, None] + 0.3 * torch.as_tensor(rng.normal(size=(1000, 1)))
    assert abs(float(GroupDependence(codes, 2, classes)(features, codes, classes))) < 0.01
    assert float(GroupDependence(codes, 2)(features, codes)) > 0.05


def test_a_minibatch_without_pairs_gives_zero():
    _, codes, classes = rows()
    dependence = GroupDependence(codes, 3, classes)
    two = torch.tensor([0, 1])
    features = torch.randn(2, 2, requires_grad=True)
    value = dependence(features, two, two)
    value.backward()
    assert float(value.detach()) == 0.0
    assert bool((features.grad == 0.0).all())


def test_settings_that_are_refused():
    with pytest.raises(ArgumentError, match="independence of the adversary must be a number of at least 0"):
        pa.Adversary(1.0, independence=-1.0)
    with pytest.raises(ArgumentError, match="compares rows of a class between groups"):
        GroupDependence(torch.tensor([0, 1, 2]), 3)
    frame = pa.simulate.mixed_model(4, 10, seed=0).frame
    settings = pa.Adversary(1.0, independence=1.0, conditional=True)
    with pytest.raises(ArgumentError, match="'gaussian' has not; pass conditional=False"):
        pa.ARMED("y ~ x1 + (1 | group)", frame, network=pa.networks.MLP((4,)), adversary=settings)


def test_settings_go_into_a_config_and_back():
    settings = pa.Adversary(0.5, independence=20.0)
    assert pa.Adversary.from_config(settings.config()) == settings
    assert pa.Adversary.from_config({"weight": 1.0}).independence == 0.0  # files of before


@pytest.mark.filterwarnings("ignore::pyro_armed.errors.ConvergenceWarning")  # a short fit for show
def test_a_fresh_probe_finds_less_of_the_group():
    """A feature that tells the group and is of no use; the adversary alone is too weak to hide it."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, 1200)
    x = np.column_stack([rng.normal(size=1200), codes + 0.3 * rng.normal(size=1200)])
    y = (rng.random(1200) < 1 / (1 + np.exp(-2 * x[:, 0]))).astype(int)
    excess = []
    for independence in (0.0, 10.0):
        torch.manual_seed(0)
        model = pa.ARMED.from_arrays(
            x, y, {"site": codes}, family="bernoulli",
            random_effects=[pa.RandomEffects("site")],
            network=lambda: nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)),
            adversary=pa.Adversary(0.1, learning_rate=1e-4, independence=independence),
        )  # fmt: skip
        model.fit(
            guide="mean_field", restarts=1, draws=20, epochs=60, batch_size=100, early_stopping=False,
            seed=0, progressbar=False,
        )  # fmt: skip
        found = diagnostics.leakage(model, given_response=True, permutations=50).iloc[0]
        excess.append(found["accuracy"] - found["chance"])
    assert excess[0] > 0.2
    assert excess[1] < 0.25 * excess[0]


def test_weights_scale_it_and_zero_leaves_it_out():
    values = {}
    for weight in (0.0, 0.5, 1.0):
        module, guide, head = networked(weight=1.0, independence=3.0)
        with local_parameters(), seeded(0):
            parts = Objective(module, guide, head)(module.data, weight)
        values[weight] = float(parts.dependence.detach())
    assert values[0.0] == 0.0
    assert values[1.0] == pytest.approx(2 * values[0.5])
    assert values[1.0] != 0.0
    _, _, plain = networked(weight=1.0)
    assert len(plain.dependences) == 0
