"""Zarr: a folder of compressed chunks (extra ``zarr``)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from pyro_armed.errors import MissingDependencyError

__all__ = ["ZarrGroup", "zarr_store"]


@contextmanager
def zarr_store(path: Path, attributes: Mapping[str, Any]) -> Iterator[ZarrGroup]:
    """The group ``posterior`` of a folder that is there once it is complete.

    Parameters
    ----------
    path : Path
        The folder; one that stands there is replaced.
    attributes : mapping
        Of the whole.

    Yields
    ------
    ZarrGroup

    Raises
    ------
    MissingDependencyError
        Without the package ``zarr``.
    FileExistsError
        Where a file of that name, or a folder of something else, is in the way.
    """
    try:
        import zarr
    except ImportError as error:
        raise MissingDependencyError(
            f"'{path}' needs the package 'zarr': pip install 'pyro_armed[zarr]'; or write netCDF, a name "
            "that ends in .nc."
        ) from error
    if path.exists() and not (path / ".zgroup").is_file() and not (path / "zarr.json").is_file():
        raise FileExistsError(f"'{path}' is there and is no Zarr folder; remove it or take another name.")
    draft, old = (path.with_name(f".{path.name}.{uuid4().hex}.tmp") for _ in range(2))
    try:
        # Format 2: every version of xarray and of zarr that ArviZ may meet reads it.
        root = zarr.open_group(draft, mode="w", zarr_format=2, attributes=dict(attributes))
        yield ZarrGroup(root.create_group("posterior"))
        zarr.consolidate_metadata(root.store)
        if path.exists():
            path.rename(old)
        draft.rename(path)
    finally:
        for folder in (draft, old):
            shutil.rmtree(folder, ignore_errors=True)


class ZarrGroup:
    """A group of a Zarr store that is filled variable by variable.

    Parameters
    ----------
    group : zarr.Group
        The group.
    """

    def __init__(self, group: Any):
        self.group = group

    def coordinate(self, name: str, values: np.ndarray) -> None:
        """Write a dimension's labels."""
        text = values.dtype.kind not in "if"
        array = self._array(name, {name: len(values)}, str if text else values.dtype, [max(1, len(values))])
        array[...] = values.astype(object) if text else values

    def variable(self, name: str, sizes: Mapping[str, int], dtype: str, chunks: Sequence[int] | None) -> Any:
        """A variable to be filled."""
        return self._array(name, sizes, dtype, chunks or list(sizes.values()))

    def _array(self, name: str, sizes: Mapping[str, int], dtype: Any, chunks: Sequence[int]) -> Any:
        return self.group.create_array(
            name,
            shape=tuple(sizes.values()),
            dtype=dtype,
            chunks=tuple(chunks),
            fill_value=None,  # readers would take a fill value for missing
            attributes={"_ARRAY_DIMENSIONS": list(sizes)},
        )
