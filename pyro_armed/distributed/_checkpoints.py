"""The state of training in a file: numbers and JSON, and nothing that could run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_armed.distributed._task import Task
from pyro_armed.errors import FileFormatError
from pyro_armed.files import read_container, write_container

__all__ = ["restore_checkpoint", "write_checkpoint"]

_KIND = "checkpoint"


def write_checkpoint(task: Task, optimizer: torch.optim.Optimizer, path: str | os.PathLike[str]) -> None:
    """Write parameters, buffers, the optimiser's moments and the course of training.

    Parameters
    ----------
    task : Task
        What is trained.
    optimizer : Optimizer
        Its Adam.
    path : path-like
        A file that stands there is replaced once the new one is complete.
    """
    tensors = {f"state.{name}": tensor for name, tensor in task.state_dict().items()}
    state = optimizer.state_dict()
    for number, moments in state["state"].items():
        tensors |= {f"adam.{number}.{name}": torch.as_tensor(value) for name, value in moments.items()}
    if task.records:
        tensors["records"] = torch.stack([record.cpu() for record in task.records])
    header = {
        "kind": _KIND,
        "formula": task.model[0].formula,
        "step": task.step,
        "sizes": [len(group["params"]) for group in state["param_groups"]],
        "rates": [group["lr"] for group in state["param_groups"]],
        "progress": task.progress(),
    }
    write_container(path, tensors, header)


def restore_checkpoint(
    task: Task, optimizer: torch.optim.Optimizer | None, path: str | os.PathLike[str]
) -> None:
    """Put back what `write_checkpoint` wrote, on whatever device the task is.

    Parameters
    ----------
    task : Task
        Of the same model.
    optimizer : Optimizer, optional
        Its Adam; None: moments and learning rates are left in the file.
    path : path-like
        The file.

    Raises
    ------
    FileNotFoundError
        Where there is no such file.
    FileFormatError
        For files of another kind or model.
    """
    tensors, header = read_container(path)
    if header.get("kind") != _KIND:
        raise FileFormatError(f"'{path}' is a fitted model, not a checkpoint: read it with pa.load().")
    parameters = {n.removeprefix("state."): t for n, t in tensors.items() if n.startswith("state.")}
    try:
        task.load_state_dict(parameters)
    except RuntimeError as error:
        raise FileFormatError(
            f"The checkpoint '{path}' is of another model ({header.get('formula')}); make that one."
        ) from error
    if optimizer is not None:
        _restore_optimizer(optimizer, tensors, header)
    task.records = list(tensors["records"]) if "records" in tensors else []
    task.step = int(header["step"])
    task.restore_progress(header["progress"])


def _restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], header: Mapping[str, Any]
) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("adam."):
            _, number, moment = name.split(".", 2)
            state.setdefault(int(number), {})[moment] = tensor
    described: dict[str, Any] = optimizer.state_dict()
    sizes = [len(group["params"]) for group in described["param_groups"]]
    if header.get("sizes") != sizes:
        raise FileFormatError(
            "The checkpoint was written with another batch size, number of processes or version, and has "
            "other moments; go on with those, or read it with fit_from()."
        )
    for group, rate in zip(described["param_groups"], header["rates"], strict=True):
        group["lr"] = rate
    optimizer.load_state_dict({"state": state, "param_groups": described["param_groups"]})
