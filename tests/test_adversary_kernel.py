"""The adversary's kernel: its value by brute force, its bias, its way into the loss."""

import numpy as np
import pytest
import torch

import pyro_armed as pa
from pyro_armed.adversary import Adversary, group_dependence, group_shares
from pyro_armed.errors import ArgumentError


def rows(n, seed=0, groups=3):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, 2)), rng.integers(0, groups, n), rng.integers(0, 2, n)


def by_hand(z, code, y, share, weights):
    z = (z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5 * z.var(0).mean() + 1e-10)
    pairs = [(i, j) for i in range(len(z)) for j in range(len(z)) if i != j and y[i] == y[j]]
    w = np.array([weights[i] * weights[j] for i, j in pairs])
    d = np.array([((z[i] - z[j]) ** 2).mean() for i, j in pairs])
    k, of = np.exp(-d / 2) + 0.5 * np.exp(-2 * d), np.array([y[i] for i, _ in pairs])
    for v in set(y):
        k[of == v] -= np.average(k[of == v], weights=w[of == v])
    factor = np.array([(code[i] == code[j]) / share[y[i], code[i]] for i, j in pairs])
    return (w * k * factor).sum() / w.sum()


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_dependence_by_brute_force(given, weighted):
    z, code, y = rows(24)
    weights = np.random.default_rng(1).uniform(0, 2, 24) if weighted else np.ones(24)
    of = y if given else np.zeros(24, dtype=int)
    share = np.array(
        [[weights[(of == v) & (code == c)].sum() for c in range(3)] for v in range(of.max() + 1)]
    )
    share /= share.sum(1, keepdims=True)
    tensors = torch.tensor(code), torch.tensor(y) if given else None
    w = torch.tensor(weights) if weighted else None
    shares = group_shares(tensors[0], 3, tensors[1], w)
    np.testing.assert_allclose(shares, share, rtol=1e-6)
    found = group_dependence(torch.tensor(z), tensors[0], shares, tensors[1], w)
    assert float(found) == pytest.approx(by_hand(z, code, of, share, weights), rel=1e-5)


def test_it_is_zero_on_average_only_without_dependence():
    generator = torch.Generator().manual_seed(0)
    code = torch.arange(16) % 4
    shares = group_shares(code, 4)
    z = torch.randn(2000, 16, 2, generator=generator)
    plain = torch.stack([group_dependence(x, code, shares) for x in z])
    se = float(plain.std()) / len(z) ** 0.5
    assert abs(float(plain.mean())) < 3 * se
    moved = torch.stack([group_dependence(x + 0.7 * code[:, None], code, shares) for x in z[:200]])
    assert float(moved.mean()) > 0.1


def test_rows_of_other_classes_are_not_compared():
    # Features that say the class, and the class says the group: no dependence given the class.
    y = torch.tensor([0] * 8 + [1] * 8)
    code = torch.tensor([0, 1] * 4 + [2, 3] * 4)
    z = torch.randn(16, 1, generator=torch.Generator().manual_seed(0)) * 0.1 + 5.0 * y[:, None]
    marginal = float(group_dependence(z, code, group_shares(code, 4)))
    given = float(group_dependence(z, code, group_shares(code, 4, y), y))
    assert marginal > 0.3
    assert abs(given) < 0.1


pytestmark = pytest.mark.filterwarnings("ignore::pyro_armed.errors.ConvergenceWarning")


DATA = pa.simulate.confounded_spirals(4, 40, seed=0).frame


def model(kernel, weight=1.0):
    return pa.ARMED.from_arrays(
        DATA[["x1", "x2", "probe1", "probe2"]].to_numpy(dtype=np.float32),
        DATA["y"].to_numpy(),
        {"group": DATA["group"].to_numpy()},
        random_effects=[pa.RandomEffects("group")],
        network=pa.networks.MLP(hidden=(6,)),
        adversary=Adversary(weight=weight, independence=kernel),
        family="bernoulli",
    )


FIT = {
    "epochs": 30,
    "batch_size": 80,
    "learning_rate": 0.05,
    "guide": "mean_field",
    "log_likelihood": False,
    "early_stopping": False,
    "compile": "off",
    "restarts": 1,
    "draws": 5,
    "progressbar": False,
}


def test_it_leaves_less_of_the_group_in_the_features():
    def left(kernel):
        fitted = model(kernel)
        fitted.fit(**FIT, seed=0)
        code, y = (torch.as_tensor(DATA[name].factorize()[0]) for name in ("group", "y"))
        z = torch.as_tensor(pa.diagnostics.latents(fitted))
        return float(group_dependence(z, code, group_shares(code, 4, y), y))

    assert left(50.0) < 0.5 * left(0.0)


def test_a_weight_of_zero_only_watches():
    draws = []
    for kernel in (0.0, 50.0):
        fitted = model(kernel, weight=0.0)
        draws.append(fitted.fit(**FIT | {"epochs": 3}, seed=0)["posterior"]["1|group"].to_numpy())
    np.testing.assert_array_equal(*draws)


def test_what_it_cannot_be_used_with():
    with pytest.raises(ArgumentError, match="independence of the adversary must be"):
        Adversary(weight=1.0, independence=-1.0)
    frame = pa.simulate.mixed_model(4, 10, seed=0).frame
    given = {
        "network": pa.networks.MLP(hidden=(4,)),
        "adversary": Adversary(1.0, independence=1.0, conditional=True),
    }
    with pytest.raises(ArgumentError, match="conditional=False"):
        pa.ARMED("y ~ x1 + (1 | group)", frame, **given)
    with pytest.raises(ArgumentError, match="one per row"):
        group_dependence(torch.zeros(4, 2), torch.zeros(3, dtype=torch.long), torch.ones(1, 1))
    assert Adversary.from_config(Adversary(weight=1.0, independence=3.0).config()).independence == 3.0
