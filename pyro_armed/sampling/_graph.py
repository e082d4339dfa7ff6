"""Functions of a vector as graphs of tensor operations, without what PyTorch and Pyro do around them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx import GraphModule

from pyro_armed.graphs import direct, simplified
from pyro_armed.training import no_validation

__all__ = ["recorded"]


def recorded(function: Callable[[Tensor], tuple[Tensor, ...]], start: Tensor) -> GraphModule | None:
    """A function as a graph.

    Parameters
    ----------
    function : callable
        Maps a vector to tensors; its control flow must not depend on numbers.
    start : Tensor, shape (D,)
        A point to record at.

    Returns
    -------
    GraphModule or None
        None where the function cannot be recorded, or the recording does not repeat what the function says
        at other points.

    Examples
    --------
    >>> graph = recorded(lambda x: (2 * x.sum(), x.exp()), torch.zeros(2))
    >>> graph(torch.ones(2))
    (tensor(4.), tensor([2.7183, 2.7183]))
    """
    # Imports torch._dynamo, which takes as long as the rest of PyTorch.
    from torch.fx.experimental.proxy_tensor import make_fx

    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, len(start), generator=generator, dtype=start.dtype)
    try:
        with no_validation():
            graph = direct(simplified(make_fx(lambda point: function(point))(start.clone())))
            for point in [*(start + 0.3 * noise), start]:
                expected = function(point)
                with torch.no_grad():
                    found = graph(point)
                for one, other in zip(expected, found, strict=True):
                    torch.testing.assert_close(one, other, equal_nan=True)
    except Exception:  # a family of the user's own may do what cannot be recorded
        return None
    return graph
