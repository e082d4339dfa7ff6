"""Rows as tensors: what the Pyro model is conditioned on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

__all__ = ["Batch", "minibatches"]


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
