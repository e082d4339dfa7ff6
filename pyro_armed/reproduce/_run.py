"""Running an application: fits, table, pictures, posterior."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from pyro_armed.baselines import Fitted, fits, score
from pyro_armed.errors import ArgumentError, DataError
from pyro_armed.files import write_netcdf, write_whole
from pyro_armed.plots import new_figure
from pyro_armed.reproduce._application import Application, Problem
from pyro_armed.reproduce._registry import APPLICATIONS

__all__ = ["APPLICATIONS", "Reproduction", "find", "run"]

_COLUMNS = ["baseline", "split", "metric", "value", "se"]


@dataclass(frozen=True, eq=False)
class Reproduction:
    """What came out. Prints its tables.

    Attributes
    ----------
    application : Application
        What was run.
    table : pandas.DataFrame
        One row for each replicate, baseline, split and metric: ``baseline``, ``split``, ``metric``,
        ``value``, ``se`` (over rows or groups), and ``seed`` or ``fold``. Limits are rows too.
    summary : pandas.DataFrame
        ``baseline``, ``split``, ``metric``, ``mean`` and ``se`` over replicates, ``replicates``.
    words : str
        The data in a sentence.
    files : tuple of Path
        What was written.
    """

    application: Application
    table: pd.DataFrame
    summary: pd.DataFrame
    words: str
    files: tuple[Path, ...] = ()

    def __str__(self) -> str:
        app = self.application
        parts = [self.words, _wide(self.summary, app)]
        if len(self.table[app.replicate].unique()) > 1:
            parts += [f"Each {app.replicate}:\n{_each(self.table, app)}"]
        parts += [app.note, "\n".join(f"Written: {path}" for path in self.files)]
        return "\n\n".join(part for part in parts if part)

    __repr__ = __str__


def find(name: str) -> Application:
    """An application by name; `ArgumentError` for one that is not known."""
    if name not in APPLICATIONS:
        raise ArgumentError(f"There is no application {name!r}; use one of {', '.join(APPLICATIONS)}.")
    return APPLICATIONS[name]


def run(
    application: str | Application,
    out: str | Path | None = None,
    *,
    seeds: int | None = None,
    quick: bool = False,
    data: Sequence[str | Path] = (),
    progressbar: bool = True,
) -> Reproduction:
    """Fit all baselines of an application to all replicates, and write table, pictures and posterior.

    Parameters
    ----------
    application : str or Application
        A name in `APPLICATIONS`, or one's own.
    out : path-like, optional
        Folder for ``NAME.csv``, ``NAME_summary.csv``, pictures and the full model's posterior of the first
        replicate, ``NAME.nc``; each is whole or not there. None: nothing is written.
    seeds : int, optional
        Number of replicates; None: the application's own.
    quick : bool
        Whether to do it in a size for tests; its figures mean nothing.
    data : sequence of path-like
        The user's own data, where the application reads any.
    progressbar : bool
        Whether to show progress.

    Returns
    -------
    Reproduction

    Raises
    ------
    ArgumentError, DataError
        For names, numbers and files that cannot be used.
    MissingDependencyError
        Where pictures are to be written and Matplotlib is not installed.

    Examples
    --------
    >>> from pyro_armed.reproduce import APPLICATIONS
    >>> list(APPLICATIONS)[:2]
    ['spirals', 'spirals-confounded']
    """
    app = find(application) if isinstance(application, str) else application
    count = _count(app, seeds, quick)
    if data and not app.reads:
        raise ArgumentError(f"{app.name} reads no files; leave out --data.")
    folder = None if out is None else _folder(Path(out))
    parts: list[pd.DataFrame] = []
    first: tuple[Problem, dict[str, Fitted]] | None = None
    total = count * len(app.baselines)
    with tqdm(total=total, desc=app.name, disable=not progressbar) as bar:
        for number in range(count):
            problem = app.problem(number, quick, [Path(path) for path in data])
            rows, fitted = _replicate(app, problem, number, bar, keep=number == 0)
            parts.append(rows.assign(**{app.replicate: number}))
            first = first or (problem, fitted)
    table = pd.concat(parts, ignore_index=True)
    problem, fitted = first  # type: ignore[misc]
    words = ("Simulated data. " if problem.simulated else "") + problem.words
    if quick:
        words += " Quick: a size for tests, and figures that mean nothing."
    result = Reproduction(app, table, summarised(table), words)
    if folder is None:
        return result
    return replace(result, files=tuple(_write(result, problem, fitted, folder)))


def _count(app: Application, seeds: int | None, quick: bool) -> int:
    if seeds is None:
        return app.quick_replicates if quick else app.replicates
    if not isinstance(seeds, int) or isinstance(seeds, bool) or seeds < 1:
        raise ArgumentError(f"seeds={seeds!r} must be a whole number of at least 1.")
    if app.most is not None and seeds > app.most:
        raise ArgumentError(f"{app.name} has {app.most} {app.replicate}s; {seeds} are too many.")
    return seeds


def _folder(out: Path) -> Path:
    new_figure()  # without Matplotlib this ends before any work is done
    if out.exists() and not out.is_dir():
        raise DataError(f"'{out}' is a file; name a folder with --out.")
    out.mkdir(parents=True, exist_ok=True)
    return out


def _replicate(
    app: Application, problem: Problem, number: int, bar: Any, *, keep: bool
) -> tuple[pd.DataFrame, dict[str, Fitted]]:
    """Rows of the table, and the fits where they are to be kept."""
    rows, kept = [], {}
    for name, fitted in fits(problem.task, baselines=app.baselines, seed=number, progressbar=False):
        rows.append(score(problem.task, fitted, seed=number).assign(baseline=name))
        further = app.measures(problem, name, fitted, number)
        if further is not None:
            rows.append(further.assign(baseline=name))
        if keep:
            kept[name] = fitted
        bar.update()
    for name, values in problem.limits.items():
        of_limit = [(name, split, metric, value) for (split, metric), value in values.items()]
        rows.append(pd.DataFrame(of_limit, columns=_COLUMNS[:4]))
    return pd.concat([part.reindex(columns=_COLUMNS) for part in rows if len(part)], ignore_index=True), kept


def summarised(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over replicates and its standard error, in the table's order."""
    groups = table.groupby(["baseline", "split", "metric"], sort=False, dropna=False)["value"]
    summary = groups.agg(mean="mean", se=lambda v: v.std(ddof=1) / len(v) ** 0.5, replicates="size")
    return summary.reset_index()


def _write(result: Reproduction, problem: Problem, fitted: Mapping[str, Fitted], folder: Path) -> list[Path]:
    """Everything is made before anything is written."""
    app = result.application
    figures = app.pictures(problem, fitted, 0)
    writers: dict[str, Callable[[Path], object]] = {
        f"{app.name}.csv": lambda draft: result.table.to_csv(draft, index=False),
        f"{app.name}_summary.csv": lambda draft: result.summary.to_csv(draft, index=False),
    }
    for name, figure in figures.items():
        writers[f"{name}.png"] = lambda draft, figure=figure: figure.savefig(draft, dpi=150)  # type: ignore[misc]
    for name, write in writers.items():
        write_whole(folder / name, write)
    files = [folder / name for name in writers]
    full = fitted.get(app.full)
    if full is not None and full.model is not None:
        files.append(folder / f"{app.name}.nc")
        write_netcdf(files[-1], full.model.idata)
    return files


def _shown(rows: pd.DataFrame, app: Application) -> pd.DataFrame:
    """Rows of the splits and metrics to print, in the order that the application gives."""
    if not app.shown:
        return rows
    order = {pair: i for i, pair in enumerate(app.shown)}
    place = [order.get(pair, len(order)) for pair in zip(rows["split"], rows["metric"], strict=True)]
    kept = rows.assign(place=place)
    return kept[kept["place"] < len(order)].sort_values("place", kind="stable").drop(columns="place")


def _wide(summary: pd.DataFrame, app: Application) -> str:
    """Mean (standard error) of each baseline, one line each."""
    rows = _shown(summary, app)
    cells = [
        f"{mean:.3f}" + (f" ({se:.3f})" if pd.notna(se) else "")
        for mean, se in zip(rows["mean"], rows["se"], strict=True)
    ]
    names = [f"{split} {metric}" for split, metric in zip(rows["split"], rows["metric"], strict=True)]
    return _pivot(rows.assign(cell=cells, name=names), summary, "name", "cell")


def _each(table: pd.DataFrame, app: Application) -> str:
    """The first of the metrics to print for each replicate."""
    shown = _shown(table, app)
    split, metric = shown.iloc[0][["split", "metric"]]
    rows = shown[(shown["split"] == split) & (shown["metric"] == metric)]
    rows = rows.assign(cell=[f"{value:.3f}" for value in rows["value"]])
    return f"{split} {metric}\n{_pivot(rows, table, app.replicate, 'cell')}"


def _pivot(rows: pd.DataFrame, all_rows: pd.DataFrame, columns: str, values: str) -> str:
    wide = rows.pivot(index="baseline", columns=columns, values=values)
    wide = wide.reindex(index=[n for n in all_rows["baseline"].unique() if n in wide.index])
    wide = wide.reindex(columns=list(dict.fromkeys(rows[columns]))).fillna("")
    wide.index.name = wide.columns.name = None
    width = max(map(len, wide.index))
    wide.index = [name.ljust(width) for name in wide.index]
    return wide.to_string()
