"""Benchmarks: what steps and fits cost, every figure a ratio within the run.

Times are processor time on one thread, of interleaved rounds; the table has their median and quartiles. The
command is ``pyro-armed benchmark``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pandas as pd
from tqdm.auto import tqdm

from pyro_armed.benchmark._insteval import insteval
from pyro_armed.benchmark._machine import machine
from pyro_armed.benchmark._measure import COLUMNS, one_thread, row, table
from pyro_armed.benchmark._plots import draw
from pyro_armed.benchmark._scaling import groups, memory, restarts, rows
from pyro_armed.benchmark._steps import steps
from pyro_armed.benchmark._structured import nuts, structured
from pyro_armed.errors import ArgumentError, MissingDependencyError

__all__ = ["BENCHMARKS", "COLUMNS", "check_names", "describe", "draw", "machine", "run"]

BENCHMARKS: dict[str, Callable[[bool, int], pd.DataFrame]] = {
    "steps": steps,
    "structured": structured,
    "restarts": restarts,
    "groups": groups,
    "rows": rows,
    "memory": memory,
    "insteval": insteval,
    "nuts": nuts,
}


def describe() -> pd.DataFrame:
    """Names of the benchmarks and what each measures.

    Returns
    -------
    pandas.DataFrame
        Columns ``benchmark`` and ``about``.

    Examples
    --------
    >>> describe()["benchmark"].to_list()[:2]
    ['steps', 'structured']
    """
    about = [(function.__doc__ or "").splitlines()[0].rstrip(".") for function in BENCHMARKS.values()]
    return pd.DataFrame({"benchmark": list(BENCHMARKS), "about": about})


def check_names(names: Sequence[str] | None) -> list[str]:
    """Names of benchmarks, each once, in the order in which they are run.

    Parameters
    ----------
    names : sequence of str, optional
        None: all.

    Returns
    -------
    list of str

    Raises
    ------
    ArgumentError
        For a name that is not known.

    Examples
    --------
    >>> check_names(["rows", "steps"])
    ['steps', 'rows']
    """
    if names is None:
        return list(BENCHMARKS)
    for name in names:
        if name not in BENCHMARKS:
            raise ArgumentError(f"There is no benchmark {name!r}; there are {', '.join(BENCHMARKS)}.")
    return [name for name in BENCHMARKS if name in names]


def run(
    names: Sequence[str] | None = None, *, quick: bool = False, seed: int = 0, progressbar: bool = True
) -> Iterator[pd.DataFrame]:
    """Run benchmarks one after another.

    Parameters
    ----------
    names : sequence of str, optional
        Which; None: all, which takes about a quarter of an hour.
    quick : bool
        Small sizes and few rounds: seconds, and figures that mean little.
    seed : int
        Seed of data and fits.
    progressbar : bool
        Whether to show progress.

    Yields
    ------
    pandas.DataFrame
        Rows of one benchmark. Columns ``benchmark``, ``quantity`` and ``case`` (what was measured), ``size``
        (groups, rows or restarts), ``ratio`` with the quartiles ``low`` and ``high`` over rounds, ``to``
        (what it is a ratio to), ``target``, ``met`` ("yes", "no", or nothing) and ``note``. Without a package
        that a benchmark needs the ratio is missing, and the note says which.

    Raises
    ------
    ArgumentError
        For a name that is not known.

    Examples
    --------
    >>> (frame,) = run(["rows"], quick=True, progressbar=False)
    >>> frame["size"].to_list()
    [1000.0, 2000.0]
    """
    chosen = check_names(names)
    with tqdm(chosen, disable=not progressbar, leave=False) as bar:
        for name in bar:
            bar.set_description(name)
            try:
                with one_thread():
                    frame = BENCHMARKS[name](quick, seed)
                if quick:  # targets are for the full sizes
                    frame = frame.assign(target="", met="")
            except MissingDependencyError as error:
                frame = table([row(name, name, "all", to="", note=f"not installed: {error}")])
            yield frame
