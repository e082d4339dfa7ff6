"""Graphs of tensor operations: making them simple, and drawing their random numbers outside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node, map_arg

__all__ = ["direct", "simplified"]

# PyTorch's own functions cost less per call than the operators that a recording names.
# fmt: off
_DIRECT = {
    "add", "cat", "cumsum", "div", "exp", "flip", "log", "log1p", "mm", "mul", "mv", "neg",
    "pow", "select", "sigmoid", "sqrt", "squeeze", "sub", "sum", "t", "transpose", "unsqueeze", "where",
}
# fmt: on


def simplified(graph: GraphModule) -> GraphModule:
    """Constants computed once instead of at each call, and no operations that return their input.

    Parameters
    ----------
    graph : GraphModule
        From ``make_fx``; changed in place. It must not draw random numbers.

    Returns
    -------
    GraphModule
    """
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
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def direct(graph: GraphModule) -> GraphModule:
    """The graph for running it as it is: by PyTorch's own functions, which cost less per call.

    Parameters
    ----------
    graph : GraphModule
        From `simplified`; changed in place.

    Returns
    -------
    GraphModule
    """
    for node in graph.graph.nodes:
        name, _, overload = getattr(node.target, "__name__", "").partition(".")
        if node.op == "call_function" and overload and name in _DIRECT:
            node.target = getattr(torch, name)
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


@dataclass(frozen=True)
class Draw:
    """Random numbers that a graph takes as an argument.

    Attributes
    ----------
    like : Tensor
        Of their shape, precision and device.
    method : str
        The tensor's method that fills it, such as ``normal_``.
    args : tuple
        Its arguments.
    """

    like: Tensor
    method: str
    args: tuple[Any, ...]

    def fill(self, numbers: Tensor, generator: torch.Generator) -> None:
        """Draw."""
        getattr(numbers, self.method)(*self.args, generator=generator)


# Operators that draw, the method that draws the same numbers, and which of their arguments it takes.
_DRAWING = {
    "normal_functional": ("normal_", (1, 2)),
    "uniform": ("uniform_", (1, 2)),
    "exponential": ("exponential_", (1,)),
    "bernoulli": ("bernoulli_", (1,)),
    "randn": ("normal_", ()),
    "randn_like": ("normal_", ()),
    "rand": ("uniform_", ()),
    "rand_like": ("uniform_", ()),
}


def draws_outside(graph: GraphModule) -> list[Draw]:
    """Make the random numbers that a graph draws its last arguments.

    Parameters
    ----------
    graph : GraphModule
        From ``make_fx`` of a functionalised function; changed in place.

    Returns
    -------
    list of Draw
        In the order in which they are drawn.

    Raises
    ------
    NotImplementedError
        For draws whose distribution depends on other values.
    """
    draws = []
    last = [node for node in graph.graph.nodes if node.op == "placeholder"][-1]
    for node in list(graph.graph.nodes):
        tags = getattr(node.target, "tags", ())
        if node.op != "call_function" or torch.Tag.nondeterministic_seeded not in tags:
            continue
        name = node.target.__name__.split(".")[0]
        method, positions = _DRAWING.get(name, ("", ()))
        args = tuple(node.args[position] for position in positions if position < len(node.args))
        if not method or any(isinstance(arg, Node) for arg in args):
            raise NotImplementedError(f"a draw by {name} depends on other values")
        value = node.meta["val"]  # not a real tensor
        like = torch.empty(tuple(value.shape), dtype=value.dtype, device=value.device)
        draws.append(Draw(like, method, args))
        with graph.graph.inserting_after(last):
            last = graph.graph.placeholder(f"draw_{len(draws)}")
        last.meta["val"] = value
        node.replace_all_uses_with(last)
        graph.graph.erase_node(node)
    for node in graph.graph.nodes:
        if node.target is torch.ops.aten.fill.Scalar:
            node.target = torch.ops.aten.full_like.default  # the same, and `vmap` knows it
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return draws
