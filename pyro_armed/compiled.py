"""Training steps as graphs: the Pyro model traced once, and run without Python, Pyro or autograd.

The gradient of one restart is traced through Pyro (``make_fx``), its random numbers become arguments, and
the whole step, with `torch.func.vmap` over restarts where there are several, is traced around it. The graph
runs as it is, or through Inductor.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from pyro_armed.graphs import Draw, direct, draws_outside, simplified
from pyro_armed.updates import State, Tensors, Update

__all__ = ["CompiledStep", "compiler_found", "record"]


class CompiledStep:
    """A step as a graph.

    Parameters
    ----------
    update : Update
        The step.
    state, source : dict of str to Tensor
        State, and tensors of all rows, of the shapes to come; not changed.
    rows : Tensor, shape (B,) or (R, B), optional
        Rows of a step.
    controls : Tensor, shape (3,) or (R, 3)
        See `CONTROLS`.
    inductor : bool
        Whether Inductor compiles the graph.
    """

    def __init__(
        self,
        update: Update,
        state: State,
        source: Tensors,
        rows: Tensor | None,
        controls: Tensor,
        *,
        inductor: bool,
    ):
        gradient, self.draws = _gradient_graph(update, state, source, rows, controls)
        lead = controls.shape[:-1]
        self.noise = [draw.like.new_empty(lead + draw.like.shape) for draw in self.draws]
        whole = _Whole(update, gradient, list(state), list(source), rows is not None)
        example = whole.flat(state, source, rows, controls, self.noise)
        graph = simplified(_make_fx(whole, [tensor.clone() for tensor in example]))
        self.nodes = len(graph.graph.nodes)
        self._flat = whole.flat
        self._run = _inductor(graph, example) if inductor else direct(graph)

    def __call__(
        self,
        state: State,
        source: Tensors,
        rows: Tensor | None,
        controls: Tensor,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """Change the state by one step; see `Update`.

        Parameters
        ----------
        state, source, rows, controls
            As for `Update`.
        generators : sequence of torch.Generator
            One for each restart.

        Returns
        -------
        Tensor, shape (3,) or (R, 3)
        """
        for draw, noise in zip(self.draws, self.noise, strict=True):
            for restart, generator in enumerate(generators):
                draw.fill(noise[restart] if len(generators) > 1 else noise, generator)
        (record,) = self._run(*self._flat(state, source, rows, controls, self.noise))
        return record


class _Whole:
    """`Update.__call__` on a list of tensors, the gradient by a graph."""

    def __init__(
        self,
        update: Update,
        gradient: Callable[..., Any],
        state: Sequence[str],
        source: Sequence[str],
        selects: bool,
    ):
        self.update, self.gradient = update, gradient
        self.state, self.source, self.selects = state, source, selects

    def flat(
        self, state: State, source: Tensors, rows: Tensor | None, controls: Tensor, noise: Sequence[Tensor]
    ) -> list[Tensor]:
        tensors = [state[name] for name in self.state] + [source[name] for name in self.source]
        return [*tensors, controls, *([] if rows is None else [rows]), *noise]

    def __call__(self, *tensors: Tensor) -> tuple[Tensor]:
        left = list(tensors)
        state = {name: left.pop(0) for name in self.state}
        source = {name: left.pop(0) for name in self.source}
        controls = left.pop(0)
        rows = left.pop(0) if self.selects else None
        layout = self.update.layout
        batch, present = self.update.select(source, rows)
        values = self.update.values(state, present)
        fixed = {name: state[name] for name in layout.fixed}
        parts = (values, fixed, batch, controls[..., 0], left)
        run = self.gradient
        if controls.dim() > 1:
            run = torch.func.vmap(run, in_dims=(0, 0, 0 if self.selects else None, 0, 0))
        gradient, changed, record = run(*parts)
        self.update.ascend(state, gradient, present, controls)
        for name, buffer in changed.items():
            state[name].copy_(buffer)
        return (record,)


def _gradient_graph(
    update: Update, state: State, source: Tensors, rows: Tensor | None, controls: Tensor
) -> tuple[Callable[..., Any], list[Draw]]:
    """`Update.pure_gradient` for one restart as a graph, and the draws that are its last argument."""
    single = controls.dim() == 1
    with torch.no_grad():
        batch, present = update.select(source, rows)
        values = update.values(state, present)
        fixed = {name: state[name] for name in update.layout.fixed}
    if not single:
        values, fixed = _first(values), _first(fixed)
        batch = batch if rows is None else _first(batch)
    weight = controls[..., 0] if single else controls[0, 0]
    names = [list(part) for part in (values, fixed, batch)]

    def listed(*tensors: Tensor) -> list[Tensor]:
        left = iter(tensors)
        parts = [{name: next(left) for name in part} for part in names]
        gradient, changed, record = update.pure_gradient(*parts, next(left))
        return [*gradient.values(), *changed.values(), record]

    example = [*values.values(), *fixed.values(), *batch.values(), weight]
    graph = _make_fx(torch.func.functionalize(listed), [tensor.clone() for tensor in example])
    draws = draws_outside(graph)
    changes = _changed(graph, len(values), names[1])
    simplified(graph)

    def run(
        values: Tensors, fixed: Tensors, batch: Tensors, weight: Tensor, noise: Sequence[Tensor]
    ) -> tuple[Tensors, Tensors, Tensor]:
        found = graph(*values.values(), *fixed.values(), *batch.values(), weight, *noise)
        gradient = dict(zip(names[0], found, strict=False))
        changed = dict(zip(names[1], found[len(names[0]) :], strict=False))
        return gradient, {name: changed[name] for name in changes}, found[-1]

    return run, draws


def _first(tensors: Tensors) -> Tensors:
    return {name: tensor[0] for name, tensor in tensors.items()}


def _changed(graph: GraphModule, skipped: int, names: Sequence[str]) -> list[str]:
    """Which buffers a step changes: the others come back as copies of the argument."""
    (found,) = next(node for node in graph.graph.nodes if node.op == "output").args
    outputs = found[skipped : skipped + len(names)]
    copied = [
        node.target is torch.ops.aten.clone.default and node.args[0].op == "placeholder" for node in outputs
    ]
    return [name for name, same in zip(names, copied, strict=True) if not same]


def _make_fx(function: Callable[..., Any], example: Sequence[Tensor]) -> GraphModule:
    # Imports torch._dynamo, which takes as long as the rest of PyTorch.
    from torch.fx.experimental.proxy_tensor import make_fx

    return make_fx(lambda *tensors: function(*tensors))(*example)


def _inductor(graph: GraphModule, example: Sequence[Tensor]) -> Callable[..., Any]:
    import torch._inductor

    with torch.no_grad():
        return torch._inductor.compile(graph, list(example), options={"fallback_random": True})


def compiler_found() -> bool:
    """Whether Inductor will find a C++ compiler."""
    named = os.environ.get("CXX")
    return any(shutil.which(name) for name in ([named] if named else ["g++", "clang++", "c++"]))
