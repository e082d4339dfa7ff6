"""Leave-one-group-out cross-validation."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.special import logsumexp

from pyro_armed.diagnostics._access import dataset_of
from pyro_armed.diagnostics._groups import group_log_likelihood, likelihood_of_chain, only_group
from pyro_armed.errors import ConvergenceWarning
from pyro_armed.export import to_arviz
from pyro_armed.importance import KHAT_LIMIT
from pyro_armed.inference import infer
from pyro_armed.inference_settings import InferenceSettings, Ingredients

__all__ = ["loo_group"]

_SHOWN = 5


def loo_group(model: Any, group: str | None = None, *, refit: bool = False, progressbar: bool = True) -> Any:
    """Leave-one-group-out cross-validation, by Pareto-smoothed importance sampling or by fitting again.

    Parameters
    ----------
    model : ARMED
        Fitted, with its training rows.
    group : str, optional
        Grouping factor; None: the only one.
    refit : bool
        Whether groups with Pareto k above 0.7 are left out by fitting again, as `ARMED.fit` with as many
        draws in one chain.
    progressbar : bool
        Whether refits show progress.

    Returns
    -------
    arviz.ELPDData
        ``elpd_loo`` (``elpd`` on ArviZ 1.x), the sum over groups of the log density of a group's rows given
        all other groups; ``loo_i`` (``elpd_i``) and ``pareto_k`` of each, k being 0 where it was fitted
        again.

    Raises
    ------
    ArgumentError
        As for `group_log_likelihood`.

    Warns
    -----
    ConvergenceWarning
        Where Pareto k is above 0.7 for some groups.

    Notes
    -----
    Importance sampling leaves out of what has a posterior: a network's weights below its last layer have
    seen all groups. A refit trains the network anew.

    Examples
    --------
    >>> import pyro_armed as pa
    >>> data = pa.simulate.mixed_model(20, 10, seed=0)
    >>> model = pa.ARMED("y ~ 1 + (1 | group)", data.frame)
    >>> _ = model.fit(restarts=1, draws=400, progressbar=False)
    >>> int(loo_group(model).n_data_points)
    20
    """
    import arviz as az

    likelihood = group_log_likelihood(model, group)
    posterior = dataset_of(model.idata, "posterior")
    # ArviZ takes from these how independent the draws are.
    scalars = [name for name in posterior.data_vars if set(posterior[name].dims) == {"chain", "draw"}]
    idata = to_arviz({"posterior": posterior[scalars], "log_likelihood": likelihood})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Estimated shape parameter")
        result = az.loo(idata, pointwise=True)
    k = np.asarray(result.pareto_k)
    above = [int(c) for c in np.flatnonzero(k > KHAT_LIMIT)]
    if refit and above:
        total = logsumexp(next(iter(likelihood.values())).to_numpy(), axis=(0, 1))
        total = total - math.log(model._fitted().n_draws * len(model._fitted().chains))
        _replace(result, {c: _without(model, group, c, progressbar) for c in above}, total)
    elif above:
        labels = likelihood[next(iter(likelihood.values())).dims[-1]].to_numpy()[above]
        shown = ", ".join(map(str, labels[:_SHOWN])) + (", ..." if len(labels) > _SHOWN else "")
        warnings.warn(
            f"Pareto k is above {KHAT_LIMIT} for {len(above)} of {len(k)} groups ({shown}): draws given all "
            "groups say little about a posterior without them; pass refit=True.",
            ConvergenceWarning,
            stacklevel=2,
        )
    return result


def _without(model: Any, group: str | None, code: int, progressbar: bool) -> float:
    """Log density of a group's rows given all others, from a fit in which they have no weight."""
    posterior, batch = model._fitted(), model._training.batch
    name = only_group(model.module, group)
    here = batch.codes[name] == code
    weights = (
        torch.ones(batch.size, dtype=model.module.priors.dtype) if batch.weights is None else batch.weights
    )
    data = replace(batch, weights=weights.masked_fill(here, 0.0))
    known = posterior.attributes
    settings = InferenceSettings(
        inference=known.get("inference", "svi"),
        guide=known.get("guide", "structured"),
        restarts=1,
        draws=posterior.n_draws * len(posterior.chains),
        seed=known.get("seed", 0),
        progressbar=progressbar,
    )
    ingredients = Ingredients(
        model.spec, model._user_priors, model._plan, data, model.adversary, model.fixed_effects_weight
    )
    chain = infer(ingredients, settings).posterior.chains[0]
    values = likelihood_of_chain(chain, batch, name)[:, code]
    return float(logsumexp(values) - math.log(len(values)))


def _replace(result: Any, exact: dict[int, float], total: np.ndarray) -> None:
    """Put exact log densities in an ELPDData in place; ``total`` has those with the group's rows included."""
    old = not hasattr(result, "elpd_i")
    pointwise = result.loo_i if old else result.elpd_i
    for c, value in exact.items():
        pointwise.values[c] = value
        result.pareto_k.values[c] = 0.0
    values = np.asarray(pointwise)
    elpd, se = float(values.sum()), math.sqrt(len(values) * float(values.var()))
    p = float((total - values).sum())
    for name, value in zip(
        ("elpd_loo", "se", "p_loo") if old else ("elpd", "se", "p"), (elpd, se, p), strict=True
    ):
        setattr(result, name, value)
    result.warning = False
