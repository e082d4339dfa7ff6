"""Datasets that netCDF, xarray and both lines of ArviZ accept."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from pyro_armed.errors import ArgumentError
from pyro_armed.groups import GroupIndex
from pyro_armed.integers import Integers
from pyro_armed.module import OBSERVATIONS

__all__ = [
    "Table",
    "coordinate",
    "plain_attributes",
    "row_labels",
    "to_arviz",
    "to_numpy",
    "variable_name",
    "whole_numbers",
]

_LARGEST_COUNT = 2.0**53
_RESERVED = ("chain", "draw", OBSERVATIONS)


def to_arviz(datasets: Mapping[str, xr.Dataset], attributes: Mapping[str, Any] | None = None) -> Any:
    """Wrap datasets as the installed ArviZ likes them.

    Parameters
    ----------
    datasets : mapping of str to xarray.Dataset
        Groups by name; empty ones are left out.
    attributes : mapping, optional
        Written to the object and to each group. What netCDF cannot hold becomes an integer (booleans) or a
        string (None, dictionaries and everything else).

    Returns
    -------
    arviz.InferenceData or xarray.DataTree
        InferenceData on ArviZ 0.x, DataTree on 1.x.

    Examples
    --------
    >>> data = xr.Dataset({"mu": (("chain", "draw"), np.zeros((2, 3)))})
    >>> tree = to_arviz({"posterior": data}, {"converged": True})
    >>> tree["posterior"]["mu"].shape, tree["posterior"].attrs
    ((2, 3), {'converged': 1})
    """
    common = plain_attributes(attributes or {})
    groups = {
        name: dataset.assign_attrs({**common, **plain_attributes(dataset.attrs)})
        for name, dataset in datasets.items()
        if dataset.data_vars
    }
    if int(metadata.version("arviz").split(".")[0]) >= 1:
        # Coordinates of the root would have to agree with those of every group.
        return xr.DataTree.from_dict({"/": xr.Dataset(attrs=common), **groups})
    import arviz

    return arviz.InferenceData(attrs=common, **groups)  # type: ignore[arg-type]


def variable_name(name: str) -> str:
    """A name as netCDF and `xarray.DataTree` accept it.

    ``/`` becomes ``÷``, backticks go, and what would be taken for a dimension of every dataset gets an
    underscore at its end.

    Parameters
    ----------
    name : str
        Name of a parameter, response, group or dimension.

    Returns
    -------
    str

    Examples
    --------
    >>> variable_name("1|district"), variable_name("I(x / 2)"), variable_name("draw")
    ('1|district', 'I(x ÷ 2)', 'draw_')
    """
    clean = "".join(c if c.isprintable() else " " for c in name.replace("/", "÷").replace("`", "")).strip()
    if not (clean[:1].isalnum() or clean[:1] == "_" or clean[:1] > "\x7f"):
        clean = f"_{clean}"
    return f"{clean}_" if clean in _RESERVED else clean


class Table:
    """Variables and coordinates of a dataset in the making."""

    def __init__(self, chains: int = 0, draws: int = 0, rows: np.ndarray | None = None):
        self.coordinates: dict[str, np.ndarray] = {}
        self.variables: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
        if chains:
            self.coordinates |= {"chain": np.arange(chains), "draw": np.arange(draws)}
        if rows is not None:
            self.coordinates[OBSERVATIONS] = rows

    def dim(self, name: str, labels: Iterable[Any], otherwise: str | None = None) -> str:
        """A dimension with these labels; by its second name where the first has other labels."""
        values = coordinate(labels)
        candidate = variable_name(name)
        if otherwise is not None and self._differs(candidate, values):
            candidate = variable_name(otherwise)
        while self._differs(candidate, values):
            candidate += "_"
        self.coordinates[candidate] = values
        return candidate

    def _differs(self, name: str, values: np.ndarray) -> bool:
        return name in self.coordinates and not np.array_equal(self.coordinates[name], values)

    def add(
        self,
        name: str,
        dims: tuple[str, ...],
        values: np.ndarray,
        lead: tuple[str, ...] = ("chain", "draw"),
    ) -> None:
        """A variable with dimensions ``lead`` and then ``dims``."""
        self.variables[name] = ((*lead, *dims), values)

    def dataset(self) -> xr.Dataset:
        """The dataset; a variable named like a dimension gets an underscore at its end."""
        named: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
        for name, variable in self.variables.items():
            final = variable_name(name)
            while final in self.coordinates or final in named:
                final += "_"
            named[final] = variable
        used = {dim for dims, _ in named.values() for dim in dims}
        return xr.Dataset(named, coords={k: v for k, v in self.coordinates.items() if k in used})


def coordinate(labels: Iterable[Any]) -> np.ndarray:
    """Labels as a coordinate of integers or strings."""
    if isinstance(labels, Integers):
        return labels.array
    labels = list(labels)
    values = np.array(GroupIndex("", labels, ()).coordinates())
    return values if values.dtype.kind in "iU" else np.array([str(label) for label in labels], dtype=str)


def row_labels(index: Sequence[Any] | None, n_rows: int) -> np.ndarray:
    """The ``__obs__`` coordinate: unique labels, else 0 to N - 1."""
    if index is None:
        return np.arange(n_rows)
    labels = (index if isinstance(index, pd.Index) else pd.Index(index)).to_flat_index()
    if len(labels) != n_rows:
        raise ArgumentError(f"index has {len(labels)} labels for {n_rows} rows; give one for each row.")
    if not labels.is_unique or labels.isna().any():
        return np.arange(n_rows)
    if isinstance(labels.dtype, np.dtype) and labels.dtype.kind in "iufM":
        return labels.to_numpy()
    return coordinate(labels.tolist())


def whole_numbers(values: Tensor) -> Tensor:
    """Counts as int64. Draws of an overflowing rate come back negative from PyTorch: stored as 2**53."""
    over = ~((values >= 0) & (values <= _LARGEST_COUNT))
    return torch.where(over, torch.full_like(values, _LARGEST_COUNT), values).detach().cpu().long()


def to_numpy(values: Tensor) -> np.ndarray:
    """Values as float64."""
    return values.detach().cpu().double().numpy()


def plain_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes that netCDF can hold."""
    return {variable_name(str(name)): _attribute(value) for name, value in attributes.items()}


def _attribute(value: Any) -> Any:
    """A value that netCDF can hold."""
    if isinstance(value, (Tensor, np.ndarray)):
        value = value.tolist()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, (str, float)) or (isinstance(value, int) and abs(value) < 2**63):
        return value
    if isinstance(value, (list, tuple)) and value:
        if all(isinstance(item, str) for item in value):
            return list(value)
        if all(isinstance(item, (int, float)) and abs(item) < 2**63 for item in value):
            return [int(item) if isinstance(item, bool) else item for item in value]
    return json.dumps(value, default=str) if isinstance(value, (dict, list, tuple)) else str(value)
