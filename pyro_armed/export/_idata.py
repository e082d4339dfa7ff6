"""The ArviZ object of a fit, and that of predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import numpy as np
from torch import Tensor

from pyro_armed.batch import Batch
from pyro_armed.conformal import Regions
from pyro_armed.design import Encoded
from pyro_armed.errors import ArgumentError
from pyro_armed.export._parameters import posterior_dataset, prior_chain, sample_stats_dataset
from pyro_armed.export._rows import WHOLE, constant_dataset, observed_dataset, pointwise
from pyro_armed.export._running import check_chains
from pyro_armed.export._tables import Table, row_labels, to_arviz, to_numpy, variable_name, whole_numbers
from pyro_armed.module import OBSERVATIONS, MixedEffectsModule
from pyro_armed.new_groups import Mode, mode_of, row_modes
from pyro_armed.posterior import Posterior
from pyro_armed.spec import ModelSpec

__all__ = ["build_idata", "prediction_idata", "prior_idata"]

MAX_POINTWISE = 20_000_000
# Rows that the network may be run on where each draw has effects within the network.
MAX_PASSES = 100_000


def build_idata(
    posterior: Posterior,
    batch: Batch,
    *,
    index: Sequence[Any] | None = None,
    seed: int = 0,
    prior_draws: int = 500,
    log_likelihood: bool | str = "auto",
    attributes: Mapping[str, Any] | None = None,
) -> Any:
    """Everything that ArviZ may want to know about a fit.

    Parameters
    ----------
    posterior : Posterior
        Draws of all chains.
    batch : Batch
        The training rows, with their response.
    index : sequence, optional
        Labels of the rows; used as the ``__obs__`` coordinate if they are unique.
    seed : int
        Seed of the prior draws and of the predictive draws; the global random states are left alone.
    prior_draws : int
        Draws from the prior; 0 leaves the prior groups out.
    log_likelihood : bool or "auto"
        Whether to store ``log_likelihood`` and ``posterior_predictive``, which have chains x draws x rows
        numbers each. ``"auto"``: unless that is more than 2e7, or 1e5 where the network has group effects
        within, as each number then takes a pass of its own. ``prior_predictive`` is left out where it is as
        large or takes such passes, unless asked for with True.
    attributes : mapping, optional
        Written to the object and to each group, as is ``posterior.attributes``. Groups that were left out
        are named in the attribute ``omitted_groups``.

    Returns
    -------
    arviz.InferenceData or xarray.DataTree
        Groups posterior, posterior_predictive, log_likelihood, sample_stats, prior, prior_predictive,
        observed_data, constant_data.

    Raises
    ------
    ArgumentError
        For values that cannot be used.
    """
    if log_likelihood != "auto" and not isinstance(log_likelihood, bool):
        raise ArgumentError(f"log_likelihood={log_likelihood!r} must be True, False or 'auto'.")
    check_chains(posterior)
    module = posterior.chains[0].module
    omitted = []
    groups = {"posterior": posterior_dataset(posterior)}
    size = len(posterior.chains) * posterior.n_draws * batch.size
    most = MAX_PASSES if module.spec.layers else MAX_POINTWISE
    if log_likelihood is True or (log_likelihood == "auto" and size <= most):
        groups |= pointwise(posterior, batch, index=index, seed=seed)
    else:
        omitted += ["posterior_predictive", "log_likelihood"]
    groups["sample_stats"] = sample_stats_dataset(posterior)
    if prior_draws:
        prior = Posterior([prior_chain(module, prior_draws, seed)])
        groups["prior"] = posterior_dataset(prior)
        affordable = not module.spec.layers and prior_draws * batch.size <= MAX_POINTWISE
        if log_likelihood is True or affordable:
            groups |= pointwise(prior, batch, ("prior_predictive",), index=index, seed=seed)
        else:
            omitted.append("prior_predictive")
    groups["observed_data"] = observed_dataset(module.spec, batch, index)
    groups["constant_data"] = constant_dataset(module.spec, batch, index)
    described = {**_description(module.spec), "seed": seed, **posterior.attributes, **(attributes or {})}
    if omitted:
        described["omitted_groups"] = ", ".join(omitted)
    return to_arviz(groups, described)


def prior_idata(
    module: MixedEffectsModule,
    batch: Batch,
    *,
    draws: int = 500,
    index: Sequence[Any] | None = None,
    seed: int = 0,
    attributes: Mapping[str, Any] | None = None,
) -> Any:
    """Parameters and responses drawn from the prior.

    Parameters
    ----------
    module : MixedEffectsModule
        The model.
    batch : Batch
        The training rows.
    draws : int
        Number of draws.
    index : sequence, optional
        Labels of the rows; used as the ``__obs__`` coordinate if they are unique.
    seed : int
        Seed; the global random states are left alone.
    attributes : mapping, optional
        Written to the object and to each group.

    Returns
    -------
    arviz.InferenceData or xarray.DataTree
        Groups prior, prior_predictive, observed_data, constant_data; as in `build_idata`.

    Raises
    ------
    ArgumentError
        For less than one draw.
    """
    if not isinstance(draws, int) or isinstance(draws, bool) or draws < 1:
        raise ArgumentError(f"draws={draws!r} must be a whole number of at least 1.")
    prior = Posterior([prior_chain(module, draws, seed)])
    groups = {"prior": posterior_dataset(prior)}
    groups |= pointwise(prior, batch, ("prior_predictive",), index=index, seed=seed)
    groups["observed_data"] = observed_dataset(module.spec, batch, index)
    groups["constant_data"] = constant_dataset(module.spec, batch, index)
    return to_arviz(groups, {**_description(module.spec), "seed": seed, **(attributes or {})})


def prediction_idata(
    spec: ModelSpec,
    encoded: Encoded,
    values: Tensor,
    *,
    kind: str,
    mode: str | Mode,
    seed: int,
    regions: Regions | None = None,
    index: Sequence[Any] | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> Any:
    """Predictions as an ArviZ object.

    Parameters
    ----------
    spec : ModelSpec
        The model's structure.
    encoded : Encoded
        The rows.
    values : Tensor, shape (chains, S, N) or (chains, S, N, K)
        Predictions; K levels, or K predictors of a categorical response.
    kind, mode, seed
        How they were made; kept as attributes ``kind``, ``new_groups`` and ``seed``.
    regions : Regions, optional
        Intervals ``lower``, ``upper`` of each row, or the set ``in_set`` of levels, to be added.
    index : sequence, optional
        Labels of the rows; by default their positions in what they came from.
    attributes : mapping, optional
        More of them.

    Returns
    -------
    arviz.InferenceData or xarray.DataTree
        Group ``predictions`` with one variable, named by the response, whose coordinate ``new_groups`` says
        which mode each row got, as `pyro_armed.new_groups.row_modes` writes it. Group
        ``predictions_constant_data`` has the group labels of each row, the same in ``new_groups``, and in
        ``{group}_new_groups`` ``"seen"`` or the mode for each grouping factor.
    """
    if index is None and len(encoded.index) == encoded.batch.size:
        index = encoded.index.tolist()
    table = Table(values.shape[0], values.shape[1], row_labels(index, encoded.batch.size))
    dims: tuple[str, ...] = (OBSERVATIONS,)
    if values.dim() == 4:
        full = values.shape[-1] == len(spec.levels)
        dims += (
            table.dim(
                f"{spec.response}_{'dim' if full else 'reduced_dim'}",
                spec.levels if full else spec.levels[1:],
            ),
        )
    whole = kind == "response" and spec.family.response in WHOLE
    table.add(spec.response, dims, whole_numbers(values).numpy() if whole else to_numpy(values))
    if regions is not None:
        _add_regions(table, spec, regions)
    constant = constant_dataset(spec, encoded.batch, index, encoded.new_groups)
    mode = mode_of(mode)
    rows, factors = row_modes(spec, encoded, mode.received(encoded))
    constant["new_groups"] = (OBSERVATIONS, rows)
    for name, status in factors.items():
        constant[variable_name(f"{name}_new_groups")] = (OBSERVATIONS, status)
    predictions = table.dataset().assign_coords(new_groups=(OBSERVATIONS, rows))
    how = {**_description(spec), "kind": kind, "new_groups": mode.name, "seed": seed, **(attributes or {})}
    return to_arviz({"predictions": predictions, "predictions_constant_data": constant}, how)


def _add_regions(table: Table, spec: ModelSpec, regions: Regions) -> None:
    if regions.members is not None:
        level = table.dim(f"{spec.response}_dim", spec.levels or (0, 1), f"{spec.response}_level_dim")
        table.add("in_set", (OBSERVATIONS, level), regions.members, lead=())
        return
    for name, values in (("lower", regions.lower), ("upper", regions.upper)):
        table.add(name, (OBSERVATIONS,), np.asarray(values), lead=())


def _description(spec: ModelSpec) -> dict[str, Any]:
    packages = {
        "inference_library_version": "pyro_armed",
        "pyro_version": "pyro-ppl",
        "torch_version": "torch",
        "arviz_version": "arviz",
    }
    return {
        "inference_library": "pyro_armed",
        **{name: _version(package) for name, package in packages.items()},
        "created_at": datetime.now(UTC).isoformat(),
        "family": spec.family.name,
        "link": spec.family.link.name,
        "response": spec.response,
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
