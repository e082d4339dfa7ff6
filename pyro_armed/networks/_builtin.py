"""``MLP`` and ``CNN``, which learn their input and output sizes from the data."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from pyro_armed.errors import ArgumentError
from pyro_armed.networks._common import sizes_of, whole
from pyro_armed.seeds import seeded

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


def activation_name(name: Any) -> str:
    """The name of an activation, checked.

    Parameters
    ----------
    name : str
        One of those that networks know.

    Returns
    -------
    str

    Raises
    ------
    ArgumentError
        For any other.
    """
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ArgumentError(f"activation must be one of {', '.join(ACTIVATIONS)}, not {name!r}.")
    return name


def dropout_share(value: Any) -> float:
    """A probability of dropout, checked.

    Parameters
    ----------
    value : float
        At least 0, less than 1.

    Returns
    -------
    float

    Raises
    ------
    ArgumentError
        For anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < 1.0:
        raise ArgumentError(f"dropout must be a probability in [0, 1), not {value!r}.")
    return float(value)


def dense_layers(sizes: Sequence[int], activation: str, dropout: float) -> list[nn.Module]:
    """Hidden layers from ``sizes[0]`` inputs through ``sizes[1:]`` units."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), ACTIVATIONS[activation]()]
        if dropout > 0.0:
            layers.append(nn.Dropout(dropout))
    return layers


def image_shape(shape: Any, blocks: int) -> tuple[int, int, int]:
    """Channels, height and width of images that are halved by each of some blocks."""
    sizes = sizes_of(shape, "input_shape")
    if len(sizes) not in (2, 3):
        raise ArgumentError(f"input_shape must be (channels, height, width) or (height, width), not {sizes}.")
    channels, height, width = (1, *sizes) if len(sizes) == 2 else sizes
    if min(height, width) < 2**blocks:
        raise ArgumentError(
            f"images of {height} x {width} are too small for {blocks} convolution blocks, each of which "
            "halves them; give channels fewer entries."
        )
    return channels, height, width


class BuiltIn(nn.Module):
    """A network whose layers are created by ``build``, once the data's shape is known."""

    # Constructor arguments, in the order in which `config` writes them.
    _settings: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        super().__init__()
        self.layers: nn.Sequential | None = None
        self._built: tuple[tuple[int, ...], int] | None = None

    @property
    def is_built(self) -> bool:
        """Whether the layers exist."""
        return self._built is not None

    def _make(self, shape: tuple[int, ...], out_features: int) -> nn.Sequential:
        raise NotImplementedError

    def build_for(self, row_shape: Sequence[int], out_features: int, *, seed: int = 0) -> Self:
        """Create the layers for rows of a shape; see ``build``."""
        raise NotImplementedError

    def _build(self, shape: tuple[int, ...], out_features: int, seed: int) -> Self:
        wanted = (shape, out_features)
        if self._built is not None and self._built != wanted:
            raise ArgumentError(
                f"this {type(self).__name__} was built for inputs of size {self._built[0]} and "
                f"{self._built[1]} output(s), and cannot be built again for {shape} and {out_features}; "
                f"make a new {type(self).__name__} for each model."
            )
        if self._built is None:
            with seeded(seed):
                self.layers = self._make(shape, out_features)
            self._built = wanted
        return self

    def _ready(self) -> nn.Sequential:
        if self.layers is None:
            raise ArgumentError(
                f"this {type(self).__name__} has no layers yet; call its build method with the input and "
                "output sizes first."
            )
        return self.layers

    def reset_parameters(self) -> None:
        """Redraw all weights from torch's current random state.

        Raises
        ------
        ArgumentError
            If the network has not been built.
        """
        for module in self._ready().modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()

    def config(self) -> dict[str, Any]:
        """Return the settings as a dict that JSON can hold, for `from_config`."""
        settings: dict[str, Any] = {"class": type(self).__name__}
        for name in self._settings:
            value = getattr(self, name)
            settings[name] = list(value) if isinstance(value, tuple) else value
        if self._built is not None:
            settings["built"] = [list(self._built[0]), self._built[1]]
        return settings


class MLP(BuiltIn):
    """Multilayer perceptron: dense hidden layers and a linear output layer.

    Parameters
    ----------
    hidden
        Units of each hidden layer; ``()`` gives a linear model.
    activation
        Name of the activation function, such as ``"relu"`` or ``"tanh"``.
    dropout
        Dropout probability after each hidden layer.

    Raises
    ------
    ArgumentError
        If a setting cannot be used.

    Examples
    --------
    >>> import torch
    >>> network = MLP(hidden=(8,), activation="tanh").build(3, 1)
    >>> network(torch.zeros(5, 3)).shape
    torch.Size([5, 1])
    """

    _settings = ("hidden", "activation", "dropout")

    def __init__(
        self, hidden: Sequence[int] = (16, 16), activation: str = "relu", dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.hidden = sizes_of(hidden, "hidden")
        self.activation = activation_name(activation)
        self.dropout = dropout_share(dropout)

    def build(self, in_features: int, out_features: int, *, seed: int = 0) -> Self:
        """Create the layers; a second call with the same sizes changes nothing.

        Parameters
        ----------
        in_features, out_features
            Columns of the input (B, in_features) and of the output (B, out_features).
        seed
            Seed of the first weights; torch's global random state is left as it was.

        Raises
        ------
        ArgumentError
            If a size cannot be used, or the network was built with other sizes.
        """
        return self._build((whole(in_features, "in_features"),), whole(out_features, "out_features"), seed)

    def build_for(self, row_shape: Sequence[int], out_features: int, *, seed: int = 0) -> Self:
        """`build` for rows of shape (in_features,)."""
        if len(row_shape) != 1:
            raise ArgumentError(f"an MLP takes rows of one dimension, not of shape {tuple(row_shape)}.")
        return self.build(row_shape[0], out_features, seed=seed)

    def _make(self, shape: tuple[int, ...], out_features: int) -> nn.Sequential:
        sizes = (*shape, *self.hidden)
        return nn.Sequential(
            *dense_layers(sizes, self.activation, self.dropout), nn.Linear(sizes[-1], out_features)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, in_features) to (B, out_features); `ArgumentError` for another shape."""
        layers = self._ready()
        if self._built is not None and (x.ndim != 2 or x.shape[1] != self._built[0][0]):
            raise ArgumentError(
                f"the MLP takes inputs of shape (rows, {self._built[0][0]}), but got {tuple(x.shape)}."
            )
        return layers(x)


class CNN(BuiltIn):
    """Convolutional network for images.

    Each block is convolution (size kept), batch normalisation, activation and max-pooling by 2; then the
    flattened or averaged maps go through dense hidden layers to a linear output layer. With
    ``RandomEffects(group, slopes="features")``, a group-specific intercept and slopes on the last dense
    layer, and an adversary it is the ARMED-CNN of Nguyen, Treacher, Montillo (TPAMI 45(7), 2023).

    Parameters
    ----------
    channels
        Channels of each convolution block.
    hidden
        Units of each dense hidden layer.
    kernel_size
        Side of the convolution kernels, an odd number.
    activation
        Name of the activation function.
    batch_norm
        Whether the blocks normalise over the batch.
    pooling
        ``"flatten"`` keeps each position of the last maps, ``"global"`` averages over positions.
    dropout
        Dropout probability after each dense hidden layer.

    Attributes
    ----------
    conv_layers : tuple of str
        Names of the convolutions, on which `pyro_armed.effects.ScaleBias` can stand.
    block_layers : tuple of str
        Names of the last layer of each block, whose output is that of the block.

    Raises
    ------
    ArgumentError
        If a setting cannot be used.

    Examples
    --------
    >>> import torch
    >>> network = CNN(channels=(4,), hidden=(8,)).build((12, 12), 1)
    >>> network(torch.zeros(5, 12, 12)).shape
    torch.Size([5, 1])
    >>> network.conv_layers, network.block_layers
    (('layers.0',), ('layers.3',))
    """

    _settings = ("channels", "hidden", "kernel_size", "activation", "batch_norm", "pooling", "dropout")

    def __init__(
        self,
        channels: Sequence[int] = (16, 32),
        hidden: Sequence[int] = (32,),
        kernel_size: int = 3,
        activation: str = "relu",
        batch_norm: bool = True,
        pooling: str = "flatten",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.channels = sizes_of(channels, "channels")
        if not self.channels:
            raise ArgumentError("channels needs at least one convolution block; use MLP for none.")
        self.hidden = sizes_of(hidden, "hidden")
        self.kernel_size = whole(kernel_size, "kernel_size")
        if self.kernel_size % 2 == 0:
            raise ArgumentError(f"kernel_size must be odd, to keep the images' size, not {kernel_size}.")
        self.activation = activation_name(activation)
        if not isinstance(batch_norm, bool):
            raise ArgumentError(f"batch_norm must be True or False, not {batch_norm!r}.")
        self.batch_norm = batch_norm
        if pooling not in ("flatten", "global"):
            raise ArgumentError(f"pooling must be 'flatten' or 'global', not {pooling!r}.")
        self.pooling = pooling
        self.dropout = dropout_share(dropout)

    @property
    def conv_layers(self) -> tuple[str, ...]:
        """Names of the convolutions; known before the layers are."""
        width = 3 + self.batch_norm
        return tuple(f"layers.{width * block}" for block in range(len(self.channels)))

    @property
    def block_layers(self) -> tuple[str, ...]:
        """Names of the poolings that end the blocks."""
        width = 3 + self.batch_norm
        return tuple(f"layers.{width * block + width - 1}" for block in range(len(self.channels)))

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
            Columns of the output (B, out_features).
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

    def _make(self, shape: tuple[int, ...], out_features: int) -> nn.Sequential:
        before, height, width = shape
        layers: list[nn.Module] = []
        for after in self.channels:
            layers.append(
                nn.Conv2d(
                    before, after, self.kernel_size, padding=self.kernel_size // 2, bias=not self.batch_norm
                )
            )
            if self.batch_norm:
                layers.append(nn.BatchNorm2d(after))
            layers += [ACTIVATIONS[self.activation](), nn.MaxPool2d(2)]
            before, height, width = after, height // 2, width // 2
        if self.pooling == "global":
            layers.append(nn.AdaptiveAvgPool2d(1))
            height = width = 1
        sizes = (before * height * width, *self.hidden)
        layers += [nn.Flatten(), *dense_layers(sizes, self.activation, self.dropout)]
        return nn.Sequential(*layers, nn.Linear(sizes[-1], out_features))

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, channels, H, W) or (B, H, W) to (B, out_features); `ArgumentError` otherwise."""
        layers = self._ready()
        images = x.unsqueeze(1) if x.ndim == 3 else x
        if self._built is not None and tuple(images.shape[1:]) != self._built[0]:
            raise ArgumentError(
                f"the CNN takes images of shape {self._built[0]} (channels, height, width), but got a batch "
                f"of shape {tuple(x.shape)}."
            )
        return layers(images)
