"""``MLP`` and ``CNN``, which learn their input and output sizes from the data."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from pyro_armed.errors import ArgumentError
from pyro_armed.networks._common import sizes_of, whole
from pyro_armed.seeds import seeded

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


def _activation(name: Any) -> str:
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise ArgumentError(f"activation must be one of {', '.join(_ACTIVATIONS)}, not {name!r}.")
    return name


def _dropout(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < 1.0:
        raise ArgumentError(f"dropout must be a probability in [0, 1), not {value!r}.")
    return float(value)


def _dense(sizes: Sequence[int], activation: str, dropout: float) -> list[nn.Module]:
    """Hidden layers from ``sizes[0]`` inputs through ``sizes[1:]`` units."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), _ACTIVATIONS[activation]()]
        if dropout > 0.0:
            layers.append(nn.Dropout(dropout))
    return layers


class _SizedLater(nn.Module):
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


class MLP(_SizedLater):
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
        self.activation = _activation(activation)
        self.dropout = _dropout(dropout)

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

    def _make(self, shape: tuple[int, ...], out_features: int) -> nn.Sequential:
        sizes = (*shape, *self.hidden)
        return nn.Sequential(
            *_dense(sizes, self.activation, self.dropout), nn.Linear(sizes[-1], out_features)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, in_features) to (B, out_features); `ArgumentError` for another shape."""
        layers = self._ready()
        if self._built is not None and (x.ndim != 2 or x.shape[1] != self._built[0][0]):
            raise ArgumentError(
                f"the MLP takes inputs of shape (rows, {self._built[0][0]}), but got {tuple(x.shape)}."
            )
        return layers(x)


class CNN(_SizedLater):
    """Convolutional network for images.

    Each block is convolution (size kept), batch normalisation, activation and max-pooling by 2; then the
    flattened or averaged maps go through dense hidden layers to a linear output layer.

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
        self.activation = _activation(activation)
        if not isinstance(batch_norm, bool):
            raise ArgumentError(f"batch_norm must be True or False, not {batch_norm!r}.")
        self.batch_norm = batch_norm
        if pooling not in ("flatten", "global"):
            raise ArgumentError(f"pooling must be 'flatten' or 'global', not {pooling!r}.")
        self.pooling = pooling
        self.dropout = _dropout(dropout)

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
        shape = sizes_of(input_shape, "input_shape")
        if len(shape) not in (2, 3):
            raise ArgumentError(
                f"input_shape must be (channels, height, width) or (height, width), not {shape}."
            )
        shape = (1, *shape) if len(shape) == 2 else shape
        if min(shape[1:]) < 2 ** len(self.channels):
            raise ArgumentError(
                f"images of {shape[1]} x {shape[2]} are too small for {len(self.channels)} convolution "
                "blocks, each of which halves them; give channels fewer entries."
            )
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
            layers += [_ACTIVATIONS[self.activation](), nn.MaxPool2d(2)]
            before, height, width = after, height // 2, width // 2
        if self.pooling == "global":
            layers.append(nn.AdaptiveAvgPool2d(1))
            height = width = 1
        sizes = (before * height * width, *self.hidden)
        layers += [nn.Flatten(), *_dense(sizes, self.activation, self.dropout)]
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


# Names that a file may ask for: loading must not be able to reach any other class.
_CLASSES: dict[str, type[_SizedLater]] = {"CNN": CNN, "MLP": MLP}


def from_config(config: Mapping[str, Any]) -> MLP | CNN:
    """Make a network from what its ``config()`` returned; weights are not part of it.

    Raises
    ------
    ArgumentError
        If the class is not one of this module's, or a setting is unknown or cannot be used.

    Examples
    --------
    >>> from_config(MLP(hidden=(4,)).build(2, 1).config()).config()["built"]
    [[2], 1]
    """
    if not isinstance(config, Mapping):
        raise ArgumentError("a network's config must be a dict, as its config() returns.")
    settings = dict(config)
    name, built = settings.pop("class", None), settings.pop("built", None)
    if not isinstance(name, str) or name not in _CLASSES:
        raise ArgumentError(
            f"{name!r} is not a network that can be made from a config; known are {', '.join(_CLASSES)}."
        )
    cls = _CLASSES[name]
    unknown = sorted(str(key) for key in settings if key not in cls._settings)
    if unknown:
        raise ArgumentError(f"{name} has no setting(s) {', '.join(unknown)}.")
    network: Any = cls(**settings)
    if built is not None:
        if not isinstance(built, Sequence) or isinstance(built, str) or len(built) != 2:
            raise ArgumentError("'built' in a network's config must be [input shape, outputs].")
        shape = sizes_of(built[0], "input shape in 'built'")
        if name == "MLP" and len(shape) != 1:
            raise ArgumentError(f"an MLP's input shape in 'built' must have one entry, not {list(shape)}.")
        network.build(shape[0] if name == "MLP" else shape, built[1])
    return network
