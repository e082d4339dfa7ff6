"""Posterior draws written to netCDF or Zarr, some groups at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import h5netcdf
import h5py
import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from pyro_armed.errors import ArgumentError
from pyro_armed.export._parameters import posterior_dataset
from pyro_armed.export._tables import coordinate, plain_attributes
from pyro_armed.export._zarr import ZarrGroup, zarr_store
from pyro_armed.module import group_plate
from pyro_armed.posterior import Posterior
from pyro_armed.some_groups import blocks_of, posterior_of

__all__ = ["write_posterior"]

# Draws of one chain that are made at a time: a few hundred MiB with all that they pass through.
_NUMBERS = 4_000_000
_TYPES = ("float32", "float64")


def write_posterior(
    posterior: Posterior,
    path: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    progressbar: bool = True,
) -> None:
    """Write the draws of all parameters and of the effects of all groups, a block of groups at a time.

    Parameters
    ----------
    posterior : Posterior
        Draws, held or not.
    path : path-like
        A netCDF file, or a Zarr folder where the name ends in ``.zarr``; it is whole or not there.
    dtype : {"float32", "float64"}
        Precision of the draws in the file.
    progressbar : bool
        Whether to show progress.

    Raises
    ------
    ArgumentError
        For another precision.
    FileNotFoundError
        Where the folder does not exist.
    MissingDependencyError
        For Zarr without its package.
    """
    path = Path(path)
    store = zarr_store if path.suffix.lower() == ".zarr" else _netcdf
    if dtype not in _TYPES:
        raise ArgumentError(f"dtype={dtype!r} is not 'float32' or 'float64'.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder '{path.parent}'; make it first.")
    spec = posterior.chains[0].module.spec
    total = sum(group.size for group in spec.groups)
    with (
        store(path, plain_attributes(posterior.attributes)) as group,
        tqdm(total=total, desc="groups", disable=not progressbar, leave=False) as bar,
    ):
        written = _Written(group, posterior, dtype)
        for factor in spec.groups:
            start = 0
            for dataset, size in _blocks(posterior, factor.name):
                written.add(dataset, factor.name, start)
                start += size
                bar.update(size)


@contextmanager
def _netcdf(path: Path, attributes: Mapping[str, Any]) -> Iterator[_NetCDF]:
    """The group ``posterior`` of a file that is there once it is complete."""
    draft = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        with h5netcdf.File(draft, "w") as file:
            file.attrs.update(attributes)
            yield _NetCDF(file.create_group("posterior"))
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


class _NetCDF:
    """A group of a netCDF file as `_Written` fills it."""

    def __init__(self, group: Any):
        self.group = group

    def coordinate(self, name: str, values: np.ndarray) -> None:
        """Write a dimension's labels."""
        self.group.dimensions[name] = len(values)
        text = values.dtype.kind not in "if"
        kind: Any = h5py.string_dtype() if text else values.dtype
        self.group.create_variable(name, (name,), kind)[...] = values.astype(object) if text else values

    def variable(self, name: str, sizes: Mapping[str, int], dtype: str, chunks: Sequence[int] | None) -> Any:
        """A variable to be filled."""
        return self.group.create_variable(
            name, tuple(sizes), dtype, chunks=None if chunks is None else tuple(chunks)
        )


def _blocks(posterior: Posterior, group: str) -> Iterator[tuple[xr.Dataset, int]]:
    """Datasets of successive groups of one factor, and one group of each other."""
    first = {one.name: torch.zeros(1, dtype=torch.long) for one in posterior.chains[0].module.spec.groups}
    for codes in blocks_of(posterior, group, _NUMBERS // len(posterior.chains)):
        yield posterior_dataset(posterior_of(posterior, {**first, group: codes})), len(codes)


class _Written:
    """The group ``posterior`` of a file in the making."""

    def __init__(self, group: _NetCDF | ZarrGroup, posterior: Posterior, dtype: str):
        self.group, self.dtype = group, dtype
        spec = posterior.chains[0].module.spec
        self.labels = {group_plate(one.name): one.labels for one in spec.groups}
        self.sizes: dict[str, int] = {}
        self.variables: dict[str, Any] = {}

    def add(self, dataset: xr.Dataset, factor: str, start: int) -> None:
        """Write what is not there yet, and the effects of the factor's groups from ``start`` on."""
        dim = group_plate(factor)
        for name, values in dataset.coords.items():
            if str(name) not in self.sizes:
                own = self.labels.get(str(name))
                whole = values.to_numpy() if own is None else coordinate(own)
                self.sizes[str(name)] = len(whole)
                self.group.coordinate(str(name), whole)
        for name, array in dataset.data_vars.items():
            dims = tuple(map(str, array.dims))
            if str(name) not in self.variables:
                self._create(str(name), dims)
                if not set(dims) & set(self.labels):
                    self.variables[str(name)][...] = array.to_numpy().astype(self.dtype)
            if dim in dims:
                place = tuple(
                    slice(start, start + array.sizes[one]) if one == dim else slice(None) for one in dims
                )
                self.variables[str(name)][place] = array.to_numpy().astype(self.dtype)

    def _create(self, name: str, dims: tuple[str, ...]) -> None:
        sizes = {dim: self.sizes[dim] for dim in dims}
        chunks = None
        if set(dims) & set(self.labels):
            # Whole chains of a few groups: what plots and summaries of some groups read.
            chunks = [
                1 if dim == "chain" else min(size, 256) if dim in self.labels else size
                for dim, size in sizes.items()
            ]
        self.variables[name] = self.group.variable(name, sizes, self.dtype, chunks)
