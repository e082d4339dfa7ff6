"""The ArviZ object as tensors and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pyro_armed.errors import ArgumentError, FileFormatError
from pyro_armed.export import to_arviz

__all__ = ["pack", "unpack"]


def pack(idata: Any, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Describe an ArviZ object and put its arrays with the tensors.

    Parameters
    ----------
    idata : arviz.InferenceData or xarray.DataTree
        The object.
    tensors : dict of str to Tensor
        Gets one entry for each array.

    Returns
    -------
    dict
        Groups, their variables and coordinates, dimensions, dtypes and attributes.

    Raises
    ------
    ArgumentError
        For arrays of objects.
    """
    groups: dict[str, Any] = {}
    for group, dataset in _datasets(idata).items():
        described: dict[str, Any] = {"attrs": dict(dataset.attrs), "data_vars": {}, "coords": {}}
        for part in ("data_vars", "coords"):
            for name, array in getattr(dataset, part).items():
                key = f"idata.{group}.{part}.{name}"
                tensors[key], dtype = _to_tensor(f"{group}/{name}", array.values)
                described[part][str(name)] = {
                    "tensor": key,
                    "dims": list(array.dims),
                    "dtype": dtype,
                    "shape": list(array.shape),
                    "attrs": dict(array.attrs),
                }
        groups[group] = described
    return {"attrs": dict(idata.attrs), "groups": groups}


def unpack(described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    """The ArviZ object that `pack` described, as the installed ArviZ likes it.

    Parameters
    ----------
    described : mapping
        From `pack`.
    tensors : mapping of str to Tensor
        The file's tensors.

    Returns
    -------
    arviz.InferenceData or xarray.DataTree
    """
    groups = {}
    for group, parts in described["groups"].items():
        arrays = {
            part: {
                name: (item["dims"], _to_array(tensors[item["tensor"]], item), item["attrs"])
                for name, item in parts[part].items()
            }
            for part in ("data_vars", "coords")
        }
        groups[group] = xr.Dataset(arrays["data_vars"], coords=arrays["coords"])
    idata = to_arviz(groups)
    idata.attrs.update(described["attrs"])
    for group in groups:
        idata[group].attrs.update(described["groups"][group]["attrs"])
    return idata


def _datasets(idata: Any) -> dict[str, xr.Dataset]:
    if hasattr(idata, "children"):
        return {name: node.to_dataset() for name, node in idata.children.items()}
    return {name: idata[name] for name in idata.groups()}


def _to_tensor(name: str, values: np.ndarray) -> tuple[Tensor, str]:
    """An array's numbers, or the UTF-8 bytes of a JSON list where it holds strings."""
    kind = values.dtype.kind
    if kind in "bif":
        return torch.tensor(values), values.dtype.str
    if kind in "mM":
        return torch.tensor(values.astype("int64")), values.dtype.str
    if kind == "u":
        return torch.tensor(values.astype("int64")), values.dtype.str
    flat = values.reshape(-1).tolist()
    if kind in "OU" and all(isinstance(item, str) for item in flat):
        text = json.dumps(flat).encode()
        return torch.tensor(np.frombuffer(text, dtype=np.uint8).copy()), values.dtype.str
    raise ArgumentError(
        f"{name} in the ArviZ object holds {values.dtype} values, which cannot be saved; "
        "use numbers or strings."
    )


def _to_array(tensor: Tensor, item: Mapping[str, Any]) -> np.ndarray:
    dtype = np.dtype(item["dtype"])
    if dtype.kind not in "bifumMOU":
        raise FileFormatError(f"The file stores an array of unknown type {item['dtype']!r}.")
    values = tensor.numpy()
    if dtype.kind in "OU":
        texts = json.loads(values.tobytes().decode())
        if not all(isinstance(text, str) for text in texts):
            raise FileFormatError("The file stores labels that are not strings.")
        values = np.array(texts, dtype=dtype)
    return values.astype(dtype, copy=False).reshape(item["shape"])
