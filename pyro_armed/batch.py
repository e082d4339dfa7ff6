"""Rows as tensors: what the Pyro model is conditioned on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

__all__ = ["Batch", "inclusion_probability", "minibatches", "present_groups"]


@dataclass(frozen=True)
class Batch:
    """Some rows of the data, encoded.

    Attributes
    ----------
    size : int
        Rows here, B.
    n_rows : int
        Rows of the whole data set, N; the likelihood is scaled by N / B.
    inputs : Tensor, shape (B, ...)
        The network's input, if there is a network.
    columns : dict of str to Tensor, shape (B, K)
        Standardised common columns for each predictor.
    slopes : dict of str to Tensor, shape (B, K)
        Raw columns of each effect block (features excluded), by `EffectBlock.key`.
    codes : dict of str to Tensor, shape (B,)
        Codes of each grouping factor.
    offsets : dict of str to Tensor, shape (B,)
        Known values added to a predictor.
    response : Tensor, shape (B,)
        Observed response, if known.
    trials : Tensor, shape (B,)
        Trials of a binomial response.
    weights : Tensor, shape (B,)
        Row weights: the log density of a row is multiplied by its weight.
    rows : Tensor, shape (B,)
        Indices of these rows in the whole data set; None for all of them.
    present : dict of str to Tensor
        Codes of the groups whose effects are drawn; ``codes`` then index into them. Absent: all groups.
    group_scale : dict of str to Tensor
        Factor of the log density of each present group's effects.
    """

    size: int
    n_rows: int
    inputs: Tensor | None = None
    columns: dict[str, Tensor] = field(default_factory=dict)
    slopes: dict[str, Tensor] = field(default_factory=dict)
    codes: dict[str, Tensor] = field(default_factory=dict)
    offsets: dict[str, Tensor] = field(default_factory=dict)
    response: Tensor | None = None
    trials: Tensor | None = None
    weights: Tensor | None = None
    rows: Tensor | None = None
    present: dict[str, Tensor] = field(default_factory=dict)
    group_scale: dict[str, Tensor] = field(default_factory=dict)

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with ``function`` applied to each tensor."""
        changed: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                changed[item.name] = function(value)
            elif isinstance(value, dict):
                changed[item.name] = {key: function(tensor) for key, tensor in value.items()}
        return replace(self, **changed)

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device."""
        return self.map(lambda tensor: tensor.to(device))

    def select(self, rows: Tensor) -> Batch:
        """Some of the rows.

        Parameters
        ----------
        rows : Tensor, shape (B,)
            Indices, int64.

        Returns
        -------
        Batch
            With the same ``n_rows``, so that the likelihood scales to the whole data.
        """
        return replace(self.map(lambda tensor: tensor[rows]), size=len(rows), rows=rows)

    def joined(self, other: Batch) -> Batch:
        """These rows and then another batch's, as a data set of their own.

        Parameters
        ----------
        other : Batch
            Rows of the same model. Where only one of the two has weights, the other's are one.

        Returns
        -------
        Batch
        """
        size = self.size + other.size
        changed: dict[str, Any] = {"size": size, "n_rows": size, "rows": None}
        for item in fields(self):
            first, second = getattr(self, item.name), getattr(other, item.name)
            if item.name == "weights" and (first is None) != (second is None):
                given = first if second is None else second
                first = given.new_ones(self.size) if first is None else first
                second = given.new_ones(other.size) if second is None else second
            if isinstance(first, Tensor) and item.name != "rows":
                changed[item.name] = torch.cat([first, second.to(first.dtype)])
            elif isinstance(first, dict):
                changed[item.name] = {key: torch.cat([part, second[key]]) for key, part in first.items()}
        return replace(self, **changed)

    def first(self, count: int) -> Batch:
        """The first rows, with what is said of the groups as it is; ``count`` at most the batch's size."""
        rows = self.map(lambda tensor: tensor[:count])
        return replace(rows, size=count, present=self.present, group_scale=self.group_scale)

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return next(iter(self.tensors().values())).device

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, ``codes.site`` for that of a dictionary."""
        found: dict[str, Tensor] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                found[item.name] = value
            elif isinstance(value, dict):
                found.update({f"{item.name}.{key}": tensor for key, tensor in value.items()})
        return found

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Batch:
        """The same batch with other tensors, by the names that `tensors` gives them."""
        changed: dict[str, Any] = {}
        for name, tensor in tensors.items():
            attribute, _, key = name.partition(".")
            if key:
                changed.setdefault(attribute, dict(getattr(self, attribute)))[key] = tensor
            else:
                changed[attribute] = tensor
        return replace(self, **changed)

    def without_response(self) -> Batch:
        """The rows as a predictive model sees them."""
        return replace(self, response=None)


def minibatches(n_rows: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of one epoch of shuffled minibatches, all of one size.

    The last rows of a shuffle that do not fill a batch wait for the next epoch's shuffle, so that each
    batch is an unbiased sample and no step has another shape.

    Parameters
    ----------
    n_rows : int
        Rows of the data set.
    batch_size : int
        Rows per batch; at most ``n_rows``.
    generator : torch.Generator
        Source of the shuffle.

    Yields
    ------
    Tensor, shape (batch_size,)

    Examples
    --------
    >>> [len(b) for b in minibatches(10, 4, torch.Generator().manual_seed(0))]
    [4, 4]
    """
    order = torch.randperm(n_rows, generator=generator)
    batch_size = min(batch_size, n_rows)
    for start in range(0, n_rows - batch_size + 1, batch_size):
        yield order[start : start + batch_size]


def present_groups(codes: Tensor, padding: int) -> tuple[Tensor, Tensor]:
    """The groups of some rows, without a table as long as the groups are many.

    Parameters
    ----------
    codes : Tensor, shape (..., B)
        Codes of the rows.
    padding : int
        What fills up the groups to B: shapes do not depend on the rows, so that a step can be traced.

    Returns
    -------
    groups : Tensor, shape (..., B)
        Distinct codes in ascending order, then padding.
    positions : Tensor, shape (..., B)
        Where each row's code stands in ``groups``.

    Examples
    --------
    >>> present_groups(torch.tensor([7, 2, 7]), padding=9)
    (tensor([2, 7, 9]), tensor([1, 0, 1]))
    """
    ordered, order = codes.sort(dim=-1, stable=True)
    first = torch.ones_like(ordered)
    first[..., 1:] = (ordered[..., 1:] != ordered[..., :-1]).to(first.dtype)
    slots = first.cumsum(-1) - 1
    positions = torch.zeros_like(codes).scatter(-1, order, slots)
    return torch.full_like(codes, padding).scatter(-1, slots, ordered), positions


def inclusion_probability(counts: Tensor, n_rows: int, batch_size: int) -> Tensor:
    """Probability that a random minibatch has at least one row of a group.

    Parameters
    ----------
    counts : Tensor, shape (C,)
        Rows of each group.
    n_rows : int
        Rows of the data set, N.
    batch_size : int
        Rows of a minibatch, drawn without replacement, B.

    Returns
    -------
    Tensor, shape (C,), float64
        One minus the hypergeometric probability of none.

    Examples
    --------
    >>> inclusion_probability(torch.tensor([1, 2, 3]), 4, 2)
    tensor([0.5000, 0.8333, 1.0000], dtype=torch.float64)
    """
    # A sum over the rows of the largest group: log factorials would lose the small probabilities.
    others = n_rows - torch.arange(int(counts.max()), dtype=torch.float64, device=counts.device)
    log_none = torch.log1p((-batch_size / others).clamp_min(-1.0)).cumsum(0)
    return -torch.expm1(torch.cat([log_none.new_zeros(1), log_none])[counts])
