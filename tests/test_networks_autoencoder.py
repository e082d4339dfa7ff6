"""The autoencoder-classifier's sizes, names and settings."""

import pytest
import torch
from torch import nn

import pyro_armed as pa
from pyro_armed.errors import ArgumentError
from pyro_armed.networks import AutoencoderClassifier, from_config


@pytest.mark.parametrize("shape", [(12, 12), (1, 12, 12), (3, 13, 17)])
@pytest.mark.parametrize(
    "options", [{}, {"batch_norm": False, "channels": (4,)}, {"hidden": (6,), "dropout": 0.1}]
)
def test_shapes_and_names(shape, options):
    network = AutoencoderClassifier(latent=5, **options).build(shape, 2, seed=1)
    x = torch.randn(4, *shape)
    output, rebuilt = network(x)
    assert output.shape == (4, 2)
    assert rebuilt.shape == x.shape
    convolutions = [n for n, part in network.named_modules() if isinstance(part, nn.Conv2d)]
    assert [*network.conv_layers, network.last_conv] == convolutions
    again = from_config(network.config())
    again.load_state_dict(network.state_dict())
    assert torch.equal(again.eval()(x)[1], network.eval()(x)[1])


def test_latent_values_are_the_features_and_carry_the_reconstruction():
    network = AutoencoderClassifier(channels=(4,), latent=3).build((8, 8), 1)
    layer = pa.networks.find_output_layer(network, torch.zeros(2, 8, 8))
    assert layer == "layers.classifier.0"
    x = torch.randn(5, 8, 8)
    passed = pa.networks.run_network(network.eval(), x, layer)
    assert torch.allclose(network.layers.encoder(x.unsqueeze(1)), passed.features)
    assert torch.allclose(network.layers.decoder(passed.features)[:, 0], passed.reconstruction)


def test_names_of_the_cnn():
    for batch_norm in (True, False):
        network = pa.networks.CNN(channels=(2, 3), hidden=(4,), batch_norm=batch_norm).build((8, 8), 1)
        named = dict(network.named_modules())
        assert [n for n, part in named.items() if isinstance(part, nn.Conv2d)] == list(network.conv_layers)
        assert all(isinstance(named[name], nn.MaxPool2d) for name in network.block_layers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": ()}, "channels needs at least one convolution block"),
        ({"kernel_size": 4}, "kernel_size must be odd"),
        ({"latent": 0}, "latent"),
        ({"batch_norm": 1}, "batch_norm must be True or False"),
        ({"activation": "step"}, "activation must be one of"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ArgumentError, match=message):
        AutoencoderClassifier(**options)


def test_bad_images():
    with pytest.raises(ArgumentError, match="too small for 3 convolution blocks"):
        AutoencoderClassifier(channels=(2, 2, 2)).build((6, 6), 1)
    network = AutoencoderClassifier(channels=(2,)).build((6, 6), 1)
    with pytest.raises(ArgumentError, match="takes images of shape"):
        network(torch.zeros(2, 7, 7))


def test_other_pairs_are_no_reconstructions():
    class Pair(nn.Linear):
        def forward(self, x):
            return super().forward(x), x.sum()

    with pytest.raises(ArgumentError, match="must return one tensor, but returned a tuple"):
        pa.networks.network_output(Pair(3, 1), torch.zeros(4, 3))
