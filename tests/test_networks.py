import json
import threading

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_armed import networks
from pyro_armed.errors import ArgumentError
from pyro_armed.networks import CNN, MLP, features_and_output, find_output_layer


def hook_count(network: nn.Module) -> int:
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._forward_hooks_with_kwargs)
        for m in network.modules()
    )


def rows(n: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


class Residual(nn.Module):
    """The output layer is registered first, and returned as (B,)."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 1)
        self.stem = nn.Linear(3, 6)
        self.block = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
        self.drop = nn.Dropout(0.5)

    def hidden(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.stem(x))
        return torch.relu(h + self.block(h))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.hidden(x))).squeeze(-1)


class Awkward(nn.Module):
    """Counts and draws random numbers in its forward, even in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.norm = nn.BatchNorm1d(3)
        self.frozen = nn.BatchNorm1d(3).eval()
        self.out = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return self.out(self.frozen(self.norm(x)) + torch.randn(3))


class Returns(nn.Module):
    """Gives whatever a function makes of a linear layer's output."""

    def __init__(self, change, columns: int = 2) -> None:
        super().__init__()
        self.linear = nn.Linear(3, columns)
        self.change = change

    def forward(self, x: Tensor):
        return self.change(self.linear(x))


def test_mlp_matches_numpy():
    network = MLP(hidden=(4, 5), activation="tanh").build(3, 2)
    x = rows(6, 3)
    layers = [m for m in network.modules() if isinstance(m, nn.Linear)]
    h = x.numpy()
    for layer in layers[:-1]:
        h = np.tanh(h @ layer.weight.detach().numpy().T + layer.bias.detach().numpy())
    expected = h @ layers[-1].weight.detach().numpy().T + layers[-1].bias.detach().numpy()
    features, output = features_and_output(network, x, find_output_layer(network, x))
    np.testing.assert_allclose(features.detach().numpy(), h, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(output.detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_mlp_without_hidden_layers_reads_its_inputs():
    network = MLP(hidden=()).build(3, 1)
    x = rows(4, 3)
    features, _ = features_and_output(network, x, find_output_layer(network, x))
    assert torch.equal(features, x)


@pytest.mark.parametrize("pooling", ["flatten", "global"])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_cnn_features(pooling, batch_norm):
    network = CNN(channels=(2, 3), hidden=(5,), pooling=pooling, batch_norm=batch_norm).build((9, 8), 2)
    network.eval()
    x = rows(4, 9, 8)
    layer = find_output_layer(network, x)
    features, output = features_and_output(network, x, layer)
    head = network.get_submodule(layer)
    assert features.shape == (4, 5)
    assert torch.equal(output, head(features))
    assert torch.equal(network(x), network(x.unsqueeze(1)))
    with pytest.raises(ArgumentError, match=r"\(1, 9, 8\)"):
        network(rows(4, 8, 9))


def test_cnn_takes_colour_images():
    network = CNN(channels=(2,), hidden=()).build((3, 6, 6), 1)
    assert network(rows(2, 3, 6, 6)).shape == (2, 1)
    with pytest.raises(ArgumentError, match="takes images"):
        network(rows(2, 6, 6))


def test_sequential_and_residual_features():
    sequential = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x = rows(5, 3)
    assert find_output_layer(sequential, x) == "2"
    features, _ = features_and_output(sequential, x, "2")
    assert torch.equal(features, torch.relu(sequential[0](x)))

    residual = Residual()
    assert find_output_layer(residual, x) == "head"
    residual.eval()
    features, output = features_and_output(residual, x, "head")
    assert torch.equal(features, residual.hidden(x))
    assert output.shape == (5, 1)
    assert torch.equal(output[:, 0], residual(x))


def test_network_that_is_one_linear_layer():
    network, x = nn.Linear(3, 1), rows(4, 3)
    assert find_output_layer(network, x) == ""
    features, output = features_and_output(network, x, "")
    assert torch.equal(features, x)
    assert output.shape == (4, 1)


def test_layer_called_by_keyword_is_read():
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(input=2 * x)

    x = rows(4, 3)
    features, _ = features_and_output(Keyword(), x, find_output_layer(Keyword(), x))
    assert torch.equal(features, 2 * x)


def test_layer_used_twice_counts_its_last_run():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.square = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.square(torch.tanh(self.square(x)))

    network, x = Twice(), rows(4, 3)
    features, _ = features_and_output(network, x, find_output_layer(network, x))
    assert torch.equal(features, torch.tanh(network.square(x)))


def test_dry_run_leaves_everything_as_it_was():
    network, x = Awkward(), rows(5, 3)
    network.norm(x)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    buffer, modes = network.calls, [m.training for m in network.modules()]
    state = torch.get_rng_state()
    assert find_output_layer(network, x) == "out"
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in network.modules()] == modes
    assert not network.frozen.training
    assert network.calls is buffer
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert hook_count(network) == 0
    assert all(p.grad is None for p in network.parameters())


def test_dry_run_is_in_evaluation_mode():
    # In training mode batch normalisation refuses a single row.
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    assert find_output_layer(network, rows(1, 3)) == "2"
    assert network.training


@pytest.mark.parametrize(
    "change",
    [
        torch.sigmoid,
        torch.relu_,
        lambda y: y + 1,
        lambda y: y[:, :1],
        lambda y: torch.flip(y, (1,)),
        lambda y: y.detach() * 1,
    ],
)
def test_network_that_changes_its_last_linear_output(change):
    network = Returns(change)
    with pytest.raises(ArgumentError, match=r"does not end in an nn.Linear.*Linear \('linear'\)"):
        find_output_layer(network, rows(4, 3))
    assert hook_count(network) == 0


def test_in_place_activation_that_changes_no_value_is_still_seen():
    network = Returns(torch.relu_)
    with torch.no_grad():
        network.linear.weight.zero_()
        network.linear.bias.fill_(1.0)
    with pytest.raises(ArgumentError, match="does not end"):
        find_output_layer(network, rows(4, 3))


@pytest.mark.parametrize("change", [lambda y: y, lambda y: y.squeeze(-1), lambda y: y[:, 0], torch.flatten])
def test_views_of_the_last_linear_output_are_accepted(change):
    assert find_output_layer(Returns(change, columns=1), rows(4, 3)) == "linear"


def test_network_that_ends_otherwise_names_its_last_layer():
    with pytest.raises(ArgumentError, match=r"Sigmoid \('1'\)"):
        find_output_layer(nn.Sequential(nn.Linear(3, 1), nn.Sigmoid()), rows(4, 3))
    with pytest.raises(ArgumentError, match="does not end"):
        find_output_layer(Returns(lambda y: torch.zeros(4, 1)), rows(4, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: (y, y), "returned a tuple"),
        (lambda y: {"eta": y}, "returned a dict"),
        (lambda y: y.sum(), "one row per input row"),
        (lambda y: y[:2], "one row per input row"),
        (lambda y: y.unsqueeze(0), "one row per input row"),
        (lambda y: y, "returned 2 column.* where 3 expected"),
    ],
)
def test_unusable_outputs(change, message):
    network, x = Returns(change), rows(4, 3)
    with pytest.raises(ArgumentError, match=message):
        features_and_output(network, x, "linear", columns=3)
    with pytest.raises(ArgumentError, match=message):
        networks.network_output(network, x, columns=3)
    assert hook_count(network) == 0
    if "column" not in message:
        with pytest.raises(ArgumentError, match=message):
            find_output_layer(network, x)


def test_hooks_are_removed_when_the_forward_raises():
    def fail(y):
        raise KeyError("user code")

    network, x = Returns(fail), rows(4, 3)
    network.linear.register_forward_pre_hook(lambda m, a: None)
    with pytest.raises(KeyError, match="user code"):
        features_and_output(network, x, "linear")
    assert hook_count(network) == 1
    with pytest.raises(ArgumentError, match=r"cannot be run on an example batch.*user code"):
        find_output_layer(network, x)
    assert hook_count(network) == 1
    assert network.training


def test_bad_layers_and_features():
    x = rows(4, 3)
    with pytest.raises(ArgumentError, match="no layer named 'nothing'"):
        features_and_output(Residual(), x, "nothing")
    unused = Residual()
    unused.spare = nn.Linear(2, 2)
    with pytest.raises(ArgumentError, match="'spare' was not run"):
        features_and_output(unused, x, "spare")

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.unsqueeze(-1)).squeeze(-1)

    with pytest.raises(ArgumentError, match="must be one row of features"):
        features_and_output(Tokens(), x, "linear")
    with pytest.raises(ArgumentError, match="does not end"):
        find_output_layer(Tokens(), x)
    with pytest.raises(ArgumentError, match="has no size yet"):
        find_output_layer(nn.Sequential(nn.LazyLinear(2)), x)
    with pytest.raises(ArgumentError, match="at least one row"):
        find_output_layer(Residual(), x[:0])


def test_bad_input_rows():
    network = MLP(hidden=(4,)).build(3, 1)
    for bad in (rows(4, 2), rows(4, 3, 1), rows(3)):
        with pytest.raises(ArgumentError, match=r"\(rows, 3\)"):
            network(bad)
    with pytest.raises(ArgumentError, match="shape \\(4, 5\\)"):
        find_output_layer(nn.Linear(3, 1), rows(4, 5))


def test_reading_inside_another_network_and_recursively():
    inner = MLP(hidden=(4,)).build(3, 1)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.out = inner, nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(features_and_output(self.inner, x, "layers.2")[0])

    outer, x = Outer(), rows(5, 3)
    features, _ = features_and_output(outer, x, find_output_layer(outer, x))
    assert torch.equal(features, inner.layers[:2](x))
    assert hook_count(outer) == 0


def test_two_threads_on_two_networks():
    results: dict[int, bool] = {}

    def work(seed: int) -> None:
        network, x = MLP(hidden=(4,)).build(3, 1, seed=seed), rows(5, 3, seed=seed)
        expected = network.layers[:2](x)
        results[seed] = all(
            torch.equal(features_and_output(network, x, "layers.2")[0], expected) for _ in range(50)
        )

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {0: True, 1: True}


class Reader(nn.Module):
    def __init__(self, network: nn.Module, layer: str) -> None:
        super().__init__()
        self.network, self.layer = network, layer

    def forward(self, x: Tensor) -> Tensor:
        features, output = features_and_output(self.network, x, self.layer)
        return features.square().mean() + output.square().mean()


@pytest.mark.parametrize("make", [lambda: MLP(hidden=(4,)).build(3, 1), Residual])
def test_torch_func_and_make_fx(make):
    network, x = make().eval(), rows(5, 3)
    reader = Reader(network, find_output_layer(network, x))
    parameters = dict(reader.named_parameters())
    reader(x).backward()
    expected = {name: p.grad.clone() for name, p in parameters.items()}
    values = {name: p.detach().clone() for name, p in parameters.items()}

    def loss(values: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(reader, values, (x,))

    direct = torch.func.grad(loss)(values, x)
    traced = make_fx(torch.func.grad(loss))(values, rows(5, 3, seed=1))(values, x)
    for name in expected:
        torch.testing.assert_close(direct[name], expected[name])
        torch.testing.assert_close(traced[name], expected[name])
    per_row = torch.vmap(lambda row: loss(values, row.unsqueeze(0)))(x)
    torch.testing.assert_close(per_row, torch.stack([loss(values, row.unsqueeze(0)) for row in x]))
    assert hook_count(reader) == 0


def test_batch_norm_statistics_move_once_per_training_step():
    network = CNN(channels=(2,), hidden=(3,)).build((6, 6), 1)
    norm = next(m for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    x = rows(8, 6, 6)
    layer = find_output_layer(network, x)
    assert norm.num_batches_tracked == 0
    features_and_output(network, x, layer)
    assert norm.num_batches_tracked == 1
    conv = network.layers[0](x.unsqueeze(1))
    torch.testing.assert_close(norm.running_mean, 0.1 * conv.mean((0, 2, 3)).detach())
    reader = Reader(network, layer)
    values = list(reader.parameters())
    names = [name for name, _ in reader.named_parameters()]

    def step(x: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        loss = torch.func.functional_call(reader, dict(zip(names, values, strict=True)), (x,))
        return torch.autograd.grad(loss, values)

    traced = make_fx(step)(x, *values)
    assert norm.num_batches_tracked == 2
    traced(x, *values)
    assert norm.num_batches_tracked == 3
    torch.testing.assert_close(norm.running_mean, (1 - 0.9**3) * conv.mean((0, 2, 3)).detach())
    network.eval()
    before = norm.running_mean.clone()
    features_and_output(network, x, layer)
    assert norm.num_batches_tracked == 3
    assert torch.equal(norm.running_mean, before)


@pytest.mark.parametrize(("make", "shape"), [(MLP, 3), (CNN, (8, 8))])
def test_same_seed_same_weights(make, shape):
    state = torch.get_rng_state()
    first, again, other = (make().build(shape, 1, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_reinitialise():
    network = Residual()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    draws = []
    for seed in (1, 2, 1):
        assert networks.reinitialise(network, seed) == []
        draws.append([p.detach().clone() for p in network.parameters()])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(draws[0], draws[2], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(draws[0], draws[1], strict=True))
    with pytest.raises(ArgumentError, match="seed"):
        networks.reinitialise(network, -1)


def test_reinitialise_resets_statistics_and_lets_the_network_have_the_last_word():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.out = nn.BatchNorm1d(3), nn.Linear(3, 1)

        def reset_parameters(self) -> None:
            nn.init.constant_(self.out.weight, 7.0)

    network = Own()
    network.norm(rows(4, 3) + 3)
    networks.reinitialise(network, 0)
    assert torch.equal(network.out.weight, torch.full((1, 3), 7.0))
    assert torch.equal(network.norm.running_mean, torch.zeros(3))


def test_reinitialise_names_what_it_could_not_redraw():
    network = nn.Module()
    network.scale = nn.Parameter(torch.ones(2))
    network.attention = nn.MultiheadAttention(4, 2)
    nn.init.zeros_(network.attention.in_proj_weight)
    assert networks.reinitialise(network, 0) == ["scale"]
    assert network.attention.in_proj_weight.any()


def test_copy_shares_nothing():
    network = Residual()
    twin = networks.copy_network(network)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    assert all(bool(p.any()) for p in network.parameters())

    network.extra = threading.Lock()
    with pytest.raises(ArgumentError, match="cannot be copied"):
        networks.copy_network(network)


def test_build_once():
    network = MLP(hidden=(4,))
    assert not network.is_built
    for call in (lambda: network(rows(2, 3)), network.reset_parameters):
        with pytest.raises(ArgumentError, match="build"):
            call()
    network.build(3, 1)
    assert network.is_built
    weight = network.layers[0].weight
    assert network.build(3, 1).layers[0].weight is weight
    with pytest.raises(ArgumentError, match="cannot be built again"):
        network.build(3, 2)
    with pytest.raises(ArgumentError, match="too small"):
        CNN().build((3, 9), 1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: MLP(hidden=(0,)),
        lambda: MLP(hidden=(2.5,)),
        lambda: MLP(hidden=16),
        lambda: MLP(hidden=(True,)),
        lambda: MLP(activation="sine"),
        lambda: MLP(dropout=1.0),
        lambda: MLP(dropout=float("nan")),
        lambda: CNN(channels=()),
        lambda: CNN(kernel_size=4),
        lambda: CNN(batch_norm=1),
        lambda: CNN(pooling="max"),
        lambda: CNN().build((3,), 1),
        lambda: MLP().build(0, 1),
        lambda: MLP().build(3, 1, seed=1.5),
    ],
)
def test_bad_settings(make):
    with pytest.raises(ArgumentError):
        make()


@pytest.mark.parametrize(
    "network",
    [
        MLP(hidden=(np.int64(3),), activation="gelu", dropout=0.25),
        MLP(hidden=()).build(4, 2),
        CNN(channels=(2,), hidden=(), kernel_size=5, batch_norm=False, pooling="global").build((8, 8), 3),
    ],
)
def test_config_round_trip(network):
    config = json.loads(json.dumps(network.config()))
    twin = networks.from_config(config)
    assert type(twin) is type(network)
    assert twin.config() == config
    if network.is_built:
        twin.load_state_dict(network.state_dict())


@pytest.mark.parametrize(
    "config",
    [
        {},
        "MLP",
        {"class": "Linear"},
        {"class": ["MLP"]},
        {"class": "MLP", "layers": 3},
        {"class": "MLP", "built": 3},
        {"class": "MLP", "built": [[3, 3], 1]},
        {"class": "CNN", "built": [[3], 1]},
    ],
)
def test_bad_configs(config):
    with pytest.raises(ArgumentError):
        networks.from_config(config)


def test_count_parameters():
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    assert networks.count_parameters(network) == 16 + 20 + 8
    network[0].requires_grad_(False)
    assert networks.count_parameters(network) == 28
    assert networks.count_parameters(nn.Sequential(network[1], network[1])) == 20
