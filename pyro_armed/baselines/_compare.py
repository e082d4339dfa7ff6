"""All baselines on one task, as a tidy table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from pyro_armed import metrics
from pyro_armed.baselines._configurations import BASELINES, Baseline
from pyro_armed.baselines._fitted import Fitted
from pyro_armed.baselines._task import Rows, Task
from pyro_armed.errors import ArgumentError
from pyro_armed.seeds import stream

__all__ = ["chosen", "compare", "fits", "score"]


def compare(
    task: Task,
    *,
    baselines: Sequence[str | Baseline] | None = None,
    seed: int = 0,
    progressbar: bool = True,
) -> pd.DataFrame:
    """Fit baselines to the same rows with the same network and budget, and score them on the same others.

    Parameters
    ----------
    task : Task
        Rows, network and budget.
    baselines : sequence of str or Baseline, optional
        Names in `BASELINES`, or others; None: all of those.
    seed : int
        The same seed gives the same numbers.
    progressbar : bool
        Whether to show progress.

    Returns
    -------
    pandas.DataFrame
        Columns ``baseline``, ``split`` ("seen", "unseen"), ``metric``, ``value``, ``se`` and ``seed``. See
        `score`; the standard error is that over rows, for unseen groups over groups if that is larger.

    Raises
    ------
    ArgumentError
        For a name that is not known, and for what `ARMED` cannot use.

    Examples
    --------
    >>> import pyro_armed as pa
    >>> frame = pa.simulate.spirals(4, 25, seed=0).frame
    >>> rows = Rows(frame[["x1", "x2"]], frame["y"], {"group": frame["group"]})
    >>> task = Task(rows, rows, "group", lambda: pa.networks.MLP((4,)), fit={"epochs": 2, "draws": 10})
    >>> table = compare(task, baselines=["conventional", "random effects"], progressbar=False)
    >>> table["metric"].unique().tolist(), len(table)
    (['accuracy', 'auroc', 'nlpd'], 6)
    """
    parts = []
    for name, fitted in fits(task, baselines=baselines, seed=seed, progressbar=progressbar):
        parts.append(score(task, fitted, seed=seed).assign(baseline=name, seed=seed))
    columns = ["baseline", "split", "metric", "value", "se", "seed"]
    return pd.concat(parts, ignore_index=True)[columns]


def fits(
    task: Task,
    *,
    baselines: Sequence[str | Baseline] | None = None,
    seed: int = 0,
    progressbar: bool = True,
) -> Iterator[tuple[str, Fitted]]:
    """Fit baselines one after another; arguments as for `compare`.

    Yields
    ------
    tuple of str and Fitted
    """
    for one in tqdm(chosen(baselines), desc="baselines", disable=not progressbar, leave=False):
        yield one.name, one.fit(task, seed, progressbar)


def chosen(baselines: Sequence[str | Baseline] | None) -> list[Baseline]:
    """Baselines by name; None: all."""
    if isinstance(baselines, str):
        baselines = [baselines]
    found = []
    for one in BASELINES if baselines is None else baselines:
        if not isinstance(one, Baseline) and one not in BASELINES:
            raise ArgumentError(f"There is no baseline {one!r}; use one of {', '.join(BASELINES)}.")
        found.append(one if isinstance(one, Baseline) else BASELINES[one])
    return found


def score(task: Task, fitted: Fitted, *, seed: int = 0) -> pd.DataFrame:
    """Scores on rows of seen and of unseen groups.

    Parameters
    ----------
    task : Task
        Has the rows.
    fitted : Fitted
        A fitted baseline.
    seed : int
        Seed of new groups' effects.

    Returns
    -------
    pandas.DataFrame
        Columns ``split``, ``metric``, ``value``, ``se``. Classes have ``accuracy``, binary ones ``auroc``;
        numbers have ``rmse``; all have ``nlpd``, the mean negative log predictive density of a row.
    """
    parts = []
    for split, rows in task.parts().items():
        of_rows = fitted.pointwise(rows, seed=stream(seed, "score", split) % 2**31)
        clusters = [task.codes(rows)] if split == "seen" else [_codes(rows.groups[task.group])]
        parts.append(
            _summarised(of_rows, task, rows, clusters if split == "unseen" else []).assign(split=split)
        )
    return pd.concat(parts, ignore_index=True)[["split", "metric", "value", "se"]]


def _codes(labels: Any) -> Any:
    return np.unique(labels, return_inverse=True)[1]


def _summarised(of_rows: pd.DataFrame, task: Task, rows: Rows, clusters: list[Any]) -> pd.DataFrame:
    """Each metric's value and standard error."""

    def mean(values: Any) -> metrics.Estimate:
        return metrics.widest(lambda codes: metrics.mean_score(values, None, codes), clusters)

    found: dict[str, metrics.Estimate] = {}
    if "correct" in of_rows:
        found["accuracy"] = mean(of_rows["correct"])
    elif "crps" in of_rows:
        errors = of_rows["squared_error"]
        found["rmse"] = metrics.widest(lambda codes: metrics.rmse(errors, None, codes), clusters)
    else:
        expected = of_rows["expected"].to_numpy()
        y = (rows.y == np.unique(task.train.y)[-1]).astype(np.int64)
        found["accuracy"] = mean((expected > 0.5) == (y == 1))
        found["auroc"] = metrics.widest(lambda codes: metrics.auroc(expected, y, None, codes), clusters)
    found["nlpd"] = mean(of_rows["nlpd"])
    return pd.DataFrame([(name, *one) for name, one in found.items()], columns=["metric", "value", "se"])
