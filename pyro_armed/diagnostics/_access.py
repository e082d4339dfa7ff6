"""The model or its ArviZ object: what diagnostics take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from pyro_armed.errors import ArgumentError

if TYPE_CHECKING:
    from pyro_armed.armed import ARMED

__all__ = [
    "attributes_of",
    "dataset_of",
    "distinct_correlations",
    "fitted",
    "idata_of",
    "is_effect",
    "scalar_draws",
]


def idata_of(model: Any) -> Any:
    """The ArviZ object of a fitted model; an ArviZ object is returned as it is."""
    idata = getattr(model, "idata", model)
    if not hasattr(idata, "posterior"):
        raise ArgumentError(f"model must be a fitted ARMED or its ArviZ object, not {type(model).__name__}.")
    return idata


def dataset_of(idata: Any, group: str) -> xr.Dataset:
    """A group of an InferenceData or a DataTree as a dataset; empty where there is none."""
    if group not in _groups(idata):
        return xr.Dataset()
    part = idata[group]
    return part.to_dataset() if isinstance(part, xr.DataTree) else part


def attributes_of(idata: Any) -> dict[str, Any]:
    """What the export says of the fit."""
    return dict(dataset_of(idata, "posterior").attrs)


def fitted(model: Any, what: str) -> ARMED:
    """A fitted model, for what an ArviZ object does not suffice."""
    if not hasattr(model, "module") or not hasattr(model, "_fitted"):
        raise ArgumentError(f"{what} needs the model itself; an ArviZ object does not have its likelihood.")
    model._fitted()
    return model


def is_effect(array: xr.DataArray) -> bool:
    """Whether a parameter has one value for each group."""
    return any(str(dim).endswith("__factor_dim") for dim in array.dims)


def distinct_correlations(dataset: xr.Dataset) -> xr.Dataset:
    """The dataset with each correlation once, as a vector, without the ones on the diagonal."""
    kept: dict[str, xr.DataArray] = {}
    for name, array in dataset.data_vars.items():
        if not (str(name).endswith("_corr") and array.ndim == 4):
            kept[str(name)] = array
            continue
        first, second = array.dims[-2:]
        labels = array[first].to_numpy()
        rows, columns = np.triu_indices(len(labels), 1)
        pairs = [f"{labels[i]}, {labels[j]}" for i, j in zip(rows, columns, strict=True)]
        if pairs:
            chosen = [
                array.isel({first: i, second: j}, drop=True) for i, j in zip(rows, columns, strict=True)
            ]
            kept[str(name)] = xr.concat(
                chosen, dim=xr.DataArray(pairs, dims=f"{name}_pair", name=f"{name}_pair")
            )
    return xr.Dataset(kept, attrs=dataset.attrs)


def scalar_draws(dataset: xr.Dataset) -> Iterator[tuple[str, np.ndarray]]:
    """Scalar parameters as ``name[label, ...]`` and their draws (chains, draws); correlations once."""
    for name, array in distinct_correlations(dataset).data_vars.items():
        dims = [dim for dim in array.dims if dim not in ("chain", "draw")]
        values = array.transpose("chain", "draw", *dims).to_numpy()
        labels = [array[dim].to_numpy() for dim in dims]
        for index in np.ndindex(*values.shape[2:]):
            shown = ", ".join(str(axis[i]) for axis, i in zip(labels, index, strict=True))
            yield (f"{name}[{shown}]" if shown else str(name)), values[(slice(None), slice(None), *index)]


def _groups(idata: Any) -> list[str]:
    if isinstance(idata, xr.DataTree):
        return list(idata.children)
    return list(idata.groups())
