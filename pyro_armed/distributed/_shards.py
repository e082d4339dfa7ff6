"""The rows of one of several processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from pyro_armed.batch import Batch
from pyro_armed.design import StreamedDesign
from pyro_armed.errors import ArgumentError, NotFittedError
from pyro_armed.seeds import generator_for
from pyro_armed.streamed_fit import BATCH
from pyro_armed.streaming import RowStream
from pyro_armed.training import TrainingSettings

__all__ = ["Shard", "rows_per_step", "training_rows"]


class Shard:
    """Minibatches of one process; no row is in those of two, and each has as many.

    Parameters
    ----------
    model : ARMED
        A model with training rows, in memory or in Parquet.
    batch_size : int, optional
        Rows of a minibatch of one process; None: 512, of rows in Parquet 4096.
    seed : int
        Seed of the shuffles, the same in all processes.
    rank, world : int
        Which of how many processes this is.

    Attributes
    ----------
    size : int
        Rows of a minibatch.
    steps : int
        Minibatches of an epoch.

    Raises
    ------
    NotFittedError
        For a model from a file.
    ArgumentError
        Where there are fewer rows than processes.

    Examples
    --------
    >>> import pyro_armed as pa
    >>> model = pa.ARMED("y ~ x1 + (1 | group)", pa.simulate.mixed_model(8, 20, seed=0).frame)
    >>> shards = [Shard(model, 32, rank=rank, world=2) for rank in range(2)]
    >>> rows = [torch.cat([batch.rows for batch in shard.epoch(0)]) for shard in shards]
    >>> shards[0].steps, len(torch.cat(rows).unique())
    (2, 128)
    """

    def __init__(
        self, model: Any, batch_size: int | None = None, *, seed: int = 0, rank: int = 0, world: int = 1
    ):
        data, streamed = training_rows(model), isinstance(model._design, StreamedDesign)
        if data.n_rows < world:
            raise ArgumentError(f"{world} processes share {data.n_rows} rows; start fewer.")
        own = data.n_rows // world
        self.size = rows_per_step(model, batch_size, world)
        self.seed, self.rank, self.world = seed, rank, world
        self.data = data
        self._stream: RowStream | None = None
        if streamed:
            dtype = None if data.inputs is None else data.inputs.dtype
            self._stream = RowStream(model._design, self.size, dtype, rank=rank, world=world)
        self.steps = own // self.size

    def epoch(self, number: int) -> Iterator[Batch]:
        """Minibatches of one epoch.

        Parameters
        ----------
        number : int
            Which epoch.

        Yields
        ------
        Batch
        """
        if self._stream is not None:
            positions = torch.arange(self.size)
            for rows in self._stream.epoch(self.seed, number):
                yield replace(self._stream.batch(rows), rows=positions)
            return
        order = torch.randperm(self.data.n_rows, generator=generator_for(self.seed, "minibatches", number))
        own = order[self.rank :: self.world][: self.steps * self.size]
        for rows in own.split(self.size):
            yield self.data.select(rows)


def rows_per_step(model: Any, batch_size: int | None, world: int) -> int:
    """Rows of a minibatch of one of several processes; arguments as of `Shard`."""
    if batch_size is None and isinstance(model._design, StreamedDesign):
        batch_size = BATCH
    return TrainingSettings(batch_size=batch_size).rows_per_step(training_rows(model).n_rows // world)


def training_rows(model: Any) -> Batch:
    """The training rows of a model, or the sample of those in Parquet.

    Parameters
    ----------
    model : ARMED
        The model.

    Returns
    -------
    Batch

    Raises
    ------
    NotFittedError
        For a model from a file.
    """
    rows = model._sample if model._training is None else model._training
    if rows is None:
        raise NotFittedError("A model from a file has no training rows; make a new ARMED to fit again.")
    return rows.batch
