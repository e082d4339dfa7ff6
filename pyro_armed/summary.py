"""A fit in one table and a few sentences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from pyro_armed.diagnostics._access import (
    attributes_of,
    dataset_of,
    distinct_correlations,
    is_effect,
    scalar_draws,
)
from pyro_armed.diagnostics._adversary import adversary
from pyro_armed.diagnostics._fit import convergence
from pyro_armed.spec import ModelSpec

__all__ = ["Summary", "summarize"]

_FEW_GROUPS = 10


@dataclass(frozen=True, eq=False)
class Summary:
    """Estimates, and sentences where something is off. Prints itself.

    Attributes
    ----------
    table : pandas.DataFrame
        One row for each scalar parameter: ``mean``, ``sd``, ``q5``, ``q95``, ``r_hat``, ``ess``.
        ``attrs["notes"]`` has the notes.
    notes : list of str
        Sentences.
    converged : bool
        Whether `diagnostics.convergence` found no problem.
    """

    table: pd.DataFrame
    notes: list[str]
    converged: bool

    def __str__(self) -> str:
        shown = self.table.to_string(float_format=lambda value: f"{value:.3f}", na_rep="")
        return "\n".join([shown, "", *self.notes]) if self.notes else shown

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from html import escape

        notes = "".join(f"<li>{escape(note)}</li>" for note in self.notes)
        return f"{self.table.to_html(float_format='%.3f', na_rep='')}<ul>{notes}</ul>"


def summarize(idata: Any, spec: ModelSpec, *, effects: bool = False) -> Summary:
    """Summarise a posterior.

    Parameters
    ----------
    idata : arviz.InferenceData or xarray.DataTree
        From `ARMED.fit`.
    spec : ModelSpec
        The model's structure.
    effects : bool
        Whether the groups' own effects are listed; there may be thousands.

    Returns
    -------
    Summary

    Examples
    --------
    >>> import pyro_armed as pa
    >>> data = pa.simulate.mixed_model(12, 10, seed=0)
    >>> model = pa.ARMED("y ~ x1 + (1 | group)", data.frame)
    >>> _ = model.fit(restarts=1, draws=200, progressbar=False)
    >>> summarize(model.idata, model.spec).table.index.tolist()
    ['Intercept', 'x1', 'sigma', '1|group_sigma']
    """
    posterior = dataset_of(idata, "posterior")
    if not effects:
        posterior = posterior[[n for n, a in posterior.data_vars.items() if not is_effect(a)]]
    rows = {
        name: (values.mean(), values.std(ddof=1), *np.quantile(values, [0.05, 0.95]))
        for name, values in scalar_draws(posterior)
    }
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["mean", "sd", "q5", "q95"])
    table["r_hat"], table["ess"] = _statistics(posterior)
    check = convergence(idata)
    notes = [*check.attrs["problems"], *_notes(idata, spec)]
    table.attrs["notes"] = notes
    return Summary(table, notes, check.attrs["converged"])


def _statistics(posterior: xr.Dataset) -> tuple[list[float], list[float]]:
    """R-hat and effective sample size of each scalar parameter, NaN where there are none."""
    import arviz as az

    distinct = distinct_correlations(posterior)
    size = sum(a.isel(chain=0, draw=0).size for a in distinct.data_vars.values())
    unknown = [float("nan")] * size
    if distinct.sizes.get("draw", 0) < 4:
        return unknown, unknown
    r_hat = _flat(az.rhat(distinct), distinct) if distinct.sizes["chain"] > 1 else unknown
    return r_hat, _flat(az.ess(distinct), distinct)


def _flat(found: Any, like: xr.Dataset) -> list[float]:
    dataset = found.to_dataset() if isinstance(found, xr.DataTree) else found
    values: list[float] = []
    for name, array in like.data_vars.items():
        dims = [dim for dim in array.dims if dim not in ("chain", "draw")]
        values += dataset[name].transpose(*dims).to_numpy().reshape(-1).tolist()
    return values


def _notes(idata: Any, spec: ModelSpec) -> list[str]:
    attributes = attributes_of(idata)
    notes = []
    for block in spec.blocks:
        group = spec.group(block.group)
        names = ", ".join(block.effect_name(term) for term in block.terms)
        sds = "sd" if len(block.terms) == 1 else "sds"
        rest = "rests" if len(block.terms) == 1 else "rest"
        if group.size < _FEW_GROUPS:
            notes.append(f"The {sds} of {names} {rest} on {group.size} groups only: the prior matters.")
        elif max(group.counts) == 1:
            notes.append(f"No group of {group.name} has more than one row.")
    if attributes.get("guide") == "structured" and not attributes.get("importance_corrected", 1):
        notes.append("The draws are those of the guide: importance weights could not correct them.")
    if "adversary" in attributes and (adversary(idata)["verdict"] != "between").any():
        notes.append(attributes["adversary"])
    if "conditions_on" in attributes:
        notes.append(f"The posterior conditions on {attributes['conditions_on']}.")
    return notes
