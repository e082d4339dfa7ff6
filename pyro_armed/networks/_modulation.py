"""Changing the outputs of a network's layers from outside, and keeping its buffers still."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from pyro_armed.errors import ArgumentError
from pyro_armed.networks._instance_norm import normalised_images
from pyro_armed.networks._reading import run_network, untouched

_SHOWN = 12


class LayerShape(NamedTuple):
    """What a layer gives.

    Attributes
    ----------
    channels : int
        Number K of channels.
    spread : float
        sd of what is scaled on the example: 1 after normalisation, that of the input where the layer gives
        its reconstruction, else that of the layer's output (1 where it is zero).
    """

    channels: int
    spread: float


def scale_and_shift(
    layer: nn.Module, h: Tensor, scale: Tensor | None, bias: Tensor | None, *, normalize: bool = True
) -> Tensor:
    """``(1 + scale) * h + bias`` on the channels of a layer's output.

    Parameters
    ----------
    layer
        A convolution, whose channels stand in second place, or an ``nn.Linear``, where they come last.
    h
        Its output, (B, K, ...) or (B, ..., K).
    scale, bias
        One number for each row and channel (B, K); None for zeros.
    normalize
        Whether the output of a convolution is first brought to mean 0 and variance 1 over the positions of
        each row and channel.

    Examples
    --------
    >>> import torch
    >>> h, one = torch.tensor([[[1.0, 3.0]]]), torch.ones(1, 1)
    >>> scale_and_shift(torch.nn.Conv1d(1, 1, 1), h, one, one).round(decimals=3)
    tensor([[[-1.,  3.]]])
    """
    spatial = isinstance(layer, _ConvNd)
    weight = None if scale is None else (1.0 + scale).to(h.dtype)
    shift = None if bias is None else bias.to(h.dtype)
    if spatial and normalize:
        return normalised_images(h, weight, shift)
    if weight is None or shift is None:
        return h
    ones = (1,) * (h.ndim - 2)
    shape = (*weight.shape, *ones) if spatial else (len(h), *ones, h.shape[-1])
    return torch.addcmul(shift.reshape(shape), weight.reshape(shape), h)


def named_layer(network: nn.Module, name: str) -> nn.Module:
    """A layer on whose channels group effects can stand.

    Raises
    ------
    ArgumentError
        Where there is none of that name, or one of another type; lists those that it could be.
    """
    fitting = [n for n, layer in network.named_modules() if isinstance(layer, (nn.Linear, _ConvNd)) and n]
    shown = ", ".join(map(repr, fitting[:_SHOWN])) + (", ..." if len(fitting) > _SHOWN else "")
    could = f"it could be one of {shown}" if fitting else "the network has none that it could be"
    try:
        layer = network.get_submodule(name)
    except AttributeError:
        raise ArgumentError(f"the network has no layer named {name!r}; {could}.") from None
    if name not in fitting:
        raise ArgumentError(
            f"the network's layer {name!r} is of type {type(layer).__name__}; scale and bias are for "
            f"nn.Linear and convolutions: {could}."
        )
    return layer


def layer_shapes(
    network: nn.Module, example: Tensor, normalize: Mapping[str, bool], output_layer: str | None
) -> dict[str, LayerShape]:
    """Channels and spread of the outputs of some layers.

    The network is run once on the example in evaluation mode and left as it was.

    Parameters
    ----------
    network
        Any module that maps x (B, ...) to a tensor, or to an output and a reconstruction.
    example
        A few input rows (B, ...).
    normalize
        By names of layers, whether their outputs are to be normalised.
    output_layer
        The layer whose weights have a posterior of their own, if any.

    Raises
    ------
    ArgumentError
        For a layer that is not there, of another type, not run, without a row for each row of the input, or
        without positions to normalise over.
    """
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(layer: nn.Module, args: Any, output: Any) -> None:
            seen[name] = output.detach()

        return hook

    with ExitStack() as stack:
        for name in normalize:
            if name == output_layer:
                raise ArgumentError(
                    f"the network's layer {name!r} gives its output, where group effects are an intercept "
                    "and slopes: use RandomEffects(group, slopes='features')."
                )
            layer = named_layer(network, name)
            stack.callback(layer.register_forward_hook(keep(name)).remove)
        with untouched(network):
            rebuilt = run_network(network, example).reconstruction
    shapes = {
        name: _shape(name, network.get_submodule(name), seen.get(name), len(example), wanted)
        for name, wanted in normalize.items()
    }
    if rebuilt is None:
        return shapes
    # What a layer gives before training says little of the unit of reconstructions; the inputs do.
    last = [name for name, output in seen.items() if torch.equal(output.reshape(-1), rebuilt.reshape(-1))]
    of_inputs = float(example.double().std()) or 1.0
    return shapes | {
        name: LayerShape(shapes[name].channels, of_inputs) for name in last if not normalize[name]
    }


def _shape(name: str, layer: nn.Module, output: Tensor | None, rows: int, normalize: bool) -> LayerShape:
    if output is None:
        raise ArgumentError(f"the network's layer {name!r} was not run in its forward pass.")
    if len(output) != rows:
        raise ArgumentError(
            f"the network's layer {name!r} gives {len(output)} rows for {rows} rows of the input; group "
            "effects need one row for each."
        )
    spatial = isinstance(layer, _ConvNd)
    if spatial and normalize and math.prod(output.shape[2:]) < 2:
        raise ArgumentError(
            f"the network's layer {name!r} gives one position for each channel, which leaves nothing to "
            "normalise; use ScaleBias(..., normalize=False)."
        )
    spread = 1.0 if spatial and normalize else float(output.double().std())
    return LayerShape(output.shape[1 if spatial else -1], spread if 0.0 < spread < math.inf else 1.0)


@contextmanager
def changed_layers(network: nn.Module, changes: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Put each named layer's output through a function while the context lasts.

    Parameters
    ----------
    network
        Any module.
    changes
        Functions by names of layers.

    Examples
    --------
    >>> import torch
    >>> network = torch.nn.Sequential(torch.nn.Identity())
    >>> with changed_layers(network, {"0": lambda h: h + 1}):
    ...     network(torch.zeros(1))
    tensor([1.])
    >>> network(torch.zeros(1))
    tensor([0.])
    """
    with ExitStack() as stack:
        for name, change in changes.items():
            layer = network.get_submodule(name)
            # First of the layer's hooks: others are to see the changed output.
            handle = layer.register_forward_hook(partial(_replaced, change), prepend=True)
            stack.callback(handle.remove)
        yield


def _replaced(change: Callable[[Tensor], Tensor], layer: nn.Module, args: Any, output: Tensor) -> Tensor:
    return change(output)


@contextmanager
def still_statistics(network: nn.Module) -> Iterator[None]:
    """Let batch and instance normalisation use the batch's statistics without recording them.

    For the second pass of a training step: running means would otherwise count the step twice.

    Parameters
    ----------
    network
        Any module.
    """
    recording = [
        module
        for module in network.modules()
        if isinstance(module, _NormBase) and module.training and module.track_running_stats
    ]
    for module in recording:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in recording:
            module.track_running_stats = True


def still_parts(network: nn.Module) -> tuple[str, ...]:
    """Names of the modules that stay in evaluation mode while the network is trained.

    In a network in training mode those that its user has put in evaluation mode; in one in evaluation mode,
    as a pretrained network often comes, those whose weights are all frozen. So batch normalisation in a
    frozen backbone keeps its statistics.

    Parameters
    ----------
    network
        Any module.

    Examples
    --------
    >>> network = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1))
    >>> _ = network[0].eval()
    >>> still_parts(network)
    ('0',)
    """
    named = list(network.named_modules())
    if network.training:
        return tuple(name for name, module in named if not module.training)
    frozen = [name for name, module in named if _is_frozen(module)]
    return tuple(name for name, _ in named if any(_within(name, part) for part in frozen))


def keep_still(network: nn.Module, names: Sequence[str]) -> None:
    """Put modules back in evaluation mode, those named by `still_parts`."""
    for name in names:
        network.get_submodule(name).training = False


def _is_frozen(module: nn.Module) -> bool:
    weights = list(module.parameters())
    return bool(weights) and not any(weight.requires_grad for weight in weights)


def _within(name: str, part: str) -> bool:
    return part in ("", name) or name.startswith(f"{part}.")
