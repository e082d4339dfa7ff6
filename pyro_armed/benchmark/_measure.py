"""Measuring: processor time of interleaved rounds, peak memory in a process of its own, rows of the table."""

from __future__ import annotations

import ctypes
import gc
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

__all__ = [
    "COLUMNS",
    "Rounds",
    "Summary",
    "call_in_child",
    "interleaved",
    "limits",
    "one_thread",
    "peak_memory",
    "reset_peak_memory",
    "row",
    "table",
]

COLUMNS = (
    "benchmark",
    "quantity",
    "case",
    "size",
    "ratio",
    "low",
    "high",
    "to",
    "target",
    "met",
    "note",
)

# A round of one case takes about as long, and its clock ticks in nanoseconds.
_SLICE = 0.02


@dataclass(frozen=True)
class Summary:
    """A ratio over rounds: the median, and the quartiles where there were several."""

    ratio: float
    low: float = float("nan")
    high: float = float("nan")


@dataclass(frozen=True)
class Rounds:
    """Processor seconds per step of each case in each round.

    Attributes
    ----------
    seconds : dict of str to list of float
        As many numbers for each case.
    """

    seconds: Mapping[str, Sequence[float]]

    def ratio(self, case: str, to: str) -> Summary:
        """The case's time over that of another, round by round.

        Parameters
        ----------
        case, to : str
            Names of cases.

        Returns
        -------
        Summary

        Examples
        --------
        >>> Rounds({"a": [2.0, 3.0, 8.0], "b": [1.0, 1.0, 2.0]}).ratio("a", "b").ratio
        3.0
        """
        found = np.asarray(self.seconds[case]) / np.asarray(self.seconds[to])
        low, middle, high = np.quantile(found, (0.25, 0.5, 0.75))
        return Summary(float(middle), float(low), float(high))


def interleaved(steps: Mapping[str, Callable[[], object]], *, rounds: int) -> Rounds:
    """Time steps in turn, so that whatever else the machine does meets all of them alike.

    Parameters
    ----------
    steps : mapping of str to callable
        Each does one step.
    rounds : int
        How often each has its turn.

    Returns
    -------
    Rounds
        Processor time, which other processes do not add to.

    Examples
    --------
    >>> found = interleaved({"short": lambda: sum(range(10)), "long": lambda: sum(range(9000))}, rounds=3)
    >>> found.ratio("long", "short").ratio > 1
    True
    """
    counts = {name: _count(step) for name, step in steps.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    gc.collect()
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.process_time()
            for _ in range(counts[name]):
                step()
            seconds[name].append((time.process_time() - start) / counts[name])
    return Rounds(seconds)


def _count(step: Callable[[], object]) -> int:
    """Steps for a turn; the first ones, which fill caches, are not looked at."""
    step()
    single = []
    for _ in range(3):
        start = time.process_time()
        step()
        single.append(time.process_time() - start)
    return max(1, round(_SLICE / max(statistics.median(single), 1e-6)))


@contextmanager
def one_thread() -> Iterator[None]:
    """Run PyTorch on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def row(
    benchmark: str,
    quantity: str,
    case: str,
    found: Summary | float | None = None,
    *,
    to: str,
    size: float | None = None,
    target: str = "",
    note: str = "",
    failed: bool = False,
) -> dict[str, Any]:
    """One line of the table.

    Parameters
    ----------
    benchmark, quantity, case : str
        Which benchmark, what was measured, and of what.
    found : Summary or float, optional
        The ratio; None where it could not be measured.
    to : str
        What it is a ratio to.
    size : float, optional
        Number of groups, rows or restarts.
    target : str
        What was aimed at: ``"<= 1.2"``, ``">= 8"`` or ``"0.9 to 1.1"``; none if empty.
    note : str
        A word on the figure.
    failed : bool
        Whether the target is missed whatever the ratio.

    Returns
    -------
    dict

    Examples
    --------
    >>> row("steps", "time", "a step", 1.1, to="another", target="<= 1.2")["met"]
    'yes'
    """
    if not isinstance(found, Summary):
        found = Summary(float("nan") if found is None else float(found))
    known = bool(target) and (failed or not math.isnan(found.ratio))
    met = "" if not known else "yes" if not failed and _within(found.ratio, target) else "no"
    values = (benchmark, quantity, case, size, found.ratio, found.low, found.high, to, target, met, note)
    return dict(zip(COLUMNS, values, strict=True))


def limits(target: str) -> tuple[float, float]:
    """Least and largest ratio of a target.

    Examples
    --------
    >>> limits("<= 1.2"), limits(">= 8"), limits("0.9 to 1.1")
    ((0.0, 1.2), (8.0, inf), (0.9, 1.1))
    """
    first, *rest = target.split()
    if first == "<=":
        return 0.0, float(rest[0])
    return (float(rest[0]), math.inf) if first == ">=" else (float(first), float(rest[-1]))


def _within(ratio: float, target: str) -> bool:
    least, largest = limits(target)
    return least <= ratio <= largest


def table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Lines as a data frame with the columns of ``COLUMNS``."""
    frame = pd.DataFrame(list(rows), columns=list(COLUMNS))
    numbers = ["size", "ratio", "low", "high"]
    return frame.assign(**{name: frame[name].astype(float) for name in numbers})


# --- memory ------------------------------------------------------------------------------------------------


def peak_memory() -> int:
    """Most bytes that this process has held in memory at once, since `reset_peak_memory` where that works."""
    known = _status("VmHWM")
    if known is not None:  # not getrusage: a child inherits its parent's peak there
        return known
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_memory() -> int:
    """Count the peak from now on where the system lets one, and return the bytes that are held now."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)  # what was freed would be used again, and not seen
    with suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
    return _status("VmRSS") or peak_memory()


def _status(name: str) -> int | None:
    """A size in bytes from Linux's account of this process."""
    try:
        with open("/proc/self/status", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
    except (OSError, StopIteration):
        return None


def call_in_child(module: str, function: str, *arguments: Any) -> Any:
    """Call a function in a Python process of its own, on one thread.

    Parameters
    ----------
    module, function : str
        Where the function is.
    *arguments
        What JSON can carry.

    Returns
    -------
    object
        What the function returned, through JSON.

    Raises
    ------
    RuntimeError
        Where the process failed.

    Examples
    --------
    >>> call_in_child("math", "sqrt", 4)
    2.0
    """
    code = (
        "import importlib, json, sys; module, function, arguments = json.load(sys.stdin); "
        "found = getattr(importlib.import_module(module), function)(*arguments); "
        "sys.stdout.write(json.dumps(found))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        input=json.dumps([module, function, arguments]),
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"{module}.{function} failed in its own process: {last}")
    return json.loads(done.stdout)
