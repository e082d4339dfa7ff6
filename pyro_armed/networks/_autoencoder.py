"""``AutoencoderClassifier``: an image, what is left of it in a few numbers, and what these say."""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Self

from torch import Tensor, nn

from pyro_armed.errors import ArgumentError
from pyro_armed.networks._builtin import (
    ACTIVATIONS,
    BuiltIn,
    activation_name,
    dense_layers,
    dropout_share,
    image_shape,
)
from pyro_armed.networks._common import sizes_of, whole


class AutoencoderClassifier(BuiltIn):
    """Convolutional autoencoder with a classifier on its latent values.

    Returns a pair: the predictor, read from the latent values, and the reconstruction of the image. With
    `pyro_armed.effects.ScaleBias` on ``conv_layers`` it is the ARMED autoencoder-classifier: with a group's
    effects it reconstructs and predicts for that group, with effects of zero it is the fixed-effects
    part, whose own loss `ARMED` adds with ``fixed_effects_weight=``.

    Parameters
    ----------
    channels
        Channels of each block of the encoder; the decoder has the same in reverse.
    latent
        Number of latent values.
    hidden
        Units of dense layers between the latent values and the predictor; with none the latent values are
        the model's ``features``.
    kernel_size
        Side of the convolution kernels, an odd number.
    activation
        Name of the activation function.
    batch_norm
        Whether the blocks normalise over the batch.
    dropout
        Dropout probability after each dense hidden layer.

    Attributes
    ----------
    conv_layers : tuple of str
        Names of the convolutions of encoder and decoder, but for the last.
    last_conv : str
        Name of the convolution that gives the reconstruction. Group effects on it, with ``normalize=False``,
        are the group's contrast and brightness.

    Raises
    ------
    ArgumentError
        If a setting cannot be used.

    Notes
    -----
    In Nguyen, Treacher, Montillo (TPAMI 45(7), 2023) the part with random effects is a second autoencoder
    with weights of its own. Here both parts share their weights, as in any mixed model a group's regression
    is the population's plus the group's deviations.

    Examples
    --------
    >>> import torch
    >>> network = AutoencoderClassifier(channels=(4, 8), latent=5).build((12, 12), 1)
    >>> output, reconstruction = network(torch.zeros(3, 12, 12))
    >>> output.shape, reconstruction.shape
    (torch.Size([3, 1]), torch.Size([3, 12, 12]))
    >>> network.conv_layers
    ('layers.encoder.0', 'layers.encoder.4', 'layers.decoder.4', 'layers.decoder.8')
    """

    _settings = ("channels", "latent", "hidden", "kernel_size", "activation", "batch_norm", "dropout")

    def __init__(
        self,
        channels: Sequence[int] = (16, 32),
        latent: int = 16,
        hidden: Sequence[int] = (),
        kernel_size: int = 3,
        activation: str = "relu",
        batch_norm: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.channels = sizes_of(channels, "channels")
        if not self.channels:
            raise ArgumentError("channels needs at least one convolution block; use MLP for none.")
        self.latent = whole(latent, "latent")
        self.hidden = sizes_of(hidden, "hidden")
        self.kernel_size = whole(kernel_size, "kernel_size")
        if self.kernel_size % 2 == 0:
            raise ArgumentError(f"kernel_size must be odd, to keep the images' size, not {kernel_size}.")
        self.activation = activation_name(activation)
        if not isinstance(batch_norm, bool):
            raise ArgumentError(f"batch_norm must be True or False, not {batch_norm!r}.")
        self.batch_norm = batch_norm
        self.dropout = dropout_share(dropout)

    @property
    def conv_layers(self) -> tuple[str, ...]:
        """Names of all convolutions but the last; known before the layers are."""
        width, blocks = 3 + self.batch_norm, len(self.channels)
        encoder = [f"layers.encoder.{width * block}" for block in range(blocks)]
        return (*encoder, *(f"layers.decoder.{4 + width * block}" for block in range(blocks)))

    @property
    def last_conv(self) -> str:
        """Name of the convolution that gives the reconstruction."""
        return f"layers.decoder.{3 + (3 + self.batch_norm) * len(self.channels)}"

    def build_for(self, row_shape: Sequence[int], out_features: int, *, seed: int = 0) -> Self:
        """`build` for images of a shape."""
        return self.build(row_shape, out_features, seed=seed)

    def build(self, input_shape: Sequence[int], out_features: int, *, seed: int = 0) -> Self:
        """Create the layers; a second call with the same sizes changes nothing.

        Parameters
        ----------
        input_shape
            Shape of one image, (channels, height, width) or (height, width).
        out_features
            Columns of the predictor (B, out_features).
        seed
            Seed of the first weights; torch's global random state is left as it was.

        Raises
        ------
        ArgumentError
            If a size cannot be used, the image is too small for the number of blocks, or the network was
            built with other sizes.
        """
        shape = image_shape(input_shape, len(self.channels))
        return self._build(shape, whole(out_features, "out_features"), seed)

    def _convolution(self, before: int, after: int) -> list[nn.Module]:
        conv = nn.Conv2d(
            before, after, self.kernel_size, padding=self.kernel_size // 2, bias=not self.batch_norm
        )
        norm = [nn.BatchNorm2d(after)] if self.batch_norm else []
        return [conv, *norm, ACTIVATIONS[self.activation]()]

    def _make(self, shape: tuple[int, ...], out_features: int) -> nn.Sequential:
        sizes = [shape]
        for after in self.channels:
            sizes.append((after, sizes[-1][1] // 2, sizes[-1][2] // 2))
        deepest = sizes[-1]
        flat = deepest[0] * deepest[1] * deepest[2]
        encoder: list[nn.Module] = []
        decoder: list[nn.Module] = [
            nn.Linear(self.latent, flat),
            ACTIVATIONS[self.activation](),
            nn.Unflatten(1, deepest),
        ]
        for (before, *_), (after, *_) in pairwise(sizes):
            encoder += [*self._convolution(before, after), nn.MaxPool2d(2)]
        # Back up through the encoder's sizes; at full size as many channels as its first block has.
        widths = [*self.channels[-2::-1], self.channels[0]]
        for (before, *_), after, (_, *size) in zip(sizes[:0:-1], widths, sizes[-2::-1], strict=True):
            decoder += [nn.Upsample(tuple(size)), *self._convolution(before, after)]
        last = nn.Conv2d(widths[-1], shape[0], self.kernel_size, padding=self.kernel_size // 2)
        units = (self.latent, *self.hidden)
        dense = dense_layers(units, self.activation, self.dropout)
        parts: OrderedDict[str, nn.Module] = OrderedDict(
            encoder=nn.Sequential(*encoder, nn.Flatten(), nn.Linear(flat, self.latent)),
            decoder=nn.Sequential(*decoder, last),
            classifier=nn.Sequential(*dense, nn.Linear(units[-1], out_features)),
        )
        return nn.Sequential(parts)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Predictor (B, out_features) and reconstruction of images (B, channels, H, W) or (B, H, W).

        Raises
        ------
        ArgumentError
            For another shape.
        """
        parts = self._ready()
        images = x.unsqueeze(1) if x.ndim == 3 else x
        if self._built is not None and tuple(images.shape[1:]) != self._built[0]:
            raise ArgumentError(
                f"the AutoencoderClassifier takes images of shape {self._built[0]} (channels, height, "
                f"width), but got a batch of shape {tuple(x.shape)}."
            )
        latent = parts.get_submodule("encoder")(images)
        rebuilt = parts.get_submodule("decoder")(latent)
        return parts.get_submodule("classifier")(latent), rebuilt.reshape(x.shape)
