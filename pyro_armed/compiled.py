"""Training steps as graphs: the Pyro model traced once, and run without Pyro and autograd.

The gradient of one restart is traced through Pyro (``make_fx``); the random numbers become its arguments, so
that a graph draws what the eager step draws. The whole step is traced around it, by `torch.func.vmap` where
several restarts run side by side, and runs as it is or through Inductor.
"""

from __future__ import annotations

import gc
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.fx import GraphModule

from pyro_armed.graphs import Draw, direct, draws_outside, purified, simplified
from pyro_armed.libraries import fingerprint, kept_library
from pyro_armed.objective import Objective
from pyro_armed.seeds import seeded, stream
from pyro_armed.training_state import State, Tensors
from pyro_armed.updates import Update

__all__ = [
    "COMPILE",
    "CompiledStep",
    "GradientGraph",
    "chosen",
    "compiler_found",
    "inductor_run",
    "traced",
    "unchecked_priors",
    "uncollected",
]

COMPILE = ("auto", "inductor", "trace", "off")

# Steps that repay the tracing (1 to 2 s) and Inductor's compiling (15 to 30 s, none where it is kept).
_TRACE_STEPS, _INDUCTOR_STEPS = 1_000, 20_000


def chosen(mode: str, steps: int, restarts: int) -> str:
    """How to run the steps of a fit: "off", "trace" or "inductor".

    Parameters
    ----------
    mode : str
        One of ``COMPILE``.
    steps : int
        Steps that the fit is expected to take. "auto" decides by them and not by the clock, for the same
        seed to give the same numbers.
    restarts : int
        Number of restarts, which share a graph.

    Returns
    -------
    str

    Examples
    --------
    >>> chosen("auto", 100, 4), chosen("auto", 3000, 1)
    ('off', 'trace')
    """
    if mode != "auto":
        return mode
    if steps * restarts < _TRACE_STEPS:
        return "off"
    return "inductor" if steps >= _INDUCTOR_STEPS and compiler_found() else "trace"


def compiler_found() -> bool:
    """Whether Inductor will find a C++ compiler."""
    named = os.environ.get("CXX")
    return any(shutil.which(name) for name in ([named] if named else ["g++", "clang++", "c++"]))


class GradientGraph:
    """The gradient of one restart's loss as a graph.

    Parameters
    ----------
    update : Update
        The step.
    values, fixed, batch : dict of str to Tensor
        Arguments of `Update.pure_gradient` to trace at.

    Attributes
    ----------
    update : Update
        The step.

    Raises
    ------
    Exception
        Whatever keeps PyTorch from tracing the model or the network.
    """

    def __init__(self, update: Update, values: Tensors, fixed: Tensors, batch: Tensors):
        self._names = [list(part) for part in (values, fixed, batch)]
        self.update = update
        weight = torch.ones((), dtype=torch.float64, device=next(iter(values.values())).device)
        example = [*values.values(), *fixed.values(), *batch.values(), weight]
        self.graph = purified(traced(torch.func.functionalize(self._listed), [t.clone() for t in example]))
        self.draws = draws_outside(self.graph)
        self._changes = self._changed_buffers()
        simplified(self.graph)

    @property
    def names(self) -> list[list[str]]:
        """Names of its arguments, and of the buffers that it changes."""
        return [*self._names, self._changes]

    @property
    def elements(self) -> int:
        """Numbers that one evaluation computes, a measure of its cost in time and memory."""
        results = [node.meta.get("val") for node in self.graph.graph.nodes if node.op == "call_function"]
        return sum(result.numel() for result in results if isinstance(result, Tensor))

    def __call__(
        self, values: Tensors, fixed: Tensors, batch: Tensors, weight: Tensor, noise: Sequence[Tensor]
    ) -> tuple[Tensors, Tensors, Tensor]:
        """Gradient, changed buffers and record, as `Update.pure_gradient`; the draws are an argument."""
        parts = (part.values() for part in (values, fixed, batch))
        found = self.graph(*(tensor for part in parts for tensor in part), weight, *noise)
        gradient = dict(zip(self._names[0], found, strict=False))
        buffers = dict(zip(self._names[1], found[len(gradient) :], strict=False))
        return gradient, {name: buffers[name] for name in self._changes}, found[-1]

    def _listed(self, *tensors: Tensor) -> list[Tensor]:
        left = iter(tensors)
        values, fixed, batch = ({name: next(left) for name in names} for names in self._names)
        gradient, buffers, record = self.update.pure_gradient(values, fixed, batch, next(left))
        return [*gradient.values(), *buffers.values(), record]

    def _changed_buffers(self) -> list[str]:
        """Buffers that a step changes; others come back as copies of the arguments."""
        (found,) = next(node for node in self.graph.graph.nodes if node.op == "output").args
        results = found[len(self._names[0]) :][: len(self._names[1])]
        return [
            name
            for name, node in zip(self._names[1], results, strict=True)
            if not (node.target is torch.ops.aten.clone.default and node.args[0].op == "placeholder")
        ]

    def check(self, update: Update, values: Tensors, fixed: Tensors, batch: Tensors) -> None:
        """Compare with the eager step of a restart, since a network may hide what tracing does not see.

        Parameters
        ----------
        update : Update
            The restart's step.
        values, fixed, batch : dict of str to Tensor
            Its parameters, buffers and rows; the comparison is made near these values, at the same draws.

        Raises
        ------
        RuntimeError
            Where the graph computes something else.
        """
        weight = torch.full((), 0.7, dtype=torch.float64, device=next(iter(values.values())).device)
        for seed in (1, 2):
            generator = torch.Generator(weight.device).manual_seed(seed)
            moved = {
                name: value + 0.05 * torch.empty_like(value).normal_(generator=generator)
                for name, value in values.items()
            }
            noise = [draw.like.clone() for draw in self.draws]
            generator.manual_seed(seed)
            for draw, numbers in zip(self.draws, noise, strict=True):
                draw.fill(numbers, generator)
            with torch.no_grad():
                found, _, record = self(moved, fixed, batch, weight, noise)
            copies = {name: tensor.clone() for name, tensor in fixed.items()}
            with seeded(seed, [weight.device]):
                expected, expected_record = update.gradient(moved, copies, batch, weight)
            _compare({**found, "": record}, {**expected, "": expected_record})


def _compare(found: Tensors, expected: Tensors) -> None:
    largest = max(float(tensor.abs().max()) for tensor in expected.values() if tensor.numel())
    for name, tensor in expected.items():
        try:
            torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4 * largest, equal_nan=True)
        except AssertionError as error:
            raise RuntimeError("a traced step computes something else than an eager one") from error


class CompiledStep:
    """A step of one or several restarts as a graph.

    Parameters
    ----------
    update : Update
        The step.
    gradient : GradientGraph
        Of one restart.
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
        gradient: GradientGraph,
        state: State,
        source: Tensors,
        rows: Tensor | None,
        controls: Tensor,
        *,
        inductor: bool,
    ):
        self.update, self.gradient, self.source = update, gradient, source
        self._state = list(state)
        lead = tuple(controls.shape[:-1])
        self._noise = [draw.like.new_empty(lead + draw.like.shape) for draw in gradient.draws]
        example = self._flat(state, rows, controls)
        self._run = self._by_inductor(example) if inductor else direct(self._traced(example))

    def seeded(self, seeds: Sequence[int]) -> Callable[[State, Tensor | None, Tensor], Tensor]:
        """The step as training takes it, its draws those of eager steps with these seeds.

        Parameters
        ----------
        seeds : sequence of int
            One for each restart.

        Returns
        -------
        callable
            Takes state, rows and controls as `Update`, and returns the record.
        """
        device = self._noise[0].device if self._noise else torch.device("cpu")
        generators = [torch.Generator(device).manual_seed(stream(seed, "training")) for seed in seeds]
        fills: list[tuple[Draw, Tensor, torch.Generator]] = []
        for draw, noise in zip(self.gradient.draws, self._noise, strict=True):
            parts = [noise] if len(seeds) == 1 else noise
            fills += [(draw, part, own) for part, own in zip(parts, generators, strict=True)]

        def step(state: State, rows: Tensor | None, controls: Tensor) -> Tensor:
            for draw, noise, generator in fills:
                draw.fill(noise, generator)
            (record,) = self._run(*self._flat(state, rows, controls))
            return record

        return step

    def _traced(self, example: Sequence[Tensor]) -> GraphModule:
        return _step_graph(lambda *tensors: [self._whole(*tensors)], example)

    def _by_inductor(self, example: Sequence[Tensor]) -> Callable[..., Any]:
        """The step as a library that outlives the process, or where there can be none as Inductor's code."""
        name = None
        if all(tensor.device.type == "cpu" for tensor in example):
            name = fingerprint(self.gradient.graph, example, self._facts())
        if name is not None:
            # An old compiler or an old PyTorch; what is wrong with the step itself shows below.
            with suppress(Exception):
                return kept_library(name, lambda: (self._traced(example), example))
        return inductor_run(self._traced(example), example)

    def _facts(self) -> list[object]:
        """All that the step depends on besides the graph of the gradient and the shapes of its arguments."""
        update = {name: value for name, value in vars(self.update).items() if name not in ("parts", "frame")}
        return [update, self._state, list(self.source), self.gradient.names]

    def _flat(self, state: State, rows: Tensor | None, controls: Tensor) -> list[Tensor]:
        given = [*(state[name] for name in self._state), *self.source.values(), controls, *self._noise]
        return given if rows is None else [*given, rows]

    def _whole(self, *tensors: Tensor) -> Tensor:
        """`Update.__call__` on a list of tensors, the gradient by its graph."""
        left = iter(tensors)
        state = {name: next(left) for name in self._state}
        source = {name: next(left) for name in self.source}
        controls = next(left)
        noise = [next(left) for _ in self._noise]
        rows = next(left, None)
        batch, present = self.update.select(source, rows)
        fixed = {name: state[name] for name in self.update.layout.fixed}
        run: Callable[..., Any] = self.gradient
        if controls.dim() > 1:
            run = torch.func.vmap(run, in_dims=(0, 0, None if rows is None else 0, 0, 0))
        gradient, buffers, record = run(
            self.update.values(state, present), fixed, batch, controls[..., 0], noise
        )
        for name, buffer in buffers.items():
            # A restart that has stopped has no learning rate any more.
            running = (controls[..., 1] > 0).reshape(controls.shape[:-1] + (1,) * (fixed[name].dim() - 1))
            state[name].copy_(buffer if controls.dim() == 1 else torch.where(running, buffer, fixed[name]))
        self.update.ascend(state, gradient, present, controls)
        return record


@contextmanager
def uncollected() -> Iterator[None]:
    """Pause Python's garbage collector: tracing makes many small objects, all of them still needed.

    A fifth of the time until the first compiled step went into looking for garbage.
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


@contextmanager
def unchecked_priors(objectives: Sequence[Objective]) -> Iterator[None]:
    """Keep the priors of the models from looking at values, which cannot be traced."""
    distributions: list[Any] = []
    for objective in objectives:
        distributions += [prior.raw for prior in objective.module.priors.values()]
    for one in distributions:  # grows while it is gone through
        if isinstance(getattr(one, "base_dist", None), torch.distributions.Distribution):
            distributions.append(one.base_dist)
    before = [one.__dict__.get("_validate_args") for one in distributions]
    for one in distributions:
        one._validate_args = False
    try:
        yield
    finally:
        for one, checked in zip(distributions, before, strict=True):
            if checked is None:  # it follows the default of its class
                one.__dict__.pop("_validate_args", None)
            else:
                one._validate_args = checked


def _step_graph(function: Callable[..., Any], example: Sequence[Tensor]) -> GraphModule:
    """A step as a graph: from the shapes of its arguments, of which no copy is made, if these say enough."""
    try:
        return simplified(traced(function, example, fake=True))
    except Exception:  # a size that depends on values
        return simplified(traced(function, [tensor.clone() for tensor in example]))


def traced(function: Callable[..., Any], example: Sequence[Tensor], fake: bool = False) -> GraphModule:
    """The function as a graph; ``fake``: from the shapes of its arguments alone, which are not copied."""
    # Imports torch._dynamo, which takes as long as the rest of PyTorch.
    from torch.fx.experimental.proxy_tensor import make_fx

    mode: Literal["fake", "real"] = "fake" if fake else "real"
    return make_fx(lambda *tensors: function(*tensors), tracing_mode=mode, _allow_non_fake_inputs=True)(
        *example
    )


def inductor_run(graph: GraphModule, example: Sequence[Tensor]) -> Callable[..., Any]:
    """The graph compiled by Inductor for tensors like the example."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own deprecations
        import torch._inductor
        from torch._guards import TracingContext, tracing
        from torch._subclasses import FakeTensorMode
        from torch.fx.experimental.symbolic_shapes import ShapeEnv

        def compiled(**options: Any) -> Callable[..., Any]:
            # Without a context of this kind Inductor does not use its cache on disk.
            context = TracingContext(FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True))
            with torch.no_grad(), tracing(context), torch._inductor.config.patch(options):
                return cast(Callable[..., Any], torch._inductor.compile(graph, list(example)))

        try:
            # What the processor says of its vector units is believed: to try each takes a compiler's run and
            # processes of their own at every start.
            return compiled(**{"cpp.vec_isa_ok": True})
        except Exception:  # an old compiler
            return compiled()
