"""What training steps change: parameters, buffers and Adam's moments in a dictionary of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyro_armed.batch import Batch
from pyro_armed.objective import LossParts, Objective

__all__ = [
    "ROLES",
    "Layout",
    "Parts",
    "State",
    "Tensors",
    "blank_state",
    "first_values",
    "initial_state",
    "sparse_groups",
    "unflattened",
    "write_back",
]

State = dict[str, Tensor]
Tensors = dict[str, Tensor]

ROLES = ("trained", "classifier")


class Parts(nn.Module):
    """Model, guide and classifiers under one roof, so that `functional_call` finds all their parameters."""

    def __init__(self, objective: Objective):
        super().__init__()
        self.objective = (objective,)  # a tuple, for a module would be registered a second time
        self.module = objective.module
        if isinstance(objective.guide, nn.Module):
            self.guide = objective.guide
        if objective.adversary is not None:
            self.classifiers = objective.adversary.classifiers

    def forward(self, batch: Batch, weight: float | Tensor) -> LossParts:
        """The parts of the loss on some rows; see `Objective`."""
        return self.objective[0](batch, weight)


@dataclass(frozen=True)
class Layout:
    """Where each tensor of an objective stands in the state.

    Attributes
    ----------
    dense : dict of str to dict of str to torch.Size
        Parameters that each step changes, by the vector that holds them (one for each role and precision).
    tables : dict of str to str
        Parameters with one row for each group, and the grouping factor, where a step touches only the
        groups in its batch.
    fixed : dict of str to torch.Size
        Frozen parameters, and buffers.
    """

    dense: dict[str, dict[str, torch.Size]]
    tables: dict[str, str]
    fixed: dict[str, torch.Size]

    @classmethod
    def of(cls, objective: Objective, sparse: Sequence[str]) -> Layout:
        """The layout of one objective, the tables of the grouping factors ``sparse`` apart."""
        parts = Parts(objective)
        owners = _tables(objective)
        tables = {f"guide.{name}": group for name, group in owners.items() if group in sparse}
        dense: dict[str, dict[str, torch.Size]] = {}
        fixed = {name: buffer.shape for name, buffer in parts.named_buffers()}
        for name, parameter in parts.named_parameters():
            if not parameter.requires_grad:
                fixed[name] = parameter.shape
            elif name not in tables:
                role = ROLES[name.startswith("classifiers.")]
                dense.setdefault(f"{role}.{parameter.dtype}", {})[name] = parameter.shape
        return cls(dense, tables, fixed)


def initial_state(layout: Layout, objectives: Sequence[Objective]) -> State:
    """What a step changes, before the first one.

    Parameters
    ----------
    layout : Layout
        The layout of each of the objectives.
    objectives : sequence of Objective
        One for each restart. More than one stand side by side in a leading axis; the tables, one below the
        other.

    Returns
    -------
    dict of str to Tensor
    """
    return _state(layout, [_named(objective) for objective in objectives])


def blank_state(layout: Layout, objectives: Sequence[Objective]) -> State:
    """A state of the same shapes, of values that nobody reads: to trace a step takes no memory for tables.

    Parameters
    ----------
    layout, objectives
        See `initial_state`.

    Returns
    -------
    dict of str to Tensor
    """
    named = [_named(objective) for objective in objectives]
    device = next(iter(named[0].values())).device
    shapes = _state(layout, [{name: t.to("meta") for name, t in tensors.items()} for tensors in named])
    return {
        name: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=device)
        for name, t in shapes.items()
    }


def first_values(layout: Layout, objective: Objective, present: Tensors) -> tuple[Tensors, Tensors]:
    """Trained parameters of one restart, of tables the present rows, and what is fixed: `Update.values`."""
    named = _named(objective)
    values = {name: named[name] for names in layout.dense.values() for name in names}
    for name, group in layout.tables.items():
        # The row after the last group stands for padding.
        values[name] = named[name][present[group] % len(named[name])]
    return values, {name: named[name].clone() for name in layout.fixed}


def _state(layout: Layout, named: Sequence[Tensors]) -> State:
    lead = () if len(named) == 1 else (len(named),)
    joined = (lambda parts: parts[0].clone()) if len(named) == 1 else torch.stack
    state: State = {}
    for key, names in layout.dense.items():
        flat = [torch.cat([tensors[name].reshape(-1) for name in names]) for tensors in named]
        _with_moments(state, key, joined(flat))
    for name, group in layout.tables.items():
        _with_moments(state, name, _one_below_the_other([tensors[name] for tensors in named]))
        if f"count.{group}" not in state:
            state[f"count.{group}"] = torch.zeros(len(state[name]), device=state[name].device)
    for name in layout.fixed:
        state[name] = joined([tensors[name] for tensors in named])
    device = next(iter(state.values())).device
    state["norm"] = torch.full(lead, torch.inf, dtype=torch.float64, device=device)
    state["count"] = torch.zeros(lead, dtype=torch.float64, device=device)
    return state


def _one_below_the_other(tables: Sequence[Tensor]) -> Tensor:
    """Tables of all restarts, without a copy in between that would count where there are many groups."""
    size = len(tables[0])
    joined = tables[0].new_empty((len(tables), size + 1, *tables[0].shape[1:]))
    for table, place in zip(tables, joined, strict=True):
        place[:size] = table
        place[size] = table[0]  # the row after the last group is where padding reads and writes
    return joined.flatten(0, 1)


@torch.no_grad()
def write_back(layout: Layout, state: State, objectives: Sequence[Objective]) -> None:
    """Put the state's values into the modules that it was made from."""
    for position, objective in enumerate(objectives):
        values = _one_of(layout, state, position if len(objectives) > 1 else None, len(objectives))
        for name, tensor in _named(objective).items():
            tensor.copy_(values[name])


def sparse_groups(objective: Objective, data: Batch, size: int) -> tuple[str, ...]:
    """Grouping factors with so many groups that a step should touch only those in its batch.

    Parameters
    ----------
    objective : Objective
        The loss; an adversary's grouping factors are left out, since it tells all groups apart anyway.
    data : Batch
        All rows.
    size : int
        Rows per step.

    Returns
    -------
    tuple of str
    """
    tables = _tables(objective)
    watched = () if objective.adversary is None else objective.adversary.groups
    return tuple(
        group.name
        for group in objective.module.spec.groups
        if size < data.n_rows
        and group.size > 2 * size
        and group.name in tables.values()
        and group.name not in watched
    )


def _tables(objective: Objective) -> dict[str, str]:
    """The guide's parameters with one row for each group; none, if it does not say."""
    guide: Any = objective.guide
    return guide.tables() if hasattr(guide, "tables") else {}


def _named(objective: Objective) -> Tensors:
    parts = Parts(objective)
    return {name: tensor.detach() for name, tensor in [*parts.named_parameters(), *parts.named_buffers()]}


def _with_moments(state: State, key: str, value: Tensor) -> None:
    state[key] = value
    state[f"{key}.mean"], state[f"{key}.square"] = torch.zeros_like(value), torch.zeros_like(value)


def _one_of(layout: Layout, state: State, position: int | None, count: int) -> Tensors:
    """The parameters and buffers of one restart."""
    pick = (lambda tensor: tensor) if position is None else (lambda tensor: tensor[position])
    values = {name: pick(state[name]) for name in layout.fixed}
    for key, shapes in layout.dense.items():
        values.update(unflattened(pick(state[key]), shapes))
    for name in layout.tables:
        values[name] = state[name].chunk(count)[position or 0][:-1]
    return values


def unflattened(flat: Tensor, shapes: Mapping[str, torch.Size]) -> Tensors:
    """The parameters (..., *shape) of which a vector (..., P) is made."""
    parts = flat.split([shape.numel() for shape in shapes.values()], dim=-1)
    lead = flat.shape[:-1]
    return {n: p.reshape(lead + shape) for (n, shape), p in zip(shapes.items(), parts, strict=True)}
