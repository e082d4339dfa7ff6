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
    "group_tables",
    "initial_state",
    "rows_key",
    "sparse_groups",
    "split_rows",
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
    rows : dict of str to dict of str to torch.Size
        For each grouping factor of which a step touches only the groups in its batch, the parameters with one
        row for each group and the shape of a row. They stand side by side in one table, each group's moments
        and its number of steps beside them: rows of a large table come from memory one by one.
    fixed : dict of str to torch.Size
        Frozen parameters, and buffers.
    """

    dense: dict[str, dict[str, torch.Size]]
    rows: dict[str, dict[str, torch.Size]]
    fixed: dict[str, torch.Size]

    @property
    def tables(self) -> dict[str, str]:
        """The parameters with one row for each group, and their grouping factor."""
        return {name: group for group, shapes in self.rows.items() for name in shapes}

    @classmethod
    def of(cls, objective: Objective, sparse: Sequence[str]) -> Layout:
        """The layout of one objective, the tables of the grouping factors ``sparse`` apart."""
        parts = Parts(objective)
        owners = {f"guide.{name}": group for name, group in _tables(objective).items()}
        rows: dict[str, dict[str, torch.Size]] = {group: {} for group in sparse if group in owners.values()}
        dense: dict[str, dict[str, torch.Size]] = {}
        fixed = {name: buffer.shape for name, buffer in parts.named_buffers()}
        for name, parameter in parts.named_parameters():
            if not parameter.requires_grad:
                fixed[name] = parameter.shape
            elif owners.get(name) in rows:
                rows[owners[name]][name] = parameter.shape[1:]
            else:
                role = ROLES[name.startswith("classifiers.")]
                dense.setdefault(f"{role}.{parameter.dtype}", {})[name] = parameter.shape
        return cls(dense, rows, fixed)


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
    for group, shapes in layout.rows.items():
        state[rows_key(group)] = _side_by_side(shapes, named)
    for name in layout.fixed:
        state[name] = joined([tensors[name] for tensors in named])
    device = next(iter(state.values())).device
    state["norm"] = torch.full(lead, torch.inf, dtype=torch.float64, device=device)
    state["count"] = torch.zeros(lead, dtype=torch.float64, device=device)
    return state


def rows_key(group: str) -> str:
    """Name in the state of a grouping factor's table: values, both moments and steps taken in each row."""
    return f"rows.{group}"


def _side_by_side(shapes: Mapping[str, torch.Size], named: Sequence[Tensors]) -> Tensor:
    """The table of all restarts, one below the other, made without a copy in between."""
    first = named[0][next(iter(shapes))]
    width, size = sum(shape.numel() for shape in shapes.values()), len(first)
    joined = first.new_zeros(len(named), size + 1, 3 * width + 1)
    for tensors, place in zip(named, joined, strict=True):
        for name, columns in split_rows(shapes, place[:, :width]).items():
            columns[:size] = tensors[name]
            columns[size] = tensors[name][0]  # the row after the last group is where padding reads and writes
    return joined.flatten(0, 1)


def split_rows(shapes: Mapping[str, torch.Size], values: Tensor) -> Tensors:
    """The parameters (..., *shape) of which rows of values (..., W) are made: views."""
    parts = values.split([shape.numel() for shape in shapes.values()], dim=-1)
    return {
        name: part.unflatten(-1, shape) if len(shape) else part[..., 0]
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }


def group_tables(layout: Layout, state: State) -> Tensors:
    """The parameters with one row for each group as the state has them, padding included: views."""
    found: Tensors = {}
    for group, shapes in layout.rows.items():
        width = sum(shape.numel() for shape in shapes.values())
        found.update(split_rows(shapes, state[rows_key(group)][:, :width]))
    return found


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
    for name, table in group_tables(layout, state).items():
        values[name] = table.chunk(count)[position or 0][:-1]
    return values


def unflattened(flat: Tensor, shapes: Mapping[str, torch.Size]) -> Tensors:
    """The parameters (..., *shape) of which a vector (..., P) is made."""
    parts = flat.split([shape.numel() for shape in shapes.values()], dim=-1)
    lead = flat.shape[:-1]
    return {n: p.reshape(lead + shape) for (n, shape), p in zip(shapes.items(), parts, strict=True)}
