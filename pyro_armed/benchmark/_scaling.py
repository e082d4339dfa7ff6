"""How a step's time and memory grow: restarts side by side, groups, rows."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from pyro_armed.batch import Batch
from pyro_armed.benchmark._measure import (
    call_in_child,
    interleaved,
    one_thread,
    peak_memory,
    reset_peak_memory,
    row,
    table,
)
from pyro_armed.benchmark._models import BATCH, groups_model, library_step, objectives, spirals_model
from pyro_armed.benchmark._steps import compiled_modes
from pyro_armed.seeds import seeded
from pyro_armed.training import TrainingSettings, train_restarts
from pyro_armed.training_state import Layout, initial_state, sparse_groups

__all__ = ["groups", "memory", "memory_use", "restarts", "rows"]

_MEBIBYTE = 2.0**20
_MEMORY_STEPS = 200


def restarts(quick: bool, seed: int) -> pd.DataFrame:
    """Time of a step of several restarts side by side over that of one; the spirals model.

    Parameters
    ----------
    quick : bool
        One and two restarts, few rounds, no Inductor.
    seed : int
        Seed.

    Returns
    -------
    pandas.DataFrame
        See `run`.
    """
    model = spirals_model(100 if quick else 1000, seed)
    return _grow(
        "restarts",
        [1, 2] if quick else [1, 2, 4, 8],
        lambda count, mode: library_step(model, mode, count, seed=seed),
        ("1 restart", {4: "<= 1.6"}),
        quick,
        seed,
    )


def groups(quick: bool, seed: int) -> pd.DataFrame:
    """Time of a step with more and more groups, the batch the same, over that with a hundred.

    Parameters
    ----------
    quick : bool
        A hundred and a thousand groups, few rounds, no Inductor.
    seed : int
        Seed.

    Returns
    -------
    pandas.DataFrame
        See `run`.
    """
    sizes = [100, 1000] if quick else [100, 10_000, 1_000_000]
    return _grow(
        "groups",
        sizes,
        lambda count, mode: library_step(groups_model(count, max(count, 10_000), seed), mode, seed=seed),
        ("100 groups", {1_000_000: "<= 1.3"}),
        quick,
        seed,
    )


def rows(quick: bool, seed: int) -> pd.DataFrame:
    """Time of a step with more and more rows, batch and groups the same, over that with ten thousand.

    Parameters
    ----------
    quick : bool
        One and two thousand rows, few rounds, no Inductor.
    seed : int
        Seed.

    Returns
    -------
    pandas.DataFrame
        See `run`.
    """
    sizes = [1000, 2000] if quick else [10_000, 100_000, 1_000_000]
    return _grow(
        "rows",
        sizes,
        lambda count, mode: library_step(groups_model(100, count, seed), mode, seed=seed),
        (f"{sizes[0]} rows", {}),
        quick,
        seed,
    )


def _grow(
    benchmark: str,
    sizes: Sequence[int],
    make: Callable[[int, str], Callable[[], object]],
    reference: tuple[str, dict[int, str]],
    quick: bool,
    seed: int,
) -> pd.DataFrame:
    to, targets = reference
    lines: list[dict[str, Any]] = []
    with seeded(seed):
        for mode in compiled_modes(quick):
            found = interleaved({str(n): make(n, mode) for n in sizes}, rounds=5 if quick else 40)
            for n in sizes:
                ratio = found.ratio(str(n), str(sizes[0]))
                case, target = f'compile="{mode}"', targets.get(n, "")
                lines.append(row(benchmark, "step time", case, ratio, to=to, size=n, target=target))
    return table(lines)


# --- memory ------------------------------------------------------------------------------------------------


def memory(quick: bool, seed: int) -> pd.DataFrame:
    """Peak memory with more and more groups, each in a process of its own, over that with a hundred.

    Parameters
    ----------
    quick : bool
        A hundred and ten thousand groups.
    seed : int
        Seed.

    Returns
    -------
    pandas.DataFrame
        See `run`: what training adds to the process beyond its parameter tables, and the peak of the whole
        process, in which the model was made from arrays.
    """
    sizes = [100, 10_000] if quick else [100, 10_000, 1_000_000]
    found = {n: call_in_child(__name__, "memory_use", n, max(n, 10_000), seed) for n in sizes}
    lines = []
    for quantity, key in (("training, tables apart", "training"), ("peak of the process", "process")):
        least = found[sizes[0]][key]
        for n in sizes:
            use = found[n][key]
            note = f"{use / _MEBIBYTE:.0f} MiB"
            target = "<= 1.15" if key == "training" and n > sizes[0] else ""
            to = f"{sizes[0]} groups"
            ratio = use / least
            lines.append(row("memory", quantity, "a process", ratio, to=to, size=n, target=target, note=note))
    return table(lines)


def memory_use(groups: int, rows: int, seed: int) -> dict[str, int]:
    """Bytes that a process needs to trace and take some steps; to be called in a process of its own.

    Parameters
    ----------
    groups, rows, seed : int
        See `groups_model`.

    Returns
    -------
    dict
        ``training``: what planning and taking steps adds, the tables of parameters and Adam's moments taken
        off; ``process``: its peak, the making of the model included.
    """
    model = groups_model(groups, rows, seed)
    (part,) = objectives(model, 1, seed)
    data: Batch = part.module.data  # type: ignore[assignment]
    settings = TrainingSettings(
        batch_size=BATCH, max_steps=_MEMORY_STEPS, early_stopping=False, compile="trace"
    )
    del model
    gc.collect()
    whole = peak_memory()
    before = reset_peak_memory()
    with one_thread():
        train_restarts([part], data, settings, [seed], progressbar=False)
    peak = peak_memory()
    state = initial_state(Layout.of(part, sparse_groups(part, data, BATCH)), [part])
    tables = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    return {"training": peak - before - tables, "process": max(whole, peak)}
