"""Reading and copying any network from outside, without editing or subclassing it."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pyro_armed.errors import ArgumentError
from pyro_armed.networks._common import devices_of, whole
from pyro_armed.seeds import seeded


@contextmanager
def untouched(network: nn.Module) -> Iterator[None]:
    """Give evaluation mode without gradients; restore modes, buffers and random state afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in network.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        with seeded(None, devices_of(network)), torch.no_grad():
            network.eval()
            yield
    finally:
        # Module by module: users freeze single layers, and network.train() would thaw them.
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


class Pass(NamedTuple):
    """What one pass of a network gives.

    Attributes
    ----------
    features : Tensor, shape (B, F)
        Input of the layer that was asked for; F = 0 for none.
    output : Tensor, shape (B, R)
        The network's output.
    reconstruction : Tensor or None
        For a network that returns two tensors the second, in the shape of the input.
    """

    features: Tensor
    output: Tensor
    reconstruction: Tensor | None


def _parted(raw: Any, x: Tensor) -> tuple[Any, Tensor | None]:
    """A network's output, and its reconstruction of x where it gives one."""
    pair = isinstance(raw, tuple | list) and len(raw) == 2 and all(isinstance(r, Tensor) for r in raw)
    if pair and raw[1].numel() == x.numel():
        return raw[0], raw[1].reshape(x.shape)
    return raw, None


def _check_output(output: Any, rows: int, columns: int | None) -> Tensor:
    """Return a network's output as (B, R); `ArgumentError` if it is not that."""
    if not isinstance(output, Tensor):
        raise ArgumentError(
            f"the network must return one tensor, but returned a {type(output).__name__}; wrap it in a "
            "module that returns only the predictor, or the predictor and a reconstruction of the input's "
            "shape."
        )
    if output.ndim == 1:
        output = output.unsqueeze(-1)
    if output.ndim != 2 or output.shape[0] != rows:
        raise ArgumentError(
            f"the network must return one row per input row, ({rows}, columns), but returned shape "
            f"{tuple(output.shape)}."
        )
    if columns is not None and output.shape[1] != columns:
        raise ArgumentError(
            f"the network returned {output.shape[1]} column(s) where {columns} expected; give its last layer "
            f"{columns} output(s)."
        )
    return output


def network_output(network: nn.Module, x: Tensor, *, columns: int | None = None) -> Tensor:
    """Run the network once and return its output as (B, R).

    Parameters
    ----------
    network
        Any module that maps x (B, ...) to a tensor (B, R), or (B,) for R = 1.
    x
        Input rows (B, ...).
    columns
        The number of columns R that the output has to have; None accepts any.

    Raises
    ------
    ArgumentError
        If the output is not a tensor, or has another number of rows or columns.

    Examples
    --------
    >>> import torch
    >>> network_output(torch.nn.Linear(3, 2), torch.zeros(4, 3), columns=2).shape
    torch.Size([4, 2])
    """
    return _check_output(_parted(network(x), x)[0], x.shape[0], columns)


def run_network(network: nn.Module, x: Tensor, layer: str | None = None) -> Pass:
    """Run the network once; see `features_and_output`, of which the layer is optional here.

    Parameters
    ----------
    network
        Any module that maps x (B, ...) to a tensor (B, R), or (B,) for R = 1, or to such a tensor and a
        reconstruction of x.
    x
        Input rows (B, ...).
    layer
        Name of the layer whose input is wanted.

    Raises
    ------
    ArgumentError
        As `features_and_output`.

    Examples
    --------
    >>> import torch
    >>> run_network(torch.nn.Linear(3, 2), torch.zeros(4, 3)).output.shape
    torch.Size([4, 2])
    """
    if layer is None:
        raw, reconstruction = _parted(network(x), x)
        return Pass(x.new_empty(len(x), 0), _check_output(raw, len(x), None), reconstruction)
    seen: list[Any] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen[:] = [args[0] if args else next(iter(kwargs.values()), None)]

    try:
        target = network.get_submodule(layer)
    except AttributeError:
        raise ArgumentError(f"the network has no layer named {layer!r}.") from None
    handle = target.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        raw, reconstruction = _parted(network(x), x)
    finally:
        handle.remove()
    output = _check_output(raw, len(x), None)
    if not seen:
        raise ArgumentError(f"the network's layer {layer!r} was not run in its forward pass.")
    features = seen[0]
    if not isinstance(features, Tensor) or features.ndim != 2 or features.shape[0] != x.shape[0]:
        found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ArgumentError(
            f"the input of the network's layer {layer!r} must be one row of features per input row, "
            f"({x.shape[0]}, features), but is {found}."
        )
    return Pass(features, output, reconstruction)


def features_and_output(
    network: nn.Module, x: Tensor, layer: str, *, columns: int | None = None
) -> tuple[Tensor, Tensor]:
    """Run the network once; return the input of one of its layers together with the output.

    The activations are read by a hook that is removed before the function returns or raises. Gradients flow
    through both results. It can be called inside ``torch.func`` transforms and ``make_fx``, and from within
    another network's ``forward``; two threads must not run it on one network at the same time. Batch
    normalisation in training mode counts each call as one step; ``torch.func`` transforms refuse it (as
    they do without this function) unless the buffers are among the transformed function's inputs.

    Parameters
    ----------
    network
        Any module that maps x (B, ...) to a tensor (B, R), or (B,) for R = 1.
    x
        Input rows (B, ...).
    layer
        Name of the layer, as `find_output_layer` returns it.
    columns
        The number of columns R that the output has to have; None accepts any.

    Returns
    -------
    features, output
        Tensors (B, F) and (B, R). Where a layer runs several times, the last run counts.

    Raises
    ------
    ArgumentError
        If there is no such layer, it was not run or its input is not (B, F), or the output is not (B, R).

    Examples
    --------
    >>> import torch
    >>> from pyro_armed.networks import MLP
    >>> features, output = features_and_output(MLP(hidden=(4,)).build(3, 1), torch.zeros(5, 3), "layers.2")
    >>> features.shape, output.shape
    (torch.Size([5, 4]), torch.Size([5, 1]))
    """
    features, output, _ = run_network(network, x, layer)
    return features, _check_output(output, len(x), columns)


def _same_values(output: Tensor, candidate: Tensor, version: int) -> bool:
    """Whether ``output`` is ``candidate`` or a reshaped view of it, with nothing changed in place since."""
    same = output is candidate or (
        output.data_ptr() == candidate.data_ptr()
        and output.numel() == candidate.numel()
        and output.is_contiguous()
        and candidate.is_contiguous()
    )
    return same and candidate._version == version


def find_output_layer(network: nn.Module, example: Tensor) -> str:
    """Name the ``nn.Linear`` whose output is the network's output.

    Its input is what the formula term ``features`` means. The network is run once on the example in
    evaluation mode; its modes, weights, buffers and torch's random state are left as they were.

    Parameters
    ----------
    network
        Any module that maps x (B, ...) to a tensor (B, R), or (B,) for R = 1.
    example
        A few input rows (B, ...).

    Raises
    ------
    ArgumentError
        If the network cannot be run on the example, does not return one tensor of (B, R), or does not end in
        an ``nn.Linear``.

    Examples
    --------
    >>> import torch
    >>> from pyro_armed.networks import MLP
    >>> find_output_layer(MLP(hidden=(4,)).build(3, 1), torch.zeros(2, 3))
    'layers.2'
    """
    if example.shape[0] < 1:
        raise ArgumentError("example must have at least one row.")
    for name, module in network.named_modules():
        if any(is_lazy(p) for p in module.parameters(recurse=False)):
            raise ArgumentError(
                f"the network's layer {name!r} has no size yet; run the network once on a batch before "
                "giving it to the model."
            )
    calls: dict[str, tuple[Any, int]] = {}
    order: list[str] = []
    handles = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, args: Any, result: Any) -> None:
            order.append(f"{type(module).__name__} ({name!r})" if name else type(module).__name__)
            if isinstance(module, nn.Linear):
                calls[name] = (result, result._version)

        return keep

    try:
        for name, module in network.named_modules():
            if isinstance(module, nn.Linear) or not any(True for _ in module.children()):
                handles.append(module.register_forward_hook(watch(name)))
        with untouched(network):
            raw, _ = _parted(network(example), example)
    except ArgumentError:
        raise
    except Exception as error:
        raise ArgumentError(
            f"the network cannot be run on an example batch of shape {tuple(example.shape)}: {error}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    _check_output(raw, example.shape[0], None)
    for name, (result, version) in calls.items():
        if _same_values(raw, result, version) and result.ndim == 2:
            return name
    last = f" (the layer run last is {order[-1]})" if order else ""
    raise ArgumentError(
        f"the network does not end in an nn.Linear that gives its output{last}, so its last hidden "
        "activations cannot be read; make an nn.Linear its last step, without an activation after it: the "
        "family applies the link."
    )


def copy_network(network: nn.Module) -> nn.Module:
    """Return a deep copy that shares no weights with the network.

    Raises
    ------
    ArgumentError
        If the network cannot be copied.

    Examples
    --------
    >>> from pyro_armed.networks import MLP
    >>> network = MLP(hidden=(4,)).build(3, 1)
    >>> copy_network(network).layers[0].weight is network.layers[0].weight
    False
    """
    try:
        return copy.deepcopy(network)
    except Exception as error:
        raise ArgumentError(f"the network cannot be copied: {error}") from error


def reinitialise(network: nn.Module, seed: int) -> list[str]:
    """Redraw all weights in place, by the ``reset_parameters`` of every submodule that has one.

    Submodules come before the module that holds them, so that a network's own ``reset_parameters`` has the
    last word. Torch's global random state is left as it was. The same seed gives the same weights on one type
    of device; call it before moving the network to have them on all.

    Returns
    -------
    list of str
        Names of the parameters that no ``reset_parameters`` covers and that therefore keep their values.

    Raises
    ------
    ArgumentError
        If the seed cannot be used.

    Examples
    --------
    >>> from pyro_armed.networks import MLP
    >>> reinitialise(MLP(hidden=(4,)).build(3, 1), seed=1)
    []
    """
    covered: set[int] = set()

    def redraw(module: nn.Module) -> None:
        # nn.MultiheadAttention and nn.Transformer spell it with an underscore.
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if callable(reset):
            reset()
            covered.update(id(parameter) for parameter in module.parameters())

    with seeded(whole(seed, "seed", 0), devices_of(network)), torch.no_grad():
        network.apply(redraw)
    return [name for name, parameter in network.named_parameters() if id(parameter) not in covered]


def count_parameters(network: nn.Module) -> int:
    """Count the trainable weights; shared ones count once.

    Examples
    --------
    >>> from pyro_armed.networks import MLP
    >>> count_parameters(MLP(hidden=(4,)).build(3, 1))
    21
    """
    return sum(math.prod(p.shape) for p in network.parameters() if p.requires_grad)
