"""Baselines: the same rows, network and budget, other ways to deal with groups."""

import numpy as np
import pytest
import torch
from torch import nn

import pyro_armed as pa
from pyro_armed.baselines import (
    BASELINES,
    Baseline,
    GroupInput,
    MetaLearning,
    Rows,
    Task,
    compare,
    fits,
    score,
    train_mldg,
)
from pyro_armed.baselines._group_input import joined
from pyro_armed.baselines._meta_learning import _Run
from pyro_armed.batch import Batch
from pyro_armed.errors import ArgumentError, DataError
from pyro_armed.families import Bernoulli

FIT = {"epochs": 2, "batch_size": 32, "learning_rate": 0.01, "draws": 10, "compile": "off"}


def make_task(**changes) -> Task:
    data = pa.simulate.spirals(4, 40, seed=0)
    new = data.new_groups(2, rows_per_group=20, seed=0).frame
    frame = data.frame.sample(frac=1.0, random_state=0)
    settings = {
        "train": rows_of(frame[:120]),
        "seen": rows_of(frame[120:]),
        "unseen": rows_of(new),
        "group": "group",
        "network": lambda: pa.networks.MLP(hidden=(4,)),
        "adversary": pa.Adversary(0.5),
        "fit": FIT,
    }
    return Task(**(settings | changes))


def rows_of(frame) -> Rows:
    return Rows(frame[["x1", "x2"]], frame["y"], {"group": frame["group"]})


# --- tasks -------------------------------------------------------------------------------------------------


def test_codes_are_places_among_the_training_groups():
    task = make_task()
    assert task.labels.tolist() == ["g00", "g01", "g02", "g03"]
    codes = task.codes(task.seen)
    np.testing.assert_array_equal(task.labels[codes], task.seen.groups["group"])
    assert set(task.codes(task.unseen)) == {4}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"group": "site"}, DataError, "train has no grouping factor 'site'"),
        ({"network": pa.networks.MLP()}, ArgumentError, "function that returns a fresh"),
        ({"seen": Rows([[0.0, 0.0]], [0], {"group": ["new"]})}, DataError, "seen has the group 'new'"),
        ({"unseen": Rows([[0.0, 0.0]], [0], {"group": ["g01"]})}, DataError, "unseen has the group 'g01'"),
    ],
)
def test_tasks_that_are_refused(change, error, words):
    with pytest.raises(error, match=words):
        make_task(**change)


def test_rows_of_different_lengths_are_refused():
    with pytest.raises(DataError, match="x has 2 rows, but group has 1"):
        Rows([[0.0], [1.0]], [0, 1], {"group": ["a"]})


# --- group as input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [None, "0", "2"])
def test_the_group_as_input_is_a_one_hot_code_beside_the_layers_inputs(layer):
    inner = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    network = GroupInput(inner, (2,), 5, layer)
    x, codes = torch.randn(20, 2), torch.arange(20) % 5
    given = network(torch.cat([x, codes[:, None] / 5], dim=1))

    at = int(layer or 0)  # the same with a larger dense layer and a real one-hot code
    weight = torch.cat([inner[at].weight, network.shift.T], dim=1)
    one_hot = torch.nn.functional.one_hot(codes, 5).float()
    if at == 0:
        expected = inner[2](torch.relu(torch.cat([x, one_hot], 1) @ weight.T + inner[0].bias))
    else:
        hidden = torch.relu(inner[0](x))
        expected = torch.cat([hidden, one_hot], 1) @ weight.T + inner[2].bias
    torch.testing.assert_close(given, expected)


def test_a_new_group_gets_the_mean_of_the_others_weights():
    inner = nn.Linear(1, 1)
    network = GroupInput(inner, (1,), 3)
    given = network(torch.tensor([[0.5, 1.0]]))
    torch.testing.assert_close(given, inner(torch.tensor([[0.5]])) + network.shift.mean(0))


def test_the_code_survives_any_number_of_groups_in_single_precision():
    codes = torch.arange(5001)
    x = torch.cat([torch.zeros(5001, 1), (codes.double() / 5000).float()[:, None]], dim=1)
    network = GroupInput(nn.Linear(1, 1), (1,), 5000)
    with torch.no_grad():
        network.shift.copy_(torch.arange(5000.0)[:, None])
        network.network.bias.zero_()
        expected = torch.cat([torch.arange(5000.0), network.shift.mean()[None]])
        torch.testing.assert_close(network(x)[:, 0], expected)


def test_columns_are_standardised_and_the_code_is_not():
    task = make_task()
    x = joined(task, task.train)
    np.testing.assert_allclose(x[:, :2].mean(0), 0.0, atol=1e-12)
    np.testing.assert_allclose(x[:, :2].std(0), 1.0)
    np.testing.assert_array_equal(x[:, 2] * 4, task.codes(task.train))


def test_no_dense_layer_to_enter_at():
    with pytest.raises(ArgumentError, match=r"no nn\.Linear at which the group could enter"):
        GroupInput(nn.Conv2d(1, 1, 3), (1, 8, 8), 2)
    with pytest.raises(ArgumentError, match="group_layer='1' is not the name"):
        GroupInput(nn.Sequential(nn.Linear(1, 1), nn.ReLU()), (1,), 2, "1")


# --- meta-learning -----------------------------------------------------------------------------------------


def test_the_gradient_of_mldg_against_finite_differences_of_its_definition():
    rng = np.random.default_rng(0)
    x, y, codes = rng.normal(size=(12, 2)), rng.integers(0, 2, 12), np.arange(12) % 3
    network = nn.Linear(2, 1).double()
    data = Batch(12, 12, inputs=torch.tensor(x), response=torch.tensor(y, dtype=torch.float64))
    run = _Run(network, Bernoulli(), data, torch.tensor(codes), 3, MetaLearning(inner_rate=0.3, weight=0.7))
    held = torch.tensor(codes == 1)
    rows = torch.arange(12)
    run.loss(rows[~held], rows[held]).backward()

    def logistic(w, keep):  # loss and its gradient, by hand
        z = x[keep] @ w[:2] + w[2]
        p = 1 / (1 + np.exp(-z))
        design = np.column_stack([x[keep], np.ones(keep.sum())])
        return np.mean(np.log1p(np.exp(-(2 * y[keep] - 1) * z))), design.T @ (p - y[keep]) / keep.sum()

    def whole(w):
        first, slope = logistic(w, codes != 1)
        return first + 0.7 * logistic(w - 0.3 * slope, codes == 1)[0]

    w = np.append(network.weight.detach().numpy().ravel(), network.bias.detach().numpy())
    expected = [(whole(w + 1e-6 * e) - whole(w - 1e-6 * e)) / 2e-6 for e in np.eye(3)]
    found = np.append(network.weight.grad.numpy().ravel(), network.bias.grad.numpy())
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_mldg_learns_and_repeats_itself_and_moves_no_random_state(unmoved_rng):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(300, 1))
    rows = Rows(x, (x[:, 0] > 0).astype(int), {"site": rng.integers(0, 3, 300).astype(str)})
    fit = {"epochs": 20, "batch_size": 50, "learning_rate": 0.05}
    task = Task(rows, rows, "site", lambda: nn.Linear(1, 1), fit=fit)
    with unmoved_rng():
        one, two = (train_mldg(task, seed=3, progressbar=False) for _ in range(2))
    assert torch.equal(one.network.weight, two.network.weight)
    table = score(task, one).set_index("metric")["value"]
    assert table["accuracy"] > 0.95
    assert table["nlpd"] < 0.35


def test_mldg_follows_the_schedule_of_the_budget(monkeypatch):
    rates = []
    step = torch.optim.Adam.step

    def watched(self, *arguments, **options):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    fit = {"epochs": 2, "batch_size": 50, "learning_rate": 0.1, "schedule": "cosine"}
    rows = Rows(np.arange(100.0)[:, None], np.arange(100) % 2, {"site": np.arange(100) % 4})
    train_mldg(Task(rows, rows, "site", lambda: nn.Linear(1, 1), fit=fit), progressbar=False)
    assert rates == pytest.approx([0.1, 0.1 * (0.5 + 0.5**1.5), 0.05, 0.1 * (0.5 - 0.5**1.5)])


def test_mldg_refuses_what_it_cannot_do():
    rows = Rows([[0.0], [1.0]], [0.5, 1.5], {"site": ["a", "b"]})
    with pytest.raises(ArgumentError, match="not for 'gaussian'"):
        train_mldg(Task(rows, rows, "site", lambda: nn.Linear(1, 1), family="gaussian"))
    with pytest.raises(ArgumentError, match="share=1"):
        MetaLearning(share=1.0)


# --- all of them -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted():
    return dict(fits(make_task(), progressbar=False))


def test_each_baseline_is_what_it_says(fitted):
    assert list(fitted) == list(BASELINES)
    groups = {name: one.model.spec.effect_groups for name, one in fitted.items() if one.model is not None}
    with_effects = {"random effects", "ARMED", "randomised groups"}
    assert {name for name, found in groups.items() if found} == with_effects
    watched = {name for name, one in fitted.items() if one.model is not None and one.model.adversary}
    assert watched == {"domain adversarial", "ARMED", "randomised groups"}
    assert fitted["meta-learning"].model is None
    assert fitted["ARMED"].model.adversary.groups == ("group",)


def test_randomised_groups_are_a_permutation_in_training_only(fitted):
    task = make_task()
    plain, permuted = (
        fitted[name].model._training.batch.codes["group"] for name in ("ARMED", "randomised groups")
    )
    assert not torch.equal(plain, permuted)
    assert torch.equal(plain.sort().values, permuted.sort().values)
    np.testing.assert_array_equal(plain.numpy(), task.codes(task.train))


def test_scores_are_those_of_the_models_own_predictions(fitted):
    task, one = make_task(), fitted["ARMED"]
    table = score(task, one).set_index(["split", "metric"])["value"]
    p = one.model.predict(task.seen.x, groups=task.seen.groups)["predictions"]["y"].mean(("chain", "draw"))
    p, y = p.to_numpy(), task.seen.y
    assert table["seen", "accuracy"] == pytest.approx(np.mean((p > 0.5) == y))
    assert table["seen", "nlpd"] == pytest.approx(-np.mean(np.where(y == 1, np.log(p), np.log1p(-p))))
    pairs = (p[y == 1][:, None] > p[y == 0]).mean()
    assert table["seen", "auroc"] == pytest.approx(pairs, abs=1e-3)


def test_compare_is_tidy_and_repeats_itself(unmoved_rng):
    names = ["conventional", "group as input", "meta-learning"]
    with unmoved_rng():
        one, two = (compare(make_task(), baselines=names, seed=1, progressbar=False) for _ in range(2))
    assert one.equals(two)
    assert one.columns.tolist() == ["baseline", "split", "metric", "value", "se", "seed"]
    assert one["baseline"].unique().tolist() == names
    assert len(one) == 3 * 2 * 3
    assert one["value"].notna().all()


def test_a_variant_of_a_baseline():
    wide = BASELINES["conventional"].changed("wide", "8 units", network=lambda: pa.networks.MLP(hidden=(8,)))
    ((name, one),) = fits(make_task(), baselines=[wide], progressbar=False)
    assert isinstance(wide, Baseline)
    assert (name, one.model.spec.n_features) == ("wide", 8)


@pytest.mark.parametrize("family", ["categorical", "gaussian"])
def test_other_responses(family):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 60) if family == "categorical" else rng.normal(size=60)
    rows = Rows(rng.normal(size=(60, 2, 4)), y, {"site": np.repeat(["a", "b", "c"], 20)})
    outputs = 2 if family == "categorical" else 1

    def network() -> nn.Module:
        return nn.Sequential(nn.Flatten(), pa.networks.MLP((4,)).build(8, outputs))

    task = Task(rows, rows, "site", network, family=family, fit=FIT)
    names = ["group as input", "random effects"] + (["meta-learning"] if family == "categorical" else [])
    table = compare(task, baselines=names, progressbar=False)
    expected = {"categorical": ["accuracy", "nlpd"], "gaussian": ["rmse", "nlpd"]}[family]
    assert table["metric"].unique().tolist() == expected
    assert table["value"].notna().all()


def test_a_network_that_reconstructs_its_input():
    rng = np.random.default_rng(0)
    rows = Rows(rng.normal(size=(40, 8, 8)), rng.integers(0, 2, 40), {"site": np.repeat(["a", "b"], 20)})
    task = Task(rows, rows, "site", lambda: pa.networks.AutoencoderClassifier((4,), latent=3), fit=FIT)
    ((_, one),) = fits(task, baselines=["group as input"], progressbar=False)
    assert one.model.spec.reconstruction is not None
    assert np.isfinite(score(task, one)["value"]).all()


def test_errors_name_the_mend():
    with pytest.raises(ArgumentError, match="no baseline 'armed'; use one of conventional"):
        compare(make_task(), baselines="armed", progressbar=False)
    with pytest.raises(ArgumentError, match=r"no adversary; give it adversary=pa.Adversary"):
        compare(make_task(adversary=None), baselines=["domain adversarial"], progressbar=False)
