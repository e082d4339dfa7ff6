"""The structured guide: its ways of being run against one another, and against NUTS."""

from __future__ import annotations

import math
import time
import warnings
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from pyro_armed import datasets
from pyro_armed.armed import ARMED
from pyro_armed.benchmark._measure import Summary, one_thread, row, table
from pyro_armed.benchmark._steps import compiled_modes
from pyro_armed.errors import ArmedWarning

__all__ = ["contraception", "nuts", "sd_ratios", "structured", "timed_fit"]

FORMULA = "use ~ age + urban + livch + (1 + urban | district)"
EAGER, NUTS = 'structured, compile="off"', "NUTS"


def contraception(quick: bool) -> ARMED:
    """Use of contraception, random intercepts and urban slopes of 60 districts; not fitted.

    Parameters
    ----------
    quick : bool
        Every twelfth woman only.

    Returns
    -------
    ARMED

    Raises
    ------
    MissingDependencyError
        Where the package of data sets is not installed.
    """
    frame = datasets.load("contraception")
    return ARMED(FORMULA, frame.iloc[::12] if quick else frame, family="bernoulli")


def timed_fit(model: ARMED, **options: Any) -> tuple[float, Any]:
    """Processor seconds of a fit on one thread, and its ArviZ object.

    Parameters
    ----------
    model : ARMED
        Fitted in place.
    **options
        Arguments of `ARMED.fit`.

    Returns
    -------
    tuple of float and object
    """
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ArmedWarning)  # a quick fit has not converged
        start = time.process_time()
        idata = model.fit(log_likelihood=False, progressbar=False, **options)
        return time.process_time() - start, idata


def structured(quick: bool, seed: int) -> pd.DataFrame:
    """Time of a fit of the structured guide, Contraception, one restart: compiled over eager.

    Parameters
    ----------
    quick : bool
        A twelfth of the rows, one round, no Inductor.
    seed : int
        Seed of the first round; each round has its own, the same for all ways.

    Returns
    -------
    pandas.DataFrame
        See `run`: of a whole fit, tracing or compiling included (Inductor's from its cache: a fit before
        the first round fills it).
    """
    model, modes = contraception(quick), compiled_modes(quick)
    seconds: dict[str, list[float]] = {mode: [] for mode in ["off", *modes]}
    for mode in seconds:
        timed_fit(model, restarts=1, draws=20, compile=mode, seed=seed)
    for number in range(1 if quick else 3):
        for mode, found in seconds.items():
            found.append(
                timed_fit(model, restarts=1, draws=50 if quick else 500, compile=mode, seed=seed + number)[0]
            )
    lines = []
    for mode in modes:
        ratios = np.asarray(seconds["off"]) / np.asarray(seconds[mode])
        low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
        target = ">= 2.5" if mode == "inductor" else ""
        case = f'structured, compile="{mode}"'
        lines.append(
            row("structured", "times faster", case, Summary(middle, low, high), to=EAGER, target=target)
        )
    return table(lines)


def nuts(quick: bool, seed: int) -> pd.DataFrame:
    """The structured guide against NUTS on Contraception: time of two restarts or chains, and sds.

    Parameters
    ----------
    quick : bool
        A twelfth of the rows, one short chain.
    seed : int
        Seed.

    Returns
    -------
    pandas.DataFrame
        See `run`.
    """
    model = contraception(quick)
    size = {"restarts": 1, "draws": 50} if quick else {"restarts": 2, "draws": 500}
    timed_fit(model, restarts=1, draws=20, seed=seed)  # imports and caches
    ours, mine = timed_fit(model, **size, seed=seed)
    theirs, reference = timed_fit(model, inference="nuts", warmup=50 if quick else 500, **size, seed=seed)
    note = f"{size['restarts']} x {size['draws']} draws each"
    lines = [row("nuts", "time", "structured", ours / theirs, to=NUTS, target="<= 0.1", note=note)]
    for name, ratio in sd_ratios(mine["posterior"], reference["posterior"]).items():
        by_group = not math.isnan(ratio.low)
        target, note = ("", "median and quartiles over groups") if by_group else ("0.9 to 1.1", "")
        lines.append(row("nuts", "posterior sd", name, ratio, to=NUTS, target=target, note=note))
    return table(lines)


def sd_ratios(ours: xr.Dataset, reference: xr.Dataset) -> dict[str, Summary]:
    """Posterior sds over those of a reference, by variable; effects of groups as quartiles over the groups.

    Parameters
    ----------
    ours, reference : xarray.Dataset
        Posteriors with the same variables.

    Returns
    -------
    dict of str to Summary

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> draws = xr.Dataset({"x": (("chain", "draw"), np.array([[0.0, 1.0, 2.0]]))})
    >>> sd_ratios(draws * 2, draws)["x"].ratio
    2.0
    """
    found: dict[str, Summary] = {}
    for name, values in ours.data_vars.items():
        if name not in reference:
            continue
        ratio = values.std(["chain", "draw"]) / reference[name].std(["chain", "draw"])
        if any(str(dim).endswith("__factor_dim") for dim in ratio.dims):
            low, middle, high = np.quantile(ratio.values, (0.25, 0.5, 0.75))
            found[str(name)] = Summary(float(middle), float(low), float(high))
            continue
        for place in np.ndindex(*ratio.shape):
            if str(name).endswith("_corr") and place[0] >= place[1]:
                continue  # symmetric, with ones on the diagonal
            labels = [str(ratio[dim].values[i]) for dim, i in zip(ratio.dims, place, strict=True)]
            label = f"{name}[{', '.join(labels)}]" if labels else str(name)
            found[label] = Summary(float(ratio.values[place]))
    return found
