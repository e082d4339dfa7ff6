"""L-BFGS for smooth functions of one vector, scaled by their curvature where that is known.

PyTorch's L-BFGS with its line search: it keeps to PyTorch's number of threads, where SciPy's, on a machine
with several cores, spends most of its time in threads that wait for one another.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

__all__ = ["Minimum", "curvature_scale", "minimise"]

Function = Callable[[Tensor], tuple[float, Tensor]]

_HISTORY = 20
# In place of what is not a number; the line search turns back.
_REFUSED = 1e15
# Rises and falls of less are rounding.
_NOISE = 1e-12


@dataclass(frozen=True)
class Minimum:
    """Where the search ended.

    Attributes
    ----------
    x : Tensor, shape (P,)
        The best point.
    value : float
        The function there.
    slope : float
        Largest entry of its gradient there.
    settled : bool
        Whether the search ended by itself, and not by the number of iterations.
    trace : list of float
        The value after each iteration.
    """

    x: Tensor
    value: float
    slope: float
    settled: bool
    trace: list[float]


class _Search:
    """The function, its last value kept: each step of the optimiser asks for that of the last one again."""

    def __init__(self, function: Function, start: Tensor):
        self.function, self.x = function, torch.nn.Parameter(start.clone())
        self.optimizer = torch.optim.LBFGS(
            [self.x],
            max_iter=1,
            max_eval=40,
            history_size=_HISTORY,
            tolerance_grad=0.0,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )
        self.last: Tensor | None = None
        self.value, self.gradient = math.inf, torch.zeros_like(start)

    def closure(self) -> float:
        """Value at the current point, its gradient stored."""
        x = self.x.detach()
        if self.last is None or not torch.equal(x, self.last):
            self.value, self.gradient = self._evaluated(x)
            self.last = x.clone()
        self.x.grad = self.gradient.clone()
        return self.value

    def _evaluated(self, x: Tensor) -> tuple[float, Tensor]:
        try:
            value, gradient = self.function(x)
        except LinAlgError:
            return _REFUSED, torch.zeros_like(x)
        if not math.isfinite(value) or not bool(gradient.isfinite().all()):
            return _REFUSED, torch.zeros_like(x)
        return value, gradient

    def advance(self) -> tuple[float, float]:
        """One iteration; the value and the slope after it."""
        self.optimizer.step(self.closure)
        value = self.closure()
        return value, float(self.gradient.abs().max())


def minimise(
    function: Function, start: Tensor, *, iterations: int, slope: float, gain: float = 0.0, window: int = 1
) -> Minimum:
    """Minimise a smooth function.

    Parameters
    ----------
    function : callable
        Value and gradient (P,) at a point (P,).
    start : Tensor, shape (P,)
        Where to begin.
    iterations : int
        Most iterations; each takes one evaluation or a few.
    slope : float
        Largest entry of the gradient at which the search ends.
    gain : float
        It also ends where the value has not fallen by more than this over ``window`` iterations.
    window : int
        See ``gain``.

    Returns
    -------
    Minimum

    Examples
    --------
    >>> def bowl(x):
    ...     return float((x - 1.0).square().sum()), 2 * (x - 1.0)
    >>> round(float(minimise(bowl, torch.zeros(3), iterations=20, slope=1e-6).x.sum()), 4)
    3.0
    """
    search = _Search(function, start)
    best = Minimum(start, search.closure(), float(search.gradient.abs().max()), False, [])
    if best.value < _REFUSED and best.slope <= slope:
        return Minimum(start, best.value, best.slope, True, [])
    trace = [best.value]
    for _ in range(iterations):
        value, steep = search.advance()
        trace.append(value)
        if value <= best.value:
            best = Minimum(search.x.detach().clone(), value, steep, False, [])
        fallen = trace[-1 - window] - value if len(trace) > window else math.inf
        if steep <= slope or fallen <= max(gain, _NOISE * abs(value)):
            return Minimum(best.x, best.value, best.slope, True, trace[1:])
    return Minimum(best.x, best.value, best.slope, False, trace[1:])


def curvature_scale(hessian: Tensor, least: float = 0.5) -> Tensor:
    """Directions and lengths along which a function with this Hessian is round, shape (P, P).

    Parameters
    ----------
    hessian : Tensor, shape (P, P)
        Anywhere; negative curvature counts as positive.
    least : float
        Curvature that directions have at least.

    Returns
    -------
    Tensor
        A matrix S with S' |H| S = 1 but for flat directions.

    Examples
    --------
    >>> curvature_scale(torch.diag(torch.tensor([4.0, 100.0]))).abs().sum(0)
    tensor([0.5000, 0.1000])
    """
    values, vectors = torch.linalg.eigh(hessian.nan_to_num(0.0))
    return vectors / values.abs().clamp_min(least).sqrt()
