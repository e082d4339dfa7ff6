import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_armed.adversary import (
    Adversary,
    GroupClassifier,
    adversary_loss,
    chance_accuracy,
    gradient_reversal,
    label_columns,
)
from pyro_armed.errors import ArgumentError
from pyro_armed.networks import MLP


def draws(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_reversal_keeps_every_bit_of_the_value():
    x = draws(1000) * 10.0 ** draws(1000, seed=1).mul(8)
    x = torch.cat([x, torch.tensor([0.0, -0.0, 1e-45, 3e38])])
    for weight in (0.0, 0.3, 1e6, torch.tensor(0.7)):
        y = gradient_reversal(x, weight)
        assert torch.equal(y.view(torch.int32), x.view(torch.int32))


# Torch's own forward mode loads scripted functions, which it has deprecated.
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("weight", [0.0, 0.5, torch.tensor(2.0)])
def test_reversal_under_every_transform(weight):
    x = draws(4, 3)

    def loss(x: Tensor) -> Tensor:
        return (gradient_reversal(x, weight) ** 3).sum()

    expected = -weight * 3 * x**2
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(loss(leaf), leaf)[0], expected)
    torch.testing.assert_close(torch.func.grad(loss)(x), expected)
    torch.testing.assert_close(torch.vmap(torch.func.grad(loss))(x), expected)
    torch.testing.assert_close(torch.func.vmap(lambda row: gradient_reversal(row, weight))(x), x)
    torch.testing.assert_close(make_fx(torch.func.grad(loss))(torch.zeros(4, 3))(x), expected)
    _, tangent = torch.func.jvp(lambda x: gradient_reversal(x, weight), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, torch.zeros_like(x) - weight)


def test_reversal_traced_by_autograd_takes_a_new_weight():
    def step(x: Tensor, weight: Tensor) -> Tensor:
        return torch.autograd.grad((gradient_reversal(x, weight) ** 2).sum(), x)[0]

    x = draws(5).requires_grad_()
    traced = make_fx(step)(x, torch.tensor(0.1))
    torch.testing.assert_close(traced(x, torch.tensor(0.9)), -0.9 * 2 * x.detach())


def hand_gradients(x, w, codes, v, c, weight, scale):
    """Linear features h = x w, standardised, linear classifier v, c: gradients by the chain rule."""
    h = x @ w
    n = len(h)
    centred = h - h.mean(0)
    variance = (centred**2).mean(0)
    floor = 1e-5 * variance.mean() + 1e-10
    z = centred / np.sqrt(variance + floor)
    logits = z @ v.T + c
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    target = np.eye(p.shape[1])[codes]
    loss = -(scale * np.log((p * target).sum(1))).sum()
    d_logits = scale[:, None] * (p - target)
    d_z = d_logits @ v
    inverse = 1 / np.sqrt(variance + floor)
    d_centred = d_z * inverse - centred * inverse**3 * (d_z * centred).mean(0)
    d_h = d_centred - d_centred.mean(0)
    assert n == len(codes)
    return loss, -weight * x.T @ d_h, d_logits.T @ z, d_logits.sum(0)


@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_against_a_hand_derivation(weighted):
    x, w = draws(7, 3, dtype=torch.float64), draws(3, 2, seed=1, dtype=torch.float64).requires_grad_()
    codes = torch.tensor([0, 1, 2, 3, 1, 1, 0])
    row_weights = torch.tensor([1.0, 2.0, 0.0, 0.5, 1.0, 3.0, 1.0], dtype=torch.float64) if weighted else None
    classifier = GroupClassifier(2, 4, hidden=()).double()
    terms = adversary_loss(classifier, x @ w, codes, weight=0.7, row_weights=row_weights)
    terms.loss.backward()
    scale = np.full(7, 1 / 7) if row_weights is None else (row_weights / row_weights.sum()).numpy()
    layer = classifier.layers[0]
    loss, d_w, d_v, d_c = hand_gradients(
        x.numpy(),
        w.detach().numpy(),
        codes.numpy(),
        layer.weight.detach().numpy(),
        layer.bias.detach().numpy(),
        0.7,
        scale,
    )
    np.testing.assert_allclose(terms.loss.item(), loss, rtol=1e-10)
    np.testing.assert_allclose(w.grad.numpy(), d_w, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(layer.weight.grad.numpy(), d_v, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(layer.bias.grad.numpy(), d_c, rtol=1e-8, atol=1e-12)


def example(label_dim: int = 0):
    network = MLP(hidden=(), activation="tanh").build(4, 3)
    classifier = GroupClassifier(3, 5, hidden=(6,), label_dim=label_dim)
    codes = torch.randint(0, 5, (40,), generator=torch.Generator().manual_seed(2))
    x = draws(40, 4)
    x[:, 0] += codes
    return network, classifier, x, codes


def test_signs_of_the_two_players():
    network, classifier, x, codes = example()

    def loss() -> Tensor:
        return adversary_loss(classifier, network(x), codes).loss

    for player, direction in ((network, 1), (classifier, -1)):
        before = loss()
        gradients = torch.autograd.grad(before, list(player.parameters()))
        with torch.no_grad():
            for p, g in zip(player.parameters(), gradients, strict=True):
                p -= 1e-2 * g
        assert direction * (loss() - before) > 1e-6


def test_weight_scales_only_the_networks_gradient():
    network, classifier, x, codes = example()
    results = {}
    for weight in (0.0, 1.0, 3.0, torch.tensor(0.0)):
        network.zero_grad()
        classifier.zero_grad()
        terms = adversary_loss(classifier, network(x), codes, weight=weight)
        terms.loss.backward()
        key = (float(weight), isinstance(weight, Tensor))
        results[key] = (
            terms.loss.item(),
            [p.grad.clone() for p in network.parameters()],
            [p.grad.clone() for p in classifier.parameters()],
        )
    for key in ((0.0, False), (0.0, True)):
        assert all(not g.any() for g in results[key][1])
    for loss, network_gradients, own in results.values():
        assert loss == results[1.0, False][0]
        assert all(torch.equal(a, b) for a, b in zip(own, results[1.0, False][2], strict=True))
        assert len(network_gradients) == 2
    for a, b in zip(results[3.0, False][1], results[1.0, False][1], strict=True):
        torch.testing.assert_close(a, 3 * b)


def test_weight_zero_changes_no_bit_of_the_networks_total_gradient():
    network, classifier, x, codes = example()
    alone = torch.autograd.grad(network(x).square().mean(), list(network.parameters()))
    output = network(x)
    total = output.square().mean() + adversary_loss(classifier, output, codes, weight=0.0).loss
    together = torch.autograd.grad(total, list(network.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_accuracy_and_chance():
    class Fixed(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            return features

    logits = torch.tensor([[5.0, 0, 0], [5.0, 0, 0], [0, 5.0, 0], [0, 0, 5.0]])
    codes = torch.tensor([0, 1, 1, 1])
    terms = adversary_loss(Fixed(), logits, codes)
    assert terms.accuracy == 0.5
    assert chance_accuracy(codes) == 0.75
    terms = adversary_loss(Fixed(), logits, codes, row_weights=torch.tensor([4.0, 1.0, 1.0, 2.0]))
    assert terms.accuracy == 5 / 8
    assert chance_accuracy(codes, row_weights=torch.tensor([4.0, 1.0, 1.0, 2.0])) == 0.5
    assert not terms.accuracy.requires_grad
    assert chance_accuracy(codes, torch.tensor([5.0, 5.0, 5.0, 1.0])) == 0.75
    assert chance_accuracy(codes, torch.tensor([1, 2, 2, 2])) == 1.0
    nothing = adversary_loss(Fixed(), logits, codes, row_weights=torch.zeros(4))
    assert nothing.loss == 0.0


def test_integer_row_weights_are_repeated_rows():
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 5)

        def forward(self, features: Tensor) -> Tensor:
            return self.layer(features)

    classifier, x, codes = Linear(), draws(4, 3), torch.tensor([0, 1, 4, 4])
    times = torch.tensor([1, 3, 2, 0])
    weighted = adversary_loss(classifier, x, codes, row_weights=times)
    repeated = adversary_loss(classifier, x.repeat_interleave(times, 0), codes.repeat_interleave(times))
    for a, b in zip(weighted, repeated, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("label_dim", [0, 2])
def test_loss_under_torch_func_and_make_fx(label_dim):
    network, classifier, x, codes = example(label_dim)
    labels = draws(40, 2, seed=9) if label_dim else None
    values = {name: p.detach() for name, p in network.named_parameters()}
    own = {name: p.detach() for name, p in classifier.named_parameters()}

    def loss(values, own, x, codes, weight):
        def call(features, *rest):
            return torch.func.functional_call(classifier, own, (features, *rest))

        output = torch.func.functional_call(network, values, (x,))
        return adversary_loss(call, output, codes, labels, weight=weight).loss

    adversary_loss(classifier, network(x), codes, labels, weight=0.3).loss.backward()
    gradient = torch.func.grad(loss, argnums=(0, 1))
    traced = make_fx(gradient)(values, own, draws(40, 4, seed=8), codes.flip(0), torch.tensor(1.0))
    for result in (
        gradient(values, own, x, codes, torch.tensor(0.3)),
        traced(values, own, x, codes, torch.tensor(0.3)),
    ):
        for module, gradients in zip((network, classifier), result, strict=True):
            for name, p in module.named_parameters():
                torch.testing.assert_close(gradients[name], p.grad)


def test_loss_under_vmap():
    _, classifier, x, codes = example()
    xs, many = torch.stack([x[:, 1:], x[:, :3]]), torch.stack([codes, codes.flip(0)])
    terms = torch.vmap(lambda x, c: tuple(adversary_loss(classifier, x, c)))(xs, many)
    for i in range(2):
        for together, single in zip(terms, adversary_loss(classifier, xs[i], many[i]), strict=True):
            torch.testing.assert_close(together[i], single)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e5])
def test_classifier_does_not_see_location_and_scale(scale):
    classifier = GroupClassifier(3, 4)
    x = draws(50, 3)
    torch.testing.assert_close(classifier(scale * x + 2 * scale), classifier(x), rtol=1e-3, atol=1e-3)
    shrink = torch.ones((), requires_grad=True)
    codes = torch.arange(50) % 4
    gradient = torch.autograd.grad(adversary_loss(classifier, shrink * x, codes).loss, shrink)[0]
    assert abs(gradient) < 1e-4


def test_classifier_with_constant_and_single_features_and_one_row():
    x = draws(20, 3)
    x[:, 1] = 4.0
    x = x.requires_grad_()
    codes = torch.arange(20) % 2
    adversary_loss(GroupClassifier(3, 2), x, codes).loss.backward()
    assert x.grad.isfinite().all()
    assert x.grad.abs().max() < 100
    leak = draws(200, 1) + 3.0 * (torch.arange(200) % 2).unsqueeze(1)
    assert GroupClassifier(1, 2)(leak).std() > 0
    assert GroupClassifier(3, 2)(draws(1, 3)).isfinite().all()


def test_classifier_seed_and_global_random_state():
    state = torch.get_rng_state()
    a, b, c = GroupClassifier(3, 2, seed=1), GroupClassifier(3, 2, seed=1), GroupClassifier(3, 2, seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(a.layers[0].weight, b.layers[0].weight)
    assert not torch.equal(a.layers[0].weight, c.layers[0].weight)


def test_label_columns():
    y = torch.tensor([0, 2, 1])
    assert label_columns(y, 3).tolist() == np.eye(3)[[0, 2, 1]].tolist()
    assert label_columns(y).tolist() == [[0.0], [2.0], [1.0]]
    assert label_columns(torch.tensor([0.5, 1.0], dtype=torch.float64)).dtype == torch.float64
    traced = make_fx(lambda y: label_columns(y, 3))(torch.zeros(3, dtype=torch.long))
    assert torch.equal(traced(y), label_columns(y, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GroupClassifier(3, 2)(draws(4, 2)), "features of shape"),
        (lambda: GroupClassifier(3, 2)(draws(4, 3), draws(4)), "takes no labels"),
        (lambda: GroupClassifier(3, 2, label_dim=1)(draws(4, 3)), "needs labels"),
        (lambda: GroupClassifier(3, 2, label_dim=1)(draws(4, 3), draws(4, 2)), "labels must have shape"),
        (lambda: GroupClassifier(0, 2), "features"),
        (lambda: GroupClassifier(3, 2, label_dim=-1), "label_dim"),
        (lambda: GroupClassifier(3, 2, hidden=(0,)), "hidden"),
        (lambda: adversary_loss(GroupClassifier(3, 2), draws(4, 3), torch.zeros(4)), "codes"),
        (lambda: adversary_loss(GroupClassifier(3, 2), draws(4, 3), torch.zeros(5).long()), "codes"),
        (
            lambda: adversary_loss(
                GroupClassifier(3, 2), draws(4, 3), torch.zeros(4).long(), row_weights=torch.ones(4, 1)
            ),
            "row_weights",
        ),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()


@pytest.mark.parametrize(
    "settings",
    [
        {"weight": -1.0},
        {"weight": float("nan")},
        {"weight": float("inf")},
        {"weight": "1"},
        {"weight": True},
        {"weight": 1.0, "hidden": (0,)},
        {"weight": 1.0, "hidden": 8},
        {"weight": 1.0, "conditional": "yes"},
        {"weight": 1.0, "conditional": 1},
        {"weight": 1.0, "warmup": 1.5},
        {"weight": 1.0, "warmup": -0.1},
        {"weight": 1.0, "learning_rate": 0.0},
        {"weight": 1.0, "groups": ()},
        {"weight": 1.0, "groups": ("site", "site")},
        {"weight": 1.0, "groups": 3},
        {"weight": 1.0, "layers": ()},
        {"weight": 1.0, "layers": ("body", "body")},
        {"weight": 1.0, "layers": 2},
        {"weight": 1.0, "weight_decay": -0.1},
    ],
)
def test_bad_adversary_settings(settings):
    with pytest.raises(ArgumentError):
        Adversary(**settings)


def test_adversary_settings():
    adversary = Adversary(weight=2, hidden=[np.int64(4)], warmup=0.5, groups="site")
    assert adversary.groups == ("site",)
    assert adversary.hidden == (4,)
    assert [adversary.weight_at(t) for t in (-0.1, 0.0, 0.25, 0.5, 1.0)] == [0.0, 0.0, 1.0, 2.0, 2.0]
    assert Adversary(2.0).weight_at(0.0) == 2.0
    assert Adversary(2.0, warmup=1.0).weight_at(1.0) == 2.0
    assert [Adversary(1.0).is_conditional(c) for c in (True, False)] == [True, False]
    assert [Adversary(1.0, conditional=True).is_conditional(c) for c in (True, False)] == [True, True]
    assert [Adversary(1.0, conditional=False).is_conditional(c) for c in (True, False)] == [False, False]
    with pytest.raises(AttributeError):
        adversary.weight = 3.0
    assert hash(adversary) == hash(Adversary(weight=2, hidden=(4,), warmup=0.5, groups=["site"]))


def test_adversary_config_round_trip():
    adversary = Adversary(
        weight=0.5, hidden=(), conditional=False, warmup=0.1, groups=("a", "b"), layers="body"
    )
    assert Adversary.from_config(json.loads(json.dumps(adversary.config()))) == adversary
    assert Adversary.from_config({"weight": 1.0}) == Adversary(1.0)
    with pytest.raises(ArgumentError, match="strength"):
        Adversary.from_config({"weight": 1.0, "strength": 2})
    with pytest.raises(ArgumentError, match="weight"):
        Adversary.from_config({})


def train(weight: float, conditional: bool, x: Tensor, y: Tensor, codes: Tensor) -> tuple[Tensor, float]:
    """Logistic regression on one adversarially trained feature; returns it and the accuracy."""
    network, head = nn.Linear(2, 1), nn.Linear(1, 1)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[0.5, 0.5]]))
        head.weight.fill_(1.0)
        for layer in (network, head):
            layer.bias.zero_()
    classifier = GroupClassifier(1, 4, hidden=(8,), label_dim=int(conditional), seed=3)
    optimiser = torch.optim.Adam(
        [
            {"params": [*network.parameters(), *head.parameters()], "lr": 0.02},
            {"params": classifier.parameters(), "lr": 0.05},
        ]
    )
    labels = label_columns(y) if conditional else None
    for _ in range(400):
        features = network(x)
        fit = nn.functional.binary_cross_entropy_with_logits(head(features)[:, 0], y)
        total = fit + adversary_loss(classifier, features, codes, labels, weight).loss
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
    features = network(x).detach()
    return features[:, 0], ((head(features)[:, 0] > 0) == y.bool()).double().mean().item()


def explained(feature: Tensor, codes: Tensor) -> float:
    """Share of the variance that lies between groups."""
    means = torch.stack([feature[codes == c].mean() for c in range(4)])[codes]
    return float((means - feature.mean()).square().mean() / (feature - feature.mean()).square().mean())


def leaking_data(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """One column carries the response, the other the group, whose response rates differ."""
    generator = np.random.default_rng(seed)
    codes = np.arange(800) % 4
    y = generator.binomial(1, np.array([0.1, 0.3, 0.7, 0.9])[codes])
    signal = 1.5 * (2 * y - 1) + 2.0 * generator.normal(size=800)
    probe = 2.0 * (codes - 1.5) + generator.normal(size=800)
    x = torch.tensor(np.column_stack([signal, probe]), dtype=torch.float32)
    return x, torch.tensor(y, dtype=torch.float32), torch.tensor(codes)


@pytest.mark.parametrize("seed", [0, 1])
def test_features_that_leak_the_group_stop_doing_so(seed):
    x, y, codes = leaking_data(seed)
    accuracies = {}
    for conditional in (False, True):
        # A conditional adversary promises nothing across responses, only within each.
        rows = [y == 0, y == 1] if conditional else [y >= 0]
        leaks = {}
        for weight in (0.0, 3.0):
            feature, accuracies[conditional] = train(weight, conditional, x, y, codes)
            leaks[weight] = max(explained(feature[r], codes[r]) for r in rows)
        assert leaks[0.0] > 0.25
        assert leaks[3.0] < 0.07
    # The groups' rates differ, so hiding the group altogether costs more of the target.
    assert accuracies[True] > 0.75
    assert accuracies[True] > accuracies[False] + 0.03
