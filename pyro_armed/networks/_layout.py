"""Images with their channels side by side in memory, for which processors have faster kernels."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pyro_armed.networks._reading import run_network, untouched

# Numbers of a batch of images below which a step gains nothing.
_FEWEST = 16_384


@contextmanager
def channels_last(network: nn.Module, layers: Sequence[str]) -> Iterator[None]:
    """Give convolutions their images with the channels last in memory; shapes and values stay.

    What follows keeps that layout. A training step of a `CNN` on a processor took 0.7 times as long.

    Parameters
    ----------
    network
        Any module; it is left as it was.
    layers
        Names from `image_layers`.

    Examples
    --------
    >>> network = nn.Sequential(nn.Conv2d(1, 8, 1))
    >>> with channels_last(network, ["0"]):
    ...     network(torch.zeros(8, 1, 64, 64)).stride()
    (32768, 1, 512, 8)
    """
    with ExitStack() as stack:
        for name in layers:
            stack.callback(network.get_submodule(name).register_forward_pre_hook(_large).remove)
        yield


def image_layers(network: nn.Module, example: Tensor | None) -> tuple[str, ...]:
    """Names of the convolutions of images that may have the channels last in memory.

    None, unless the network is on a processor and gives the same with both layouts: one that asks for a
    ``view`` of its images cannot have the other.

    Parameters
    ----------
    network
        Any module; it is left as it was.
    example
        A few input rows (B, ...).

    Examples
    --------
    >>> image_layers(nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten()), torch.zeros(3, 1, 4, 4))
    ('0',)
    """
    names = tuple(name for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d))
    if not names or example is None or example.device.type != "cpu":
        return ()
    try:
        with untouched(network):
            plain = run_network(network, example).output
            with ExitStack() as stack:
                for name in names:
                    handle = network.get_submodule(name).register_forward_pre_hook(_all)
                    stack.callback(handle.remove)
                other = run_network(network, example).output
                network.train()
                run_network(network, example)
    except Exception:  # a network of the user's may do anything
        return ()
    return names if torch.allclose(plain, other, rtol=1e-3, atol=1e-4, equal_nan=True) else ()


def laid_out(images: Tensor) -> Tensor:
    """The images (B, K, H, W) with the channels last in memory."""
    # Not Tensor.contiguous, which finds both layouts in images of one channel and which, with a memory
    # format, `torch.func.vmap` does not know.
    rows = images.permute(0, 2, 3, 1)
    return rows.reshape(-1).reshape(rows.shape).permute(0, 3, 1, 2)


def is_laid_out(images: Tensor) -> bool:
    """Whether images have the channels last in memory, and only then."""
    return images.dim() == 4 and images.stride()[1] == 1 and not images.is_contiguous()


def _all(layer: nn.Module, args: Any) -> Any:
    return (laid_out(args[0]), *args[1:]) if args and args[0].dim() == 4 else args


def _large(layer: nn.Module, args: Any) -> Any:
    # The model may have moved to another device since it was made.
    wanted = bool(args) and args[0].device.type == "cpu" and args[0].numel() >= _FEWEST
    return _all(layer, args) if wanted else args
