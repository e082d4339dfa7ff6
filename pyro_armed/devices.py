"""Where a fit runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from pyro_armed.batch import Batch
from pyro_armed.errors import ArgumentError
from pyro_armed.objective import Objective

__all__ = ["checked_device", "elsewhere"]


@contextmanager
def elsewhere(objectives: Sequence[Objective], data: Batch, device: torch.device) -> Iterator[Batch]:
    """Move models, guides and rows to a device, and the former back to the CPU afterwards.

    Parameters
    ----------
    objectives : sequence of Objective
        Changed in place.
    data : Batch
        Their training rows.
    device : torch.device
        Where to.

    Yields
    ------
    Batch
        The rows there.
    """
    if device == data.device:
        yield data
        return
    moved = data.to(device)
    for objective in objectives:
        objective.to(device, moved)
    try:
        yield moved
    finally:
        for objective in objectives:
            objective.to(data.device, data)


def checked_device(device: Any) -> torch.device:
    """A device that tensors can be on; None: the CPU.

    Parameters
    ----------
    device : str, torch.device or None
        As the user gave it.

    Returns
    -------
    torch.device

    Raises
    ------
    ArgumentError
        For names that PyTorch does not know, and devices that are not there.

    Examples
    --------
    >>> checked_device("cpu")
    device(type='cpu')
    """
    try:
        found = torch.device("cpu" if device is None else device)
        there = torch.zeros(1, device=found)
        float(there)  # tensors on "meta" have no numbers
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        known = ", ".join(["'cpu'", *(f"'cuda:{i}'" for i in range(torch.cuda.device_count()))])
        raise ArgumentError(f"device={device!r} cannot be used here; there is {known}.") from error
    return found
