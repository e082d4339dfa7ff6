"""Whether inference has found what it was looking for: k-hat, R-hat, the ELBO, divergences."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from pyro_armed.diagnostics._access import (
    attributes_of,
    dataset_of,
    distinct_correlations,
    idata_of,
    is_effect,
)
from pyro_armed.errors import ConvergenceWarning
from pyro_armed.importance import KHAT_LIMIT

__all__ = ["convergence", "khat", "r_hat", "record_verdict"]

RHAT_LIMIT = 1.05
_GOOD = 0.5
_ENOUGH = 100  # Fewer draws say nothing about a tail, nor about R-hat.
_SHARE = 0.1


def khat(model: Any) -> pd.DataFrame:
    """Pareto k of the variational guide: whether importance weights could repair what it gets wrong.

    Parameters
    ----------
    model : ARMED or ArviZ object
        Fitted by SVI.

    Returns
    -------
    pandas.DataFrame
        Columns ``of``, ``group``, ``khat`` (the worst of the restarts) and ``verdict``: good below 0.5, ok
        below 0.7, bad above. ``of`` is ``"joint"`` (the mean-field guide: all variables; the structured
        guide: those that are not specific to a group, the groups' effects integrated out) or the name of a
        grouping factor, whose groups' effects follow one by one, given all else (structured guide with one
        grouping factor; not for a Gaussian response, where they are exact). No rows after NUTS.

    Notes
    -----
    Yao, Vehtari, Simpson, Gelman, ICML 2018; Vehtari et al., JMLR 25, 2024.

    Examples
    --------
    >>> import pyro_armed as pa
    >>> data = pa.simulate.mixed_model(4, 10, seed=0)
    >>> model = pa.ARMED("y ~ x1 + (1 | group)", data.frame)
    >>> _ = model.fit(restarts=1, draws=200, progressbar=False)
    >>> khat(model)[["of", "verdict"]].values.tolist()
    [['joint', 'good']]
    """
    stats = dataset_of(idata_of(model), "sample_stats")
    rows: list[tuple[str, Any, float]] = []
    if "khat" in stats:
        rows.append(("joint", None, float(stats["khat"].max())))
    for name in stats.data_vars:
        kind, _, group = str(name).partition("|")
        if kind != "khat" or not group:
            continue
        worst = stats[name].max("chain")
        labels = worst[worst.dims[0]].to_numpy().tolist()
        rows += [(group, label, float(k)) for label, k in zip(labels, worst.to_numpy(), strict=True)]
    table = pd.DataFrame(rows, columns=["of", "group", "khat"])
    return table.assign(verdict=[_verdict(k) for k in table["khat"]])


def _verdict(k: float) -> str:
    if math.isnan(k):
        return "unknown"
    return "good" if k < _GOOD else "ok" if k < KHAT_LIMIT else "bad"


def r_hat(model: Any, *, effects: bool = True) -> xr.Dataset:
    """Rank-normalised split R-hat of each parameter, over restarts (SVI) or Markov chains (NUTS).

    Parameters
    ----------
    model : ARMED or ArviZ object
        Fitted with two restarts or more.
    effects : bool
        Whether the groups' effects are included.

    Returns
    -------
    xarray.Dataset
        Empty for fewer than two chains or four draws.

    Examples
    --------
    >>> import pyro_armed as pa
    >>> data = pa.simulate.mixed_model(4, 10, seed=0)
    >>> model = pa.ARMED("y ~ 1 + (1 | group)", data.frame)
    >>> _ = model.fit(restarts=2, draws=100, progressbar=False)
    >>> list(r_hat(model, effects=False).data_vars)
    ['Intercept', 'sigma', '1|group_sigma']
    """
    import arviz as az

    posterior = distinct_correlations(dataset_of(idata_of(model), "posterior"))
    if not effects:
        posterior = posterior[[name for name in posterior.data_vars if not is_effect(posterior[name])]]
    if posterior.sizes.get("chain", 1) < 2 or posterior.sizes.get("draw", 0) < 4:
        return xr.Dataset()
    found = az.rhat(posterior)
    return found.to_dataset() if isinstance(found, xr.DataTree) else found


def convergence(model: Any) -> pd.DataFrame:
    """Whether inference has converged, in numbers and words.

    Parameters
    ----------
    model : ARMED or ArviZ object
        Fitted.

    Returns
    -------
    pandas.DataFrame
        One row for each check (``elbo``, ``khat``, ``khat of GROUP``, ``r_hat``, ``divergences``, as far as
        they apply) with columns ``check``, ``value``, ``ok``, ``words``. ``attrs`` has ``converged``, whether
        all checks are passed, and ``problems``, the words of those that are not.

    Notes
    -----
    k-hat and R-hat are judged from 100 draws of each restart on. Restarts of a network end in different
    networks, so that R-hat there says how much these disagree, and is no problem of inference.

    Examples
    --------
    >>> import pyro_armed as pa
    >>> data = pa.simulate.mixed_model(4, 10, seed=0)
    >>> model = pa.ARMED("y ~ x1 + (1 | group)", data.frame)
    >>> _ = model.fit(restarts=1, draws=200, progressbar=False)
    >>> table = convergence(model)
    >>> table["check"].tolist(), table.attrs["converged"]
    (['elbo', 'khat', 'r_hat'], True)
    """
    idata = idata_of(model)
    attributes = attributes_of(idata)
    stats = dataset_of(idata, "sample_stats")
    draws = dataset_of(idata, "posterior").sizes["draw"]
    rows = []
    if "elbo" in stats:
        rows.append(_elbo(stats, attributes))
    table = khat(idata)
    for of, part in table.groupby("of", sort=False):
        rows.append(_joint(part, attributes, draws) if of == "joint" else _by_group(str(of), part, draws))
    rows.append(_r_hat(idata, attributes, draws))
    if "diverging" in stats:
        count = int(stats["diverging"].sum())
        words = f"{count} NUTS draws diverged" + (": use a longer warmup or narrower priors" if count else "")
        rows.append(("divergences", float(count), count == 0, words + "."))
    result = pd.DataFrame(rows, columns=["check", "value", "ok", "words"])
    problems = result.loc[~result["ok"], "words"].tolist()
    result.attrs |= {"converged": not problems, "problems": problems}
    return result


def record_verdict(idata: Any) -> str:
    """Write the verdict into the attributes of an ArviZ object, and warn of problems.

    Parameters
    ----------
    idata : arviz.InferenceData or xarray.DataTree
        Changed in place: ``verdict`` becomes an attribute of the object and of its posterior.

    Returns
    -------
    str
        The problems' words, or that none was found.

    Warns
    -----
    ConvergenceWarning
        Once, with all problems but divergences, of which `sample_nuts` has warned.
    """
    table = convergence(idata)
    problems = table.attrs["problems"]
    verdict = " ".join(problems) or "No problem found."
    idata.attrs["verdict"] = verdict
    idata["posterior"].attrs["verdict"] = verdict
    new = table.loc[~table["ok"] & (table["check"] != "divergences"), "words"].tolist()
    if new:
        warnings.warn(" ".join(new), ConvergenceWarning, stacklevel=3)
    return verdict


def _elbo(stats: xr.Dataset, attributes: dict[str, Any]) -> tuple[str, float, bool, str]:
    traces = [row[~np.isnan(row)] for row in np.atleast_2d(stats["elbo"].to_numpy())]
    flags = stats["converged"].to_numpy().astype(bool) if "converged" in stats else np.ones(len(traces), bool)
    value = max(float(trace[-25:].mean()) for trace in traces)
    # Without early stopping nothing was watched: the trace itself says.
    watched = bool(attributes.get("early_stopping", 1))
    bad = [i for i, trace in enumerate(traces) if not flags[i] and (watched or _rises(trace))]
    if not bad:
        return "elbo", value, True, "The ELBO had stopped rising."
    count = f" in {len(bad)} of {len(traces)} restarts" if len(traces) > 1 else ""
    if attributes.get("guide") == "structured" and not attributes.get("network"):
        words = "No mode was found, or the ELBO had not settled"
        return "elbo", value, False, f"{words}{count}: use narrower priors or inference='nuts'."
    words = "The ELBO was still rising when the steps ran out"
    return "elbo", value, False, f"{words}{count}: raise epochs."


def _rises(trace: np.ndarray) -> bool:
    """Whether the last tenth of a trace is above the tenth before it."""
    width = len(trace) // 10
    if width < 2:
        return True
    last, before = trace[-width:], trace[-2 * width : -width]
    error = math.sqrt((last.var(ddof=1) + before.var(ddof=1)) / width)
    return bool(last.mean() - before.mean() > 2 * error)


def _joint(part: pd.DataFrame, attributes: dict[str, Any], draws: int) -> tuple[str, float, bool, str]:
    value = float(part["khat"].iloc[0])
    if draws < _ENOUGH:
        return "khat", value, True, f"k-hat needs {_ENOUGH} draws of each restart to be judged."
    if value <= KHAT_LIMIT:
        return "khat", value, True, f"k-hat {value:.2f}: the guide is close enough for weights to correct it."
    mean_field = attributes.get("guide") == "mean_field"
    mend = ("guide='structured' or " if mean_field else "") + "inference='nuts'"
    return "khat", value, False, f"k-hat {value:.2f} is above {KHAT_LIMIT}: the guide is far off; use {mend}."


def _by_group(group: str, part: pd.DataFrame, draws: int) -> tuple[str, float, bool, str]:
    above = part[part["khat"] > KHAT_LIMIT]
    value = float(part["khat"].max())
    words = f"k-hat of the effects is above {KHAT_LIMIT} for {len(above)} of {len(part)} groups of {group}"
    bad = draws >= _ENOUGH and len(above) > max(1, _SHARE * len(part))
    return f"khat of {group}", value, not bad, words + (": use inference='nuts'." if bad else ".")


def _r_hat(idata: Any, attributes: dict[str, Any], draws: int) -> tuple[str, float, bool, str]:
    found = r_hat(idata, effects=False)
    worst = {str(name): float(values.max()) for name, values in found.data_vars.items()}
    worst = {name: value for name, value in worst.items() if not math.isnan(value)}
    if not worst:
        return "r_hat", math.nan, True, "R-hat needs two restarts or chains, of four draws or more."
    name = max(worst, key=worst.__getitem__)
    value = worst[name]
    words = f"R-hat {value:.2f} at most ({name})"
    if value <= RHAT_LIMIT or draws < _ENOUGH:
        return "r_hat", value, True, f"{words}."
    nuts = attributes.get("inference") == "nuts"
    if attributes.get("network") and not nuts:
        return "r_hat", value, True, f"{words}: restarts have found different networks."
    mend = "raise warmup and draws" if nuts else "restarts disagree; use inference='nuts'"
    return "r_hat", value, False, f"{words} is above {RHAT_LIMIT}: {mend}."
