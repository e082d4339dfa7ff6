"""Images with the channels last in memory: the same numbers, gradients and networks as without."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import pyro_armed as pa
from pyro_armed import networks
from pyro_armed.building import build_adversary
from pyro_armed.errors import ArgumentError
from pyro_armed.guides import MeanFieldGuide
from pyro_armed.local import local_parameters
from pyro_armed.networks._instance_norm import normalised_images
from pyro_armed.networks._layout import laid_out
from pyro_armed.objective import Objective
from pyro_armed.seeds import seeded


def rows_of(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Viewing(nn.Module):
    """A network as it is often written, which cannot have another layout."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 3, 3, padding=1), nn.Linear(3 * 36, 1)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).view(len(x), -1))


class OnlyInTraining(Viewing):
    def forward(self, x):
        h = torch.relu(self.conv(x))
        return self.head(h.view(len(x), -1) if self.training else h.flatten(1))


def test_which_networks_may_have_it():
    cnn = networks.CNN(channels=(4, 6), hidden=(5,)).build((12, 12), 1).train()
    state = {name: value.clone() for name, value in cnn.state_dict().items()}
    assert networks.image_layers(cnn, rows_of(4, 12, 12)) == cnn.conv_layers
    assert cnn.training
    assert all(torch.equal(state[name], value) for name, value in cnn.state_dict().items())
    assert all(not layer._forward_pre_hooks for layer in cnn.modules())
    for network in (Viewing(), OnlyInTraining(), nn.Linear(3, 1)):
        assert networks.image_layers(network, rows_of(4, 1, 6, 6)) == ()
    assert networks.image_layers(cnn, None) == ()


@pytest.mark.parametrize("channels", [1, 3])
def test_layers_keep_the_layout_and_the_values(channels):
    network = networks.CNN(channels=(4, 6), hidden=(5,)).build((channels, 32, 32), 1).eval()
    x = rows_of(20, channels, 32, 32)
    with networks.layer_outputs(network, network.block_layers) as seen:
        plain, before = network(x), dict(seen)
        with networks.channels_last(network, network.conv_layers):
            other = network(x)
    for name in network.block_layers:
        assert seen[name].stride()[1] == 1
        assert before[name].is_contiguous()
    torch.testing.assert_close(other, plain)
    assert all(not layer._forward_pre_hooks for layer in network.modules())


def test_small_batches_are_left_alone():
    network = networks.CNN(channels=(4,), hidden=(5,)).build((8, 8), 1)
    names = ["layers.0"]
    with networks.layer_outputs(network, names) as seen, networks.channels_last(network, names):
        network(rows_of(8, 8, 8))
    assert seen["layers.0"].is_contiguous()


@pytest.mark.parametrize(("device", "last"), [("cpu", True), ("meta", False)])
def test_processors_alone_have_it(device, last):
    network = nn.Sequential(nn.Conv2d(3, 2, 3)).to(device)
    strides = []
    with networks.channels_last(network, ["0"]):
        handle = network[0].register_forward_pre_hook(lambda layer, args: strides.append(args[0].stride()[1]))
        network(rows_of(20, 3, 32, 32).to(device))
        handle.remove()
    assert (strides == [1]) is last


# --- instance normalisation --------------------------------------------------------------------------------


def normalised_by_hand(h, scale, bias):
    axes = tuple(range(2, h.dim()))
    mean, variance = h.mean(axes, keepdim=True), h.var(axes, unbiased=False, keepdim=True)
    ones = (...,) + (None,) * (h.dim() - 2)
    return (h - mean) / (variance + 1e-5).sqrt() * scale[ones] + bias[ones]


@pytest.mark.parametrize("last", [False, True])
def test_instance_normalisation_and_its_gradient(last):
    h = 2.0 + 3.0 * rows_of(3, 4, 5, 6).double()
    h = (laid_out(h) if last else h).requires_grad_()
    scale, bias = (rows_of(3, 4, seed=seed).double().requires_grad_() for seed in (1, 2))
    weights = rows_of(3, 4, 5, 6, seed=3).double()
    found, expected = normalised_images(h, scale, bias), normalised_by_hand(h, scale, bias)
    assert (found.stride()[1] == 1) is last
    torch.testing.assert_close(found, expected)
    parts = [torch.autograd.grad((one * weights).sum(), (h, scale, bias)) for one in (found, expected)]
    for one, other in zip(*parts, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(normalised_images(h), functional.instance_norm(h))


def test_instance_normalisation_within_transforms_of_torch_func():
    h, scale, bias = laid_out(rows_of(3, 4, 5, 6)), rows_of(3, 4), rows_of(3, 4, seed=1)

    def total(function):
        return torch.func.grad(lambda h, s, b: (function(h, s, b) ** 3).sum(), (0, 1, 2))(h, scale, bias)

    for one, other in zip(total(normalised_images), total(normalised_by_hand), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


# --- a training step ---------------------------------------------------------------------------------------


def objective_of():
    x, site = rows_of(40, 32, 32).numpy(), [str(row % 3) for row in range(40)]
    network = networks.CNN(channels=(4, 6), hidden=(5,)).build((32, 32), 1)
    model = pa.ARMED.from_arrays(
        x,
        [row % 2 for row in range(40)],
        {"site": site},
        family="bernoulli",
        network=network,
        random_effects=[
            pa.RandomEffects("site", slopes="features"),
            pa.effects.ScaleBias(network.conv_layers, "site"),
        ],
        adversary=pa.Adversary(0.5, layers=network.block_layers),
    )
    module = model.module.train()
    guide = MeanFieldGuide(module, module.data, torch.Generator().manual_seed(0))
    return Objective(module, guide, build_adversary(model.adversary, module, module.data, 0))


def test_a_step_has_the_same_loss_gradients_and_statistics():
    found = []
    for last in (True, False):
        objective = objective_of()
        assert objective.module._images == ("layers.0", "layers.4")
        if not last:
            objective.module._images = ()
        parameters = [*objective.guide.parameters(), *objective.module.network.parameters()]
        with local_parameters(), seeded(0):
            total = objective(objective.module.data, 0.5).total
        gradients = torch.autograd.grad(total, parameters, materialize_grads=True)
        buffers = list(objective.module.network.buffers())
        found.append([total.detach(), *gradients, *(buffer.float() for buffer in buffers)])
    largest = max(float(tensor.abs().max()) for tensor in found[0])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * largest)


# --- outputs of layers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (3, 12)])
@pytest.mark.parametrize("last", [False, True])
def test_images_are_averaged_over_a_grid(size, last):
    images = rows_of(5, 2, *size)
    outputs = {"a": laid_out(images) if last else images, "b": rows_of(5, 3)}
    found = networks.flattened(outputs, ["a", "b"], 5, grid=4)
    grid = functional.adaptive_avg_pool2d(images, [min(4, side) for side in size])
    torch.testing.assert_close(found, torch.cat([grid.flatten(1), outputs["b"]], dim=1))
    whole = networks.flattened(outputs, ["a", "b"], 5)
    assert torch.equal(whole, torch.cat([images.flatten(1), outputs["b"]], dim=1))


@pytest.mark.parametrize(("grid", "width"), [(4, 64 + 96), (None, 4 * 256 + 6 * 64), (2, 16 + 24)])
def test_an_adversary_reads_images_on_its_grid(grid, width):
    network = networks.CNN(channels=(4, 6), hidden=(5,)).build((32, 32), 1)
    adversary = pa.Adversary(0.5, layers=network.block_layers, grid=grid)
    assert pa.Adversary.from_config(adversary.config()) == adversary
    model = pa.ARMED.from_arrays(
        rows_of(6, 32, 32).numpy(),
        [0, 1] * 3,
        {"site": list("aabbcc")},
        family="bernoulli",
        network=network,
        random_effects=[pa.RandomEffects("site")],
        adversary=adversary,
    )
    module = model.module
    head = build_adversary(adversary, module, module.data, 0)
    assert head.classifiers[0].features == width
    guide = MeanFieldGuide(module, module.data, torch.Generator().manual_seed(0))
    with local_parameters(), seeded(0):
        assert torch.isfinite(Objective(module, guide, head)(module.data, 0.5).total)


@pytest.mark.parametrize("grid", [0, 1.5, "4", True])
def test_grids_that_cannot_be_used(grid):
    with pytest.raises(ArgumentError, match="grid of the adversary"):
        pa.Adversary(0.5, grid=grid)


def test_outputs_of_rows_that_come_in_parts_are_joined():
    network = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    x = rows_of(7, 3)
    with networks.layer_outputs(network, ["0"], joined=True) as seen:
        network(x[:4]), network(x[4:])
    torch.testing.assert_close(seen["0"], network[0](x))
