"""Minibatches of rows in files: row groups in random order, a shuffle buffer, a thread that reads ahead."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pyro_armed.batch import Batch
from pyro_armed.design import StreamedDesign
from pyro_armed.errors import DataError
from pyro_armed.seeds import generator_for

__all__ = ["RowStream", "prefetched", "shuffled"]

Rows = dict[str, Tensor]

BUFFER = 262_144
# Row groups that are read in turns: rows of one stand apart in the buffer.
_OPEN = 4
_AHEAD = 8


class RowStream:
    """The minibatches of a design of rows in files.

    Parameters
    ----------
    design : StreamedDesign
        The design.
    size : int
        Rows of a minibatch.
    dtype : torch.dtype, optional
        Precision of the network's inputs; None: as the design has them.
    buffer : int
        Rows that are held to be shuffled.
    rank, world : int
        Which of how many processes this is: each has row groups of its own.
    device : torch.device, optional
        Where `data` is; None: on the CPU.

    Attributes
    ----------
    data : Batch
        One minibatch, whose tensors `rows` fills in place; all rows, where they are no more than that.

    Raises
    ------
    DataError
        Where there are fewer row groups than processes.

    Examples
    --------
    >>> import pandas as pd
    >>> from pyro_armed import families
    >>> from pyro_armed.parquet import ParquetRows
    >>> frame = pd.DataFrame({"y": range(10), "g": list("abcdeabcde")})
    >>> frame.to_parquet("rows.parquet", row_group_size=3)
    >>> design = StreamedDesign(["y ~ 1 + (1 | g)"], ParquetRows("rows.parquet"), families.get("gaussian"))
    >>> stream = RowStream(design, size=4)
    >>> stream.steps, [len(rows["response"]) for rows in stream.epoch(seed=0)]
    (2, [4, 4])
    """

    def __init__(
        self,
        design: StreamedDesign,
        size: int,
        dtype: torch.dtype | None = None,
        *,
        buffer: int = BUFFER,
        rank: int = 0,
        world: int = 1,
        device: torch.device | None = None,
    ):
        self.design, self.size, self.dtype, self.buffer = design, size, dtype, buffer
        self.rank, self.world = rank, world
        self._used = [position for position, kept in enumerate(design.kept) if kept]
        if len(self._used) < world:
            raise DataError(
                f"The files have {len(self._used)} row groups for {world} processes; write them with smaller "
                "ones, such as frame.to_parquet(path, row_group_size=100_000)."
            )
        if size >= design.n_rows:
            self.data = self._whole().to(device or "cpu")
            return
        sample = self._cast(design.training.batch)
        repeated = torch.arange(size) % sample.size
        self.data = replace(sample.select(repeated), rows=None).to(device or "cpu")

    @property
    def steps(self) -> int:
        """Most minibatches of an epoch; an epoch of several processes may have one or two less."""
        return max(1, self.design.n_rows // (self.size * self.world))

    def rows(self, seed: int) -> Iterator[Tensor]:
        """Fill `data` with one minibatch after another, without end; yields indices that count its rows."""
        held = self.data.tensors()
        positions = torch.arange(self.size, device=self.data.device)
        for number in itertools.count():
            for batch in self.epoch(seed, number):
                for name, tensor in held.items():
                    tensor.copy_(batch[name])
                yield positions

    def epoch(self, seed: int, number: int = 0) -> Iterator[Rows]:
        """The minibatches of one epoch.

        The last rows that do not fill a minibatch wait for the next epoch's shuffle. With several processes
        each has as many minibatches as the one with the fewest rows.

        Parameters
        ----------
        seed : int
            Seed of the shuffle.
        number : int
            Which epoch.

        Yields
        ------
        dict of str to Tensor
            `Batch.tensors`.
        """
        order = torch.randperm(len(self._used), generator=generator_for(seed, "row groups", number)).tolist()
        shards = [[self._used[i] for i in order[rank :: self.world]] for rank in range(self.world)]
        steps = min(sum(self.design.kept[i] for i in shard) // self.size for shard in shards)
        generator = generator_for(seed, "buffer", number, self.rank)
        if steps == 0:  # fewer rows than a minibatch
            raise DataError(f"batch_size={self.size} is more than the rows of a process; pass a smaller one.")

        def produce() -> Iterator[Rows]:
            return shuffled(self._encoded(shards[self.rank]), self.size, self.buffer, generator)

        yield from itertools.islice(prefetched(produce, _AHEAD), steps)

    def _whole(self) -> Batch:
        """All rows, where a minibatch holds them."""
        chunks = list(self._encoded(self._used))
        joined = {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}
        batch = replace(self._cast(self.design.training.batch).with_tensors(joined), rows=None)
        return replace(batch, size=self.design.n_rows)

    def batch(self, rows: Rows) -> Batch:
        """A minibatch from its tensors."""
        return self.data.with_tensors(rows)

    def _encoded(self, pieces: Sequence[int]) -> Iterator[Rows]:
        """Encoded chunks of some row groups, a few of them in turns."""
        waiting = iter(pieces)
        running = [self.design.chunks(piece) for piece in itertools.islice(waiting, _OPEN)]
        while running:
            for chunks in list(running):
                found = next(chunks, None)
                if found is not None:
                    yield self._cast(self.design.encode_table(found[0])).tensors()
                    continue
                running.remove(chunks)
                running += [self.design.chunks(piece) for piece in itertools.islice(waiting, 1)]

    def _cast(self, batch: Batch) -> Batch:
        if batch.inputs is None or self.dtype is None:
            return batch
        return replace(batch, inputs=batch.inputs.to(self.dtype))


def shuffled(chunks: Iterator[Rows], size: int, buffer: int, generator: torch.Generator) -> Iterator[Rows]:
    """Minibatches of random rows of a buffer that successive chunks fill up.

    Parameters
    ----------
    chunks : iterator of dict of str to Tensor
        Rows.
    size : int
        Rows of a minibatch.
    buffer : int
        Rows that stay in the buffer as long as there are more to come.
    generator : torch.Generator
        Source of the shuffle.

    Yields
    ------
    dict of str to Tensor

    Examples
    --------
    >>> chunks = iter([{"x": torch.arange(4)}, {"x": torch.arange(4, 9)}])
    >>> batches = [rows["x"] for rows in shuffled(chunks, 2, 4, torch.Generator().manual_seed(0))]
    >>> len(batches), len(torch.cat(batches).unique())
    (4, 8)
    """
    held: Rows = {}
    for chunk in chunks:
        held = {name: torch.cat([held[name], tensor]) if held else tensor for name, tensor in chunk.items()}
        count = len(next(iter(held.values())))
        if count < buffer + size:
            continue
        order = torch.randperm(count, generator=generator)
        ready = (count - buffer) // size * size
        yield from _parts(held, order[:ready], size)
        held = {name: tensor[order[ready:]] for name, tensor in held.items()}
    if held:
        count = len(next(iter(held.values())))
        order = torch.randperm(count, generator=generator)
        yield from _parts(held, order[: count // size * size], size)


def _parts(held: Rows, order: Tensor, size: int) -> Iterator[Rows]:
    for rows in order.split(size):
        yield {name: tensor[rows] for name, tensor in held.items()}


def prefetched(produce: Callable[[], Iterator[Rows]], depth: int) -> Iterator[Rows]:
    """What an iterator gives, made ahead by a thread.

    Parameters
    ----------
    produce : callable
        Makes the iterator; called in the thread.
    depth : int
        Items that may wait.

    Yields
    ------
    dict of str to Tensor
        An error of the thread is raised here; the thread ends when nobody asks any more.

    Examples
    --------
    >>> [len(rows["x"]) for rows in prefetched(lambda: iter([{"x": torch.ones(2)}]), 1)]
    [2]
    """
    items: queue.Queue[tuple[str, object]] = queue.Queue(maxsize=depth)
    closed = threading.Event()

    def put(kind: str, item: object) -> bool:
        while not closed.is_set():
            try:
                items.put((kind, item), timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in produce():
                if not put("item", item):
                    return
            put("end", None)
        except BaseException as error:  # raised where the items are used
            put("error", error)

    thread = threading.Thread(target=work, name="pyro_armed rows", daemon=True)
    thread.start()
    try:
        while True:
            kind, item = items.get()
            if kind == "error":
                raise item  # type: ignore[misc]
            if kind == "end":
                return
            yield item  # type: ignore[misc]
    finally:
        closed.set()
        thread.join(timeout=10.0)
