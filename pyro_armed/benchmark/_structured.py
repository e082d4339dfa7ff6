"""The structured guide: its ways of being run against one another, and against NUTS."""

from __future__ import annotations

import math
import time
import warnings
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

from pyro_armed import datasets, simulate
from pyro_armed.armed import ARMED
from pyro_armed.benchmark._measure import Summary, interleaved, one_thread, row, table
from pyro_armed.benchmark._models import BATCH, spirals_model
from pyro_armed.benchmark._steps import compiled_modes
from pyro_armed.errors import ArmedWarning
from pyro_armed.structured import StructuredGuide
from pyro_armed.structured_fit import fit_structured, svi_step

__all__ = ["contraception", "nuts", "sd_ratios", "structured", "svi_guides", "timed_fit"]

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


def svi_guides(quick: bool, seed: int) -> dict[str, StructuredGuide]:
    """Guides at the mode, by the name of their model.

    Parameters
    ----------
    quick : bool
        Few rows.
    seed : int
        Seed of simulated data and of the start.

    Returns
    -------
    dict of str to StructuredGuide
    """
    rows = 50 if quick else 1000
    frame = simulate.spirals(rows_per_group=rows, seed=seed).frame
    spirals = spirals_model(rows, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ArmedWarning)  # one epoch has not converged
        # The structured guide takes the network as training with the adversary, on batches, has left it.
        spirals.fit(guide="mean_field", restarts=1, epochs=1, batch_size=BATCH, seed=seed, progressbar=False)
    found = {}
    for name, model in {
        "Contraception (1 + urban | district)": contraception(quick),
        "spirals, linear (1 | group)": ARMED("y ~ x1 + x2 + (1 | group)", frame, family="bernoulli"),
        "spirals, network and adversary (1 + features | group)": spirals,
    }.items():
        module: Any = model.module
        module.eval()
        with torch.no_grad():
            hidden = module.hidden(module.data)
        guide = StructuredGuide(module, module.data, hidden)
        fit_structured(guide, seed=seed, max_steps=1, progressbar=False)
        found[name] = guide
    return found


def structured(quick: bool, seed: int) -> pd.DataFrame:
    """Time of an SVI step of the structured guide, 8 draws of the global variables: eager over compiled.

    Parameters
    ----------
    quick : bool
        Few rows and rounds, no Inductor.
    seed : int
        Seed of data and draws, the same for all ways.

    Returns
    -------
    pandas.DataFrame
        See `run`. Tracing and compiling are left out; steps that a graph leaves to the eager function count.
    """
    lines = []
    with one_thread():
        for name, guide in svi_guides(quick, seed).items():
            modes = compiled_modes(quick)
            # No learning rate: all stay where they are.
            ways = {mode: svi_step(guide, seed=seed, compile=mode, rate=0.0) for mode in ["off", *modes]}
            times = interleaved(ways, rounds=3 if quick else 15)
            for mode in modes:
                target = ">= 2.5" if mode == "inductor" else ""
                case = f'structured, compile="{mode}"'
                ratio = times.ratio("off", mode)
                lines.append(
                    row("structured", "times faster", case, ratio, to=EAGER, target=target, note=name)
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
