"""The marginal likelihood of the structured guide's SVI steps and its gradient, traced once.

Eager steps decide by the numbers how many Newton steps the group effects need. A graph cannot: it takes two,
or three where two are too few, from where the guide expects the mode, then the one whose derivative counts,
and says how long the last but one was. Where that was too long, or a factorisation failed, the caller takes
an eager step instead.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from pyro_armed.compiled import compiler_found, inductor_run, traced, unchecked_priors, uncollected
from pyro_armed.conditional import GroupConditional
from pyro_armed.errors import CompilationWarning
from pyro_armed.global_draws import chunks, marginal
from pyro_armed.graphs import direct, masks_as_positions, simplified
from pyro_armed.seeds import generator_for
from pyro_armed.steps import reason
from pyro_armed.structured import StructuredGuide
from pyro_armed.training import no_validation

__all__ = ["MarginalGraph", "marginal_graph"]

# Posterior sds of the last Newton step but one; the error of the gradient is of the order of its square.
_ARRIVED = 0.1
_FEWEST_STEPS, _MOST_STEPS, _TRIED = 2, 3, 16


class MarginalGraph:
    """log p(y, theta), the effects integrated out by Laplace, and its gradient as a graph.

    Parameters
    ----------
    guide : StructuredGuide
        What it remembers of the effects' mode becomes part of the graph.
    theta : Tensor, shape (S, P)
        Values to trace at.
    inductor : bool
        Whether Inductor compiles the graph.
    steps : int
        Newton steps before the one whose derivative counts.

    Raises
    ------
    Exception
        Whatever keeps PyTorch from tracing the model, or Inductor from compiling it.
    """

    def __init__(self, guide: StructuredGuide, theta: Tensor, *, inductor: bool, steps: int = _FEWEST_STEPS):
        self._guide, self.shape, self._steps = guide, theta.shape, steps
        module: Any = guide.conditional
        with uncollected(), no_validation(), unchecked_priors([module]):
            graph = masks_as_positions(simplified(traced(self._evaluated, [theta])))
            self._run = inductor_run(graph, [theta]) if inductor else direct(graph)

    def __call__(self, theta: Tensor) -> tuple[Tensor, Tensor] | None:
        """Values (S,) and gradients (S, P) at theta (S, P); None where Newton's method needs more steps."""
        try:
            with torch.no_grad():
                value, gradient, length = self._run(theta)
        except LinAlgError:
            return None
        good = value.isfinite().all() & gradient.isfinite().all() & (length < _ARRIVED).all()
        return (value, gradient) if bool(good) else None

    def _evaluated(self, theta: Tensor) -> list[Tensor]:
        with torch.enable_grad():
            leaf = theta.detach().requires_grad_()
            value, length = self._marginal(leaf)
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        return [value.detach(), gradient, length]

    def _marginal(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        conditional = self._guide.conditional
        if not conditional.groups or not isinstance(conditional, GroupConditional):
            return marginal(self._guide, theta), theta.new_zeros(len(theta))
        values, log_prior = self._guide.space.evaluate(theta)
        problem = conditional.problem(values)
        effects, length = conditional.solve_blindly(problem, self._guide.start_at(theta, values), self._steps)
        return log_prior + conditional.laplace(problem, effects), length


def marginal_graph(guide: StructuredGuide, theta: Tensor, how: str) -> MarginalGraph | None:
    """The graph, compared with the eager function; None, with a warning, where there is none.

    Parameters
    ----------
    guide : StructuredGuide
        The guide.
    theta : Tensor, shape (S, P)
        Values to trace at.
    how : str
        One of ``COMPILE``. "auto" stands for eager steps: a fit takes too few to repay the tracing.

    Returns
    -------
    MarginalGraph or None

    Warns
    -----
    CompilationWarning
        With the reason, where the steps cannot be compiled, or not by Inductor.
    """
    if how not in ("trace", "inductor"):
        return None
    inductor = how == "inductor"
    if inductor and not compiler_found():
        _warn("Inductor needs a C++ compiler (CXX, g++ or clang++), and there is none; steps are traced.")
        inductor = False
    theta = theta.detach()
    try:
        steps = _newton_steps(guide)
        if inductor:
            try:
                return _checked(MarginalGraph(guide, theta, inductor=True, steps=steps), guide, theta)
            except Exception as error:  # compilers fail in many ways
                _warn(f"Inductor cannot compile the structured guide's steps ({reason(error)}).")
        return _checked(MarginalGraph(guide, theta, inductor=False, steps=steps), guide, theta)
    except Exception as error:  # a family of the user's may do anything
        _warn(f"The structured guide's steps cannot be traced ({reason(error)}); they run eagerly.")
        return None


@torch.no_grad()
def _newton_steps(guide: StructuredGuide) -> int:
    """Newton steps that take the effects to their mode at draws of the guide."""
    conditional = guide.conditional
    if not conditional.groups or not isinstance(conditional, GroupConditional):
        return _FEWEST_STEPS
    mean, factor = guide.mean_and_factor()
    noise = torch.randn(_TRIED, len(mean), generator=generator_for(0, "newton steps"), dtype=mean.dtype)
    for theta in chunks(guide, mean + noise @ factor.mT):
        values, _ = guide.space.evaluate(theta)
        problem = conditional.problem(values)
        try:
            _, length = conditional.solve_blindly(problem, guide.start_at(theta, values), _FEWEST_STEPS)
        except LinAlgError:
            continue
        if not bool((length < _ARRIVED).all()):
            return _MOST_STEPS
    return _FEWEST_STEPS


def _checked(graph: MarginalGraph, guide: StructuredGuide, theta: Tensor) -> MarginalGraph:
    found = graph(theta)
    if found is None:  # nothing to compare with here; the caller sees the same
        return graph
    leaf = theta.clone().requires_grad_()
    value = marginal(guide, leaf)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    scale = 1e-4 * max(1.0, float(gradient.abs().max()) / math.sqrt(len(theta)))
    for one, other in zip(found, (value.detach(), gradient), strict=True):
        if not torch.allclose(one, other, rtol=1e-3, atol=scale):
            raise RuntimeError("a traced step computes something else than an eager one")
    return graph


def _warn(message: str) -> None:
    warnings.warn(message, CompilationWarning, stacklevel=2)
