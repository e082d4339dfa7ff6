"""What has one number for each row, or for each draw and row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pyro_armed.batch import Batch
from pyro_armed.errors import ArgumentError
from pyro_armed.export._running import check_chains, evaluating
from pyro_armed.export._tables import Table, coordinate, row_labels, to_numpy, whole_numbers
from pyro_armed.module import OBSERVATIONS
from pyro_armed.posterior import Chain, Posterior
from pyro_armed.seeds import seeded, stream
from pyro_armed.spec import ModelSpec

__all__ = ["WHOLE", "constant_dataset", "observed_dataset", "pointwise"]

# Kinds of responses that are whole numbers: ArviZ draws bars instead of a density for integers.
WHOLE = ("count", "binary", "binomial", "categorical", "ordinal")
_MAX_ELEMENTS = 20_000_000


def pointwise(
    posterior: Posterior,
    batch: Batch,
    what: Sequence[str] = ("posterior_predictive", "log_likelihood"),
    *,
    index: Sequence[Any] | None = None,
    seed: int = 0,
    max_elements: int = _MAX_ELEMENTS,
) -> dict[str, xr.Dataset]:
    """What has one number for each draw and row.

    Parameters
    ----------
    posterior : Posterior
        Draws of all chains.
    batch : Batch
        Rows.
    what : sequence of {"log_likelihood", "posterior_predictive", "prior_predictive"}
        ``log_likelihood``: log density of each observed response, never scaled to the size of the data; where
        rows have weights it is multiplied by them, as in the model (a row of weight 2 counts as two).
        Predictive draws are of single responses whatever the weights: numbers, integers for counts and for
        codes of levels (counts above 2**53 are stored as 2**53).
    index : sequence, optional
        Labels of the rows.
    seed : int
        Seed of the predictive draws; the global random state is put back.
    max_elements : int
        Bound on the numbers in memory for one predictor; decides how many draws are treated at a time.

    Returns
    -------
    dict of str to xarray.Dataset
        By the entries of ``what``, each with one variable named by the response, (chain, draw, __obs__).

    Raises
    ------
    ArgumentError
        For an unknown entry of ``what``, or a log likelihood without responses.
    """
    known = ("log_likelihood", "posterior_predictive", "prior_predictive")
    if unknown := [name for name in what if name not in known]:
        raise ArgumentError(f"what={unknown[0]!r} is not one of {', '.join(map(repr, known))}.")
    if "log_likelihood" in what and batch.response is None:
        raise ArgumentError("The log likelihood needs responses: encode the rows with response=True.")
    check_chains(posterior)
    spec = posterior.chains[0].module.spec
    whole = spec.family.response in WHOLE
    shape = (len(posterior.chains), posterior.n_draws, batch.size)
    arrays = {
        name: np.empty(shape, dtype=np.int64 if whole and name != "log_likelihood" else np.float64)
        for name in what
    }
    purpose = next((name for name in what if name != "log_likelihood"), "")
    size = max(1, max_elements // (max(1, batch.size) * _width(spec)))
    for position, chain in enumerate(posterior.chains):
        views = {name: array[position] for name, array in arrays.items()}
        device = chain.module.priors.device
        with evaluating(chain.module), seeded(stream(seed, purpose, position), [device]):
            _fill(views, chain, batch.to(device), size)
    tables = {}
    for name, array in arrays.items():
        table = Table(shape[0], shape[1], row_labels(index, batch.size))
        table.add(spec.response, (OBSERVATIONS,), array)
        tables[name] = table.dataset()
    return tables


def observed_dataset(spec: ModelSpec, batch: Batch, index: Sequence[Any] | None = None) -> xr.Dataset:
    """The observed response as numbers; for codes, the attribute ``levels`` says what they stand for.

    Parameters
    ----------
    spec : ModelSpec
        The model's structure.
    batch : Batch
        Rows.
    index : sequence, optional
        Labels of the rows.

    Returns
    -------
    xarray.Dataset
        One variable, named by the response; nothing where there are no responses.
    """
    table = Table(rows=row_labels(index, batch.size))
    if batch.response is not None:
        whole = spec.family.response in WHOLE
        values = whole_numbers(batch.response).numpy() if whole else to_numpy(batch.response)
        table.add(spec.response, (OBSERVATIONS,), values, lead=())
    dataset = table.dataset()
    return dataset.assign_attrs(levels=[str(level) for level in spec.levels]) if spec.levels else dataset


def constant_dataset(
    spec: ModelSpec,
    batch: Batch,
    index: Sequence[Any] | None = None,
    new_groups: Mapping[str, Sequence[Any]] | None = None,
) -> xr.Dataset:
    """What is known about the rows besides the response.

    Parameters
    ----------
    spec : ModelSpec
        The model's structure.
    batch : Batch
        Rows.
    index : sequence, optional
        Labels of the rows.
    new_groups : mapping of str to sequence, optional
        Labels of groups that training did not have, in the order of their codes.

    Returns
    -------
    xarray.Dataset
        The label of each grouping factor by the factor's name, ``trials``, ``weights``, and ``offset``
        (``sigma_offset`` for an offset of sigma's predictor), as far as there are any.
    """
    table = Table(rows=row_labels(index, batch.size))
    for name, codes in batch.codes.items():
        seen, new = spec.group(name).labels, (new_groups or {}).get(name)
        labels = coordinate([*seen, *new] if new else seen)
        table.add(name, (OBSERVATIONS,), labels[codes.cpu().numpy()], lead=())
    known = {"trials": batch.trials, "weights": batch.weights}
    known |= {spec.predictor(name).common_name("offset"): value for name, value in batch.offsets.items()}
    for name, value in known.items():
        if value is not None:
            table.add(name, (OBSERVATIONS,), to_numpy(value), lead=())
    return table.dataset()


def _fill(arrays: Mapping[str, np.ndarray], chain: Chain, batch: Batch, size: int) -> None:
    """Fill arrays of shape (S, N), ``size`` draws at a time."""
    module = chain.module
    within = bool(module.spec.layers)
    hidden = None if within else module.hidden(batch)
    start = 0
    for part in chain.chunks(size):
        values = {name: value.to(module.priors.device) for name, value in part.items()}
        if within:
            hidden = module.hidden(batch, values)
        etas = {
            p.parameter: module.linear_predictor(p, values, batch, hidden) for p in module.spec.predictors
        }
        distribution = module.response_distribution(etas, values, batch)
        shape = (len(next(iter(values.values()))), batch.size)
        if distribution.batch_shape != shape:
            distribution = distribution.expand(shape)
        rows = slice(start, start + shape[0])
        for name, array in arrays.items():
            if name == "log_likelihood":
                array[rows] = to_numpy(_log_density(distribution, batch))
            else:
                draws = distribution.sample()
                array[rows] = whole_numbers(draws).numpy() if array.dtype.kind == "i" else to_numpy(draws)
        start = rows.stop


def _log_density(distribution: Any, batch: Batch) -> Tensor:
    density = distribution.log_prob(batch.response)
    if batch.weights is None:
        return density
    return torch.where(batch.weights > 0, density * batch.weights, torch.zeros_like(density))


def _width(spec: ModelSpec) -> int:
    """Numbers in memory for one row and draw: levels, or the effects of the largest block."""
    outputs = max(spec.n_predictors, 1)
    vectors = [term.size * outputs for block in spec.blocks for term in block.terms]
    return max([len(spec.levels), outputs, *vectors, 1])
