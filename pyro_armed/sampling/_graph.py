"""Functions as graphs of tensor operations, without what PyTorch and Pyro do around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node, map_arg

from pyro_armed.training import no_validation

__all__ = ["recorded"]

# PyTorch's own functions cost less per call than the operators that a recording names.
# fmt: off
_DIRECT = {
    "add", "cat", "cumsum", "div", "exp", "flip", "log", "log1p", "mm", "mul", "mv", "neg",
    "pow", "select", "sigmoid", "sqrt", "squeeze", "sub", "sum", "t", "transpose", "unsqueeze", "where",
}
# fmt: on


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
            graph = _simplified(make_fx(lambda point: function(point))(start.clone()))
            for point in [*(start + 0.3 * noise), start]:
                expected = function(point)
                with torch.no_grad():
                    found = graph(point)
                for one, other in zip(expected, found, strict=True):
                    torch.testing.assert_close(one, other, equal_nan=True)
    except Exception:  # a family of the user's own may do what cannot be recorded
        return None
    return graph


def _simplified(graph: GraphModule) -> GraphModule:
    """Constants computed once instead of at each call, and no operations that return their input."""
    known: dict[Node, Any] = {}
    written = {n.args[0] for n in graph.graph.nodes if _writes(n)}
    for node in reversed(graph.graph.nodes):
        if node in written and node.args:  # it may be a view of its first argument
            written.add(node.args[0])
    for node in graph.graph.nodes:
        if _is_idle(node) and written.isdisjoint((node, node.args[0])):
            node.replace_all_uses_with(node.args[0])
    graph.graph.eliminate_dead_code()
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            known[node] = getattr(graph, str(node.target))
            continue
        if node.op != "call_function" or node in written or _writes(node):
            continue
        if all(source in known for source in node.all_input_nodes):
            args, kwargs = map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = node.target(*args, **kwargs)
    for number, (node, value) in enumerate(list(known.items())):
        needed = any(user not in known for user in node.users)
        if node.op == "call_function" and needed and isinstance(value, Tensor):
            graph.register_buffer(f"constant{number}", value)
            with graph.graph.inserting_before(node):
                constant = graph.graph.get_attr(f"constant{number}")
            node.replace_all_uses_with(constant)
    for node in graph.graph.nodes:
        name, _, overload = getattr(node.target, "__name__", "").partition(".")
        if node.op == "call_function" and overload and name in _DIRECT:
            node.target = getattr(torch, name)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _is_idle(node: Node) -> bool:
    """Whether an operation returns its first argument: a reshape to the same shape, or times one."""
    source = node.args[0] if node.args else None
    if not isinstance(source, Node):
        return False
    old, new = source.meta.get("val"), node.meta.get("val")
    if not isinstance(old, Tensor) or not isinstance(new, Tensor) or new.shape != old.shape:
        return False
    name, others = getattr(node.target, "__name__", "").split(".")[0], node.args[1:]
    if name in ("view", "expand", "detach", "alias"):
        return True
    neutral = {"add": 0.0, "sub": 0.0, "mul": 1.0, "div": 1.0, "pow": 1.0}.get(name)
    return len(others) == 1 and isinstance(others[0], (int, float)) and others[0] == neutral


def _writes(node: Node) -> bool:
    """Whether an operation changes its first argument (``index_put_``)."""
    schema = getattr(node.target, "_schema", None)
    return bool(schema is not None and schema.is_mutable)
