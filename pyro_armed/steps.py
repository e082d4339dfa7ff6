"""How the steps of a fit are run: eagerly or as graphs, one restart after another or side by side."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from pyro_armed.batch import Batch
from pyro_armed.compiled import CompiledStep, GradientGraph, chosen, compiler_found, uncollected
from pyro_armed.errors import CompilationWarning
from pyro_armed.objective import Objective
from pyro_armed.training_state import Layout, State, Tensors, blank_state, first_values, sparse_groups
from pyro_armed.updates import Update

__all__ = ["Step", "StepPlan", "first_controls", "plan_steps", "reason"]

Step = Callable[[State, Tensor | None, Tensor], Tensor]

# Above this a step's time goes into arithmetic, which restarts side by side do not save, and memory counts.
_TOGETHER = 1_000_000


@dataclass(frozen=True)
class StepPlan:
    """How the steps of some restarts are run.

    Attributes
    ----------
    data : Batch
        All rows.
    size : int
        Rows per step.
    clip : float
        See `Update`.
    sparse : tuple of str
        See `Update`.
    layout : Layout
        Layout of the state.
    compiled : CompiledStep or None
        None: eager steps.
    side_by_side : int
        Restarts that take their steps together.
    """

    data: Batch
    size: int
    clip: float
    sparse: tuple[str, ...]
    layout: Layout
    compiled: CompiledStep | None = None
    side_by_side: int = 1

    def step(self, objectives: Sequence[Objective], seeds: Sequence[int]) -> Step:
        """The step of some restarts.

        Parameters
        ----------
        objectives : sequence of Objective
            As many as go side by side.
        seeds : sequence of int
            Seeds of the draws of compiled steps; eager ones draw from torch's global state.

        Returns
        -------
        callable
            Takes the state, the rows and the controls of a step, and returns its record; see `Update`.
        """
        if self.compiled is not None:
            return self.compiled.seeded(seeds)
        return partial(_eager, self.update(objectives[0]), self.data.tensors())

    def update(self, objective: Objective) -> Update:
        """One restart's step."""
        return Update(objective, self.data, self.size, self.clip, self.sparse)


def _eager(update: Update, source: Tensors, state: State, rows: Tensor | None, controls: Tensor) -> Tensor:
    return update(state, source, rows, controls)


def first_controls(objectives: Sequence[Objective], learning_rate: float, device: torch.device) -> Tensor:
    """Controls of the first step, shape (3,) or (R, 3): no adversary yet, and the learning rates."""
    head = objectives[0].adversary
    own = learning_rate if head is None else head.settings.learning_rate
    controls = torch.tensor([0.0, learning_rate, own], dtype=torch.float64, device=device)
    return controls if len(objectives) == 1 else controls.repeat(len(objectives), 1)


def plan_steps(
    objectives: Sequence[Objective], data: Batch, *, size: int, clip: float, mode: str, steps: int
) -> StepPlan:
    """Decide how to run the steps of a fit, and compile them.

    Parameters
    ----------
    objectives : sequence of Objective
        One for each restart, in training mode.
    data : Batch
        All rows.
    size : int
        Rows per step.
    clip : float
        See `Update`.
    mode : str
        One of `COMPILE`.
    steps : int
        Steps that a restart is expected to take.

    Returns
    -------
    StepPlan

    Warns
    -----
    CompilationWarning
        With the reason, where the steps cannot be compiled, or not by Inductor.
    """
    sparse = sparse_groups(objectives[0], data, size)
    plan = StepPlan(data, size, clip, sparse, Layout.of(objectives[0], sparse))
    how = chosen(mode, steps, len(objectives))
    if how == "off" or any(Layout.of(one, sparse) != plan.layout for one in objectives):
        return plan
    try:
        with uncollected():
            return _as_graph(plan, objectives, how)
    except Exception as error:  # a network or a family of the user's may do anything
        _warn(f"Training steps cannot be traced ({reason(error)}); they run eagerly, which takes longer.")
        return plan


def _as_graph(plan: StepPlan, objectives: Sequence[Objective], how: str) -> StepPlan:
    gradient = _traced(plan, objectives)
    if len(objectives) > 1 and gradient.elements <= _TOGETHER:
        with suppress(Exception):  # operators that `vmap` does not know
            together = _compiled(plan, gradient, objectives, how)
            return replace(plan, compiled=together, side_by_side=len(objectives))
    return replace(plan, compiled=_compiled(plan, gradient, objectives[:1], how))


def _traced(plan: StepPlan, objectives: Sequence[Objective]) -> GradientGraph:
    """The gradient's graph, compared with the eager gradient of each restart."""
    gradient: GradientGraph | None = None
    for objective in objectives:
        update = plan.update(objective)
        rows = None if plan.size == plan.data.n_rows else torch.arange(plan.size, device=plan.data.device)
        batch, present = update.select(plan.data.tensors(), rows)
        values, fixed = first_values(plan.layout, objective, present)
        if gradient is None:
            gradient = GradientGraph(update, values, fixed, batch)
        gradient.check(update, values, fixed, batch)
    return gradient  # type: ignore[return-value]


def _compiled(
    plan: StepPlan, gradient: GradientGraph, objectives: Sequence[Objective], how: str
) -> CompiledStep:
    rows = None
    if plan.size < plan.data.n_rows:
        rows = torch.arange(plan.size, device=plan.data.device)
        rows = rows if len(objectives) == 1 else rows.repeat(len(objectives), 1)
    state = blank_state(plan.layout, objectives)
    controls = first_controls(objectives, 0.01, plan.data.device)
    example = (gradient.update, gradient, state, plan.data.tensors(), rows, controls)
    if how == "inductor":
        if not compiler_found():
            _warn("Inductor needs a C++ compiler (CXX, g++ or clang++), and there is none; steps are traced.")
        else:
            try:
                return CompiledStep(*example, inductor=True)
            except Exception as error:  # compilers fail in many ways
                _warn(f"Inductor cannot compile the training steps ({reason(error)}); they are traced.")
    return CompiledStep(*example, inductor=False)


def reason(error: Exception) -> str:
    """An error in a few words, for a warning."""
    lines = str(error).strip().splitlines()
    text = lines[0].rstrip(".") if lines else ""
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def _warn(message: str) -> None:
    warnings.warn(message, CompilationWarning, stacklevel=2)
