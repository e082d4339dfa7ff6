"""Outputs of named layers of any network, read from outside."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_armed.errors import ArgumentError


@contextmanager
def layer_outputs(
    network: nn.Module | None, layers: Sequence[str], *, joined: bool = False
) -> Iterator[dict[str, Any]]:
    """Keep what named layers return, by name, each time the network runs within the block.

    Parameters
    ----------
    network
        Any module; it is left as it was.
    layers
        Names of submodules, as in ``network.named_modules()``.
    joined
        Whether the outputs of successive runs are put one below the other, for rows that come in parts; else
        the last run counts.

    Raises
    ------
    ArgumentError
        If there is no such layer.

    Examples
    --------
    >>> import torch
    >>> network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    >>> with layer_outputs(network, ["1"]) as seen:
    ...     _ = network(torch.zeros(2, 3))
    >>> seen["1"].shape
    torch.Size([2, 4])
    """
    seen: dict[str, Any] = {}
    handles = []

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, result: Any) -> None:
            both = joined and isinstance(result, Tensor) and isinstance(seen.get(name), Tensor)
            seen[name] = torch.cat([seen[name], result]) if both else result

        return hook

    try:
        for name in layers:
            handles.append(_layer(network, name).register_forward_hook(keep(name)))
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _layer(network: nn.Module | None, name: str) -> nn.Module:
    known = {key: module for key, module in network.named_modules() if key} if network is not None else {}
    if name not in known:
        raise ArgumentError(f"the network has no layer named {name!r}; it has {', '.join(known) or 'none'}.")
    return known[name]


def flattened(
    outputs: Mapping[str, Any], layers: Sequence[str], rows: int, *, grid: int | None = None
) -> Tensor:
    """The outputs of several layers side by side, (B, F).

    Parameters
    ----------
    outputs
        From `layer_outputs`.
    layers
        Which, in which order.
    rows
        Number of input rows B.
    grid
        Images (B, K, H, W) are averaged over ``grid`` x ``grid`` parts of nearly equal size, where they have
        more positions; None keeps each position.

    Raises
    ------
    ArgumentError
        If a layer was not run or does not return one tensor with a row for each input row.
    """
    parts = []
    for name in layers:
        if name not in outputs:
            raise ArgumentError(f"the network's layer {name!r} was not run in its forward pass.")
        output = outputs[name]
        if not isinstance(output, Tensor) or output.ndim < 1 or output.shape[0] != rows:
            found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ArgumentError(
                f"the network's layer {name!r} must return one tensor with a row for each row of the input, "
                f"({rows}, ...), but returns {found}; name another layer."
            )
        parts.append(_averaged(output, grid).reshape(rows, -1))
    return torch.cat(parts, dim=1)


def _averaged(output: Tensor, grid: int | None) -> Tensor:
    """Images (B, K, H, W) averaged over the parts of a grid; everything else as it is."""
    if grid is None or output.dim() != 4:
        return output
    size = min(output.shape[2], grid), min(output.shape[3], grid)
    if any(side % parts for side, parts in zip(output.shape[2:], size, strict=True)):
        return functional.adaptive_avg_pool2d(output, size)
    # Several times as fast as adaptive pooling, and in long loops where channels come last in memory.
    (height, width), channels = output.shape[2:], output.shape[1]
    lines = output.permute(0, 2, 3, 1).reshape(len(output), size[0], height // size[0], width * channels)
    parts = lines.mean(2).reshape(len(output), size[0], size[1], width // size[1], channels).mean(3)
    return parts.permute(0, 3, 1, 2)
