"""Several specifications on the same folds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from pyro_armed import metrics
from pyro_armed.cross_validation._predict import cross_predict
from pyro_armed.errors import ArgumentError

if TYPE_CHECKING:
    from pyro_armed.cross_validation._data import Source

__all__ = ["compare"]

_KEYS = ["split", "row"]


def compare(
    models: Mapping[str, Source],
    data: Any,
    *,
    by: str = "both",
    group: str | None = None,
    seed: int = 0,
    progressbar: bool = True,
    **options: Any,
) -> pd.DataFrame:
    """Compare specifications by the density of the same left-out rows, as `arviz.compare` does by LOO.

    Parameters
    ----------
    models : mapping of str to ARMED or callable
        Specifications of one response by name.
    data : pandas.DataFrame or tuple
        All rows; test rows that are to judge the choice stay out of it.
    by : {"cluster", "row", "both"}
        What is left out; see `cross_validate`.
    group : str, optional
        Grouping factor to leave out; None: the only one of each model.
    seed : int
        Seed of folds and fits; the folds are the same for all.
    progressbar : bool
        Whether to show progress.
    **options
        Others of `cross_validate` and of `ARMED.fit`, such as ``folds=3`` or ``restarts=1``.

    Returns
    -------
    pandas.DataFrame
        A line for each split and model, the best of a split first: ``split``, ``model``, ``nlpd`` (mean
        negative log density of a row) with ``se``, ``worse``, the mean of the differences from the best row
        by row, with ``worse_se``, both standard errors allowing for groups. ``attrs["best"]`` is the model
        with the smallest sum of ``nlpd`` over the splits.

    Raises
    ------
    ArgumentError, DataError
        As for `cross_validate`, and for no models or models of different rows.

    Examples
    --------
    >>> import pyro_armed as pa
    >>> frame = pa.simulate.mixed_model(6, 8, fixed=(0.0, 2.0), seed=0).frame
    >>> formulas = {"x": "y ~ x1 + (1 | group)", "no x": "y ~ 1 + (1 | group)"}
    >>> models = {name: pa.ARMED(formula, frame) for name, formula in formulas.items()}
    >>> quick = {"folds": 2, "restarts": 1, "draws": 50, "progressbar": False}
    >>> compare(models, frame, by="row", **quick)["model"].tolist()
    ['x', 'no x']
    """
    if not isinstance(models, Mapping) or not models:
        raise ArgumentError("models must be a mapping of names to models, such as {'linear': model}.")
    found: dict[str, pd.DataFrame] = {}
    for name, model in tqdm(models.items(), desc="Models", disable=not progressbar):
        rows = cross_predict(
            model, data, by=by, group=group, seed=seed, progressbar=progressbar, **options
        ).set_index(_KEYS)
        first = next(iter(found.values()), rows)
        if not rows.index.equals(first.index) or not np.array_equal(rows["y"], first["y"]):
            raise ArgumentError(
                f"models[{name!r}] has another response, other rows or another group than the first model; "
                "densities of the same rows are compared."
            )
        found[name] = rows
    first = next(iter(found.values()))
    densities = pd.DataFrame({name: rows["nlpd"] for name, rows in found.items()})
    lines = []
    for split, part in densities.groupby("split", sort=True):
        of_split = first.loc[[split]]
        best = part[_means(part, of_split).idxmin()]
        for name in _means(part, of_split).sort_values(kind="stable").index:
            lines.append(
                (split, name, *_mean(part[name], of_split), *_mean(part[name] - best, of_split)),
            )
    table = pd.DataFrame(lines, columns=["split", "model", "nlpd", "se", "worse", "worse_se"])
    table.attrs["best"] = table.groupby("model", sort=False)["nlpd"].sum().idxmin()
    return table


def _means(part: pd.DataFrame, rows: pd.DataFrame) -> pd.Series:
    return pd.Series({name: _mean(part[name], rows)[0] for name in part})


def _mean(values: pd.Series, rows: pd.DataFrame) -> metrics.Estimate:
    weights = rows["weight"].to_numpy() if "weight" in rows else None
    codes = pd.factorize(rows["group"])[0]
    clusters = [codes] if len(np.unique(codes)) > 1 else []
    return metrics.widest(lambda c: metrics.mean_score(values.to_numpy(), weights, c), clusters)
