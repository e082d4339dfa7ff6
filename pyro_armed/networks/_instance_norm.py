"""Instance normalisation with a scale and a bias for each row and channel."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from pyro_armed.networks._layout import is_laid_out, laid_out

_EPS = 1e-5


def normalised_images(h: Tensor, scale: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Rows and channels brought to mean 0 and variance 1 over their positions, then scaled and shifted.

    Parameters
    ----------
    h
        Images (B, K, ...) of one or more dimensions; their layout in memory is kept.
    scale, bias
        For each row and channel (B, K); None for one and zero.

    Examples
    --------
    >>> normalised_images(torch.tensor([[[1.0, 3.0]]]), bias=torch.ones(1, 1)).round(decimals=3)
    tensor([[[0., 2.]]])
    """
    if not is_laid_out(h):
        return _as_channels(h, scale, bias)
    ones = h.new_ones(h.shape[:2])
    try:
        return _ChannelsLast.apply(h, ones if scale is None else scale, 0.0 * ones if bias is None else bias)
    except RuntimeError:  # within a transform of torch.func, as where steps are traced
        return laid_out(_as_channels(h, scale, bias))


def _as_channels(h: Tensor, scale: Tensor | None, bias: Tensor | None) -> Tensor:
    # Rows as channels of one row: batch normalisation's kernel does all in one go, forward and backward.
    flat = h.reshape(1, h.shape[0] * h.shape[1], *h.shape[2:])
    scale = None if scale is None else scale.reshape(-1)
    bias = None if bias is None else bias.reshape(-1)
    return functional.batch_norm(flat, None, None, scale, bias, training=True, eps=_EPS).reshape(h.shape)


class _ChannelsLast(torch.autograd.Function):
    """The same on images with the channels last in memory, for which PyTorch has no kernel.

    Positions of a line and channels are one axis of W x K numbers, so that processors have long loops.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        rows, width = _lines(h)
        count = h.shape[2] * width
        centred = rows - _tiled(_summed(rows, width) / count, width)
        inverse = (_summed(centred * centred, width) / count + _EPS).rsqrt()
        ctx.save_for_backward(centred, inverse, scale)
        return _images(torch.addcmul(_tiled(bias, width), _tiled(scale * inverse, width), centred), h.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        centred, inverse, scale = ctx.saved_tensors
        rows, width = _lines(gradient)
        count = gradient.shape[2] * width
        of_bias, along = _summed(rows, width), _summed(rows * centred, width)
        slope = scale * inverse
        of_images = torch.addcmul(_tiled(-slope * of_bias / count, width), _tiled(slope, width), rows)
        of_images.addcmul_(centred, _tiled(-slope * inverse.square() * along / count, width))
        return _images(of_images, gradient.shape), along * inverse, of_bias


def _lines(images: Tensor) -> tuple[Tensor, int]:
    """Images (B, K, H, W) as (B, H, W x K), and W."""
    rows, channels, height, width = images.shape
    return images.permute(0, 2, 3, 1).reshape(rows, height, width * channels), width


def _images(lines: Tensor, shape: torch.Size) -> Tensor:
    rows, channels, height, width = shape
    return lines.reshape(rows, height, width, channels).permute(0, 3, 1, 2)


def _summed(lines: Tensor, width: int) -> Tensor:
    """Sums over positions, (B, K)."""
    return lines.sum(1).reshape(len(lines), width, -1).sum(1)


def _tiled(values: Tensor, width: int) -> Tensor:
    """Numbers for each row and channel (B, K) at each position of a line, (B, 1, W x K)."""
    return values[:, None, :].expand(-1, width, -1).reshape(len(values), 1, -1)
