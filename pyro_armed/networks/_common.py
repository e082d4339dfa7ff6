"""Argument checks and random state, shared by the network modules."""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pyro_armed.errors import ArgumentError


def whole(value: Any, name: str, least: int = 1) -> int:
    """Return ``value`` as an int of at least ``least``; `ArgumentError` otherwise."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < least:
        raise ArgumentError(f"{name} must be a whole number of at least {least}, not {value!r}.")
    return number


def sizes_of(values: Any, name: str) -> tuple[int, ...]:
    """Return layer sizes as a tuple of positive ints; `ArgumentError` otherwise."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ArgumentError(f"{name} must be a sequence of layer sizes such as (16, 16), not {values!r}.")
    return tuple(whole(value, f"each size in {name}") for value in values)


def devices_of(network: nn.Module) -> list[torch.device]:
    """Return the device of each parameter and buffer."""
    return [tensor.device for tensor in (*network.parameters(), *network.buffers())]
