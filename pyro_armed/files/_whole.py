"""Files that are whole or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["write_netcdf", "write_whole"]


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that it is whole or not there: beside its place first, then moved.

    Parameters
    ----------
    path : Path
        Where the file is to be.
    write : callable
        Writes to the path that it gets, which has the same name in a folder of its own.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".pyro-armed-") as folder:
        draft = Path(folder) / path.name
        write(draft)
        os.replace(draft, path)


def write_netcdf(path: Path, idata: Any) -> None:
    """Write an ArviZ object, `InferenceData` or `DataTree`, as netCDF.

    Parameters
    ----------
    path : Path
        Where to.
    idata : arviz.InferenceData or xarray.DataTree
        What.
    """
    write_whole(path, lambda draft: idata.to_netcdf(str(draft), engine="h5netcdf"))
