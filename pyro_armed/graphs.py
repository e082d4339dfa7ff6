"""Graphs of tensor operations: making them simple, and drawing their random numbers outside."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node, map_arg

__all__ = ["Draw", "direct", "draws_outside", "masks_as_positions", "purified", "simplified"]

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


def masks_as_positions(graph: GraphModule) -> GraphModule:
    """Constant masks that index a tensor as positions: the shape of a result must not depend on values.

    Parameters
    ----------
    graph : GraphModule
        From `simplified`; changed in place.

    Returns
    -------
    GraphModule
    """
    aten = torch.ops.aten
    for node in list(graph.graph.nodes):
        if node.target not in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
            continue
        positions: list[Any] = []
        for index in node.args[1]:
            mask = getattr(graph, str(index.target)) if index is not None and index.op == "get_attr" else None
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
                positions.append(index)
                continue
            for axis, places in enumerate(mask.nonzero(as_tuple=True)):
                name = f"{node.name}_{index.name}_{axis}"
                graph.register_buffer(name, places)
                with graph.graph.inserting_before(node):
                    positions.append(graph.graph.get_attr(name))
        node.args = (node.args[0], positions, *node.args[2:])
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _is_idle(node: Node) -> bool:
    """Whether an operation returns its first argument: a reshape to the same shape, or times one."""
    source = node.args[0] if node.args else None
    if not isinstance(source, Node):
        return False
    old, new = source.meta.get("val"), node.meta.get("val")
    if not isinstance(old, Tensor) or not isinstance(new, Tensor):
        return False
    if new.shape != old.shape or new.dtype != old.dtype:
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
    "normal_functional.default": ("normal_", (1, 2)),
    "uniform.default": ("uniform_", (1, 2)),
    "exponential.default": ("exponential_", (1,)),
    "bernoulli.p": ("bernoulli_", (1,)),
    "randn.default": ("normal_", ()),
    "randn_like.default": ("normal_", ()),
    "rand.default": ("uniform_", ()),
    "rand_like.default": ("uniform_", ()),
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
        name = node.target.__name__
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
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return draws


def purified(graph: GraphModule) -> GraphModule:
    """Replace operators that change an argument without saying so, or that `vmap` does not know.

    Parameters
    ----------
    graph : GraphModule
        From ``make_fx`` of a functionalised function; changed in place.

    Returns
    -------
    GraphModule
    """
    aten = torch.ops.aten
    for node in list(graph.graph.nodes):
        if node.target is aten.fill.Scalar:
            node.target = aten.full_like.default
        elif node.target is aten.native_batch_norm.default and node.args[3] is not None and node.args[5]:
            _move_statistics(graph, node)
    graph.recompile()
    return graph


def _move_statistics(graph: GraphModule, norm: Node) -> None:
    """Let batch normalisation return its running mean and variance instead of writing into its arguments."""
    momentum = norm.args[6]
    running = norm.args[3:5]
    norm.args = (*norm.args[:3], None, None, *norm.args[5:])
    eps = norm.args[7]
    with graph.graph.inserting_after(norm):
        found = [graph.graph.call_function(operator.getitem, (norm, place)) for place in (1, 2)]
    for which, old in enumerate(running):
        later = [user for user in old.users if user is not norm]  # type: ignore[union-attr]
        with graph.graph.inserting_after(found[0]):
            value = graph.graph.call_function(_moved, (old, norm.args[0], *found, which, momentum, eps))
        for user in later:
            user.replace_input_with(old, value)  # type: ignore[arg-type]


def _moved(
    old: Tensor, rows: Tensor, mean: Tensor, inverse_sd: Tensor, which: int, momentum: float, eps: float
) -> Tensor:
    """A running mean (which = 0) or variance from what the normalisation has found of the rows."""
    # `Tensor.var` takes longer than all of the normalisation.
    count = rows.numel() // max(1, mean.numel())
    variance = (inverse_sd.double() ** -2 - eps).clamp_min(0.0) * (count / max(1, count - 1))
    return torch.lerp(old, (variance if which else mean).to(old.dtype), momentum)
