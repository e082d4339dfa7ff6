"""The group as an input of any network."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_armed.baselines._fitted import ArmedFit
from pyro_armed.baselines._task import Rows, Task
from pyro_armed.errors import ArgumentError
from pyro_armed.networks import BuiltIn, changed_layers

__all__ = ["GroupInput", "GroupInputFit", "first_dense", "joined"]


class GroupInput(nn.Module):
    """A network that is told the group: its one-hot code is appended to the input of one dense layer.

    A one-hot code times its weights is a row of them, so that the code itself is never made: each group adds
    a vector to the layer's output. A new group adds the mean of them. The network is not edited.

    Parameters
    ----------
    network : nn.Module
        Takes inputs of shape (B, ...).
    shape : tuple of int
        Shape of one input.
    groups : int
        Number C of groups.
    layer : str, optional
        Name of the ``nn.Linear``; None: the first one, which for a dense network means that the code is an
        input beside the others, and for a convolutional one that it stands beside what the convolutions see.

    Raises
    ------
    ArgumentError
        Where there is no such layer.

    Examples
    --------
    >>> network = GroupInput(nn.Linear(2, 1), (2,), groups=3)
    >>> network(torch.tensor([[0.5, 0.5, 1 / 3]])).shape  # the second of three groups
    torch.Size([1, 1])
    """

    def __init__(self, network: nn.Module, shape: tuple[int, ...], groups: int, layer: str | None = None):
        super().__init__()
        self.network, self.shape, self.groups = network, shape, groups
        self.layer = first_dense(network) if layer is None else layer
        dense = dict(network.named_modules()).get(self.layer)
        if not isinstance(dense, nn.Linear):
            raise ArgumentError(f"group_layer={layer!r} is not the name of an nn.Linear of the network.")
        self.shift = nn.Parameter(torch.empty(groups, dense.out_features))
        self._fan_in = dense.in_features + groups
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Redraw the groups' weights as ``nn.Linear`` does."""
        bound = 1.0 / math.sqrt(self._fan_in)
        nn.init.uniform_(self.shift, -bound, bound)

    def forward(self, x: Tensor) -> Any:
        """Output for flattened inputs with the group's code divided by C in the last column, (B, P + 1)."""
        codes = (x[:, -1] * self.groups).round().long()
        weights = torch.cat([self.shift, self.shift.mean(0, keepdim=True)])
        added = weights[codes]
        with changed_layers(self.network, {self.layer: lambda h: h + added}):
            result = self.network(x[:, :-1].reshape(len(x), *self.shape))
        if not isinstance(result, tuple | list):
            return result
        # A network that reconstructs has to give all columns, the code's too.
        output, rebuilt = result
        return output, torch.cat([rebuilt.reshape(len(x), -1), x[:, -1:]], dim=1)


def first_dense(network: nn.Module) -> str:
    """Name of the first ``nn.Linear``; `ArgumentError` where there is none."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            return name
    raise ArgumentError("the network has no nn.Linear at which the group could enter; name group_layer.")


def joined(task: Task, rows: Rows) -> Any:
    """Inputs with the group's code, shape (N, P + 1).

    Columns of a two-dimensional x are standardised here, as models do: the code must not be.
    """
    x = np.asarray(rows.x, dtype=np.float64)
    if x.ndim == 2 and task.options.get("standardize", True):
        known = np.asarray(task.train.x, dtype=np.float64)
        spread = known.std(0)
        x = (x - known.mean(0)) / np.where(spread > 0.0, spread, 1.0)
    return np.column_stack([x.reshape(len(x), -1), task.codes(rows) / len(task.labels)])


def told_the_group(task: Task, outputs: int) -> Callable[[], nn.Module]:
    """The task's network as a function that gives it told the group."""
    shape, groups = task.train.x.shape[1:], len(task.labels)

    def make() -> nn.Module:
        network = task.network()
        if isinstance(network, BuiltIn) and not network.is_built:
            network.build_for(shape, outputs, seed=int(torch.randint(2**31, ())))
        return GroupInput(network, shape, groups, task.group_layer)

    return make


class GroupInputFit(ArmedFit):
    """An `ARMED` whose network is told the group."""

    def __init__(self, task: Task, model: Any):
        super().__init__(model, task.new_groups, task.draws)
        object.__setattr__(self, "task", task)

    def inputs(self, rows: Rows) -> Any:
        """Inputs with the group's code, shape (N, P + 1)."""
        return joined(self.task, rows)  # type: ignore[attr-defined]
