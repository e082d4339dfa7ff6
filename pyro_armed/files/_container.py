"""The file itself: named tensors and a JSON header, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from pyro_armed.errors import ArgumentError, FileFormatError

__all__ = ["FORMAT", "VERSION", "read", "write"]

FORMAT = "pyro_armed"
VERSION = 1


def write(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write a file; one that stood there before stays whole until the new one is complete.

    Parameters
    ----------
    path : path-like
        Where to.
    tensors : mapping of str to Tensor
        Everything numeric.
    header : mapping
        JSON-able description.

    Raises
    ------
    FileNotFoundError
        Where the folder does not exist.
    ArgumentError
        For tensors that a file cannot hold, and a path that is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise ArgumentError(f"'{path}' is a folder; give the path of a file in it.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder '{path.parent}'; make it first.")
    metadata = {"format": FORMAT, "version": str(VERSION), "model": json.dumps(header, default=_plain)}
    # Copies: safetensors refuses tensors that share memory, as tied weights do.
    own = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        # Not safetensors' own save_file, which makes files that only their owner may read.
        temporary.write_bytes(serialize(own, metadata))
        os.replace(temporary, path)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ArgumentError(f"The model has a tensor that a file cannot hold: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write` wrote.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    tensors : dict of str to Tensor
    header : dict

    Raises
    ------
    FileNotFoundError
        Where there is no such file.
    FileFormatError
        For files that are empty, truncated, not from this library, or of a version that it does not know.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no file '{path}'.")
    if path.is_dir():
        raise FileFormatError(f"'{path}' is a folder, not a saved model.")
    if path.stat().st_size == 0:
        raise FileFormatError(f"'{path}' is empty; save the model again.")
    try:
        with safe_open(path, framework="pt") as file:
            header = _header(path, file.metadata() or {})
            # Clones: what safetensors returns may be the file's own memory.
            return {name: file.get_tensor(name).clone() for name in file.keys()}, header  # noqa: SIM118
    except SafetensorError as error:
        raise FileFormatError(
            f"'{path}' is not a saved model, or only a part of one ({error}); save the model again."
        ) from error


def _header(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    if metadata.get("format") != FORMAT:
        raise FileFormatError(f"'{path}' is a safetensors file, but not a model saved by pyro_armed.")
    if metadata.get("version") != str(VERSION):
        raise FileFormatError(
            f"'{path}' has version {metadata.get('version')} of the file format; this pyro_armed reads "
            f"version {VERSION}. Load it with the pyro_armed that saved it."
        )
    try:
        header = json.loads(metadata["model"])
    except (KeyError, ValueError) as error:
        raise FileFormatError(f"The description in '{path}' cannot be read; save the model again.") from error
    if not isinstance(header, dict):
        raise FileFormatError(f"The description in '{path}' cannot be read; save the model again.")
    return header


def _plain(value: Any) -> Any:
    """Python's own for NumPy's numbers."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise ArgumentError(f"{value!r} of type {type(value).__name__} cannot be saved in a file.")
