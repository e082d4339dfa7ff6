"""Minibatches of rows in files: every row once, shuffled, in shards, with a thread that ends."""

import threading
import time
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from pyro_armed import families
from pyro_armed.design import StreamedDesign
from pyro_armed.errors import DataError
from pyro_armed.parquet import ParquetRows
from pyro_armed.streaming import RowStream, prefetched, shuffled


@pytest.fixture(scope="module")
def design(tmp_path_factory: pytest.TempPathFactory) -> StreamedDesign:
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"y": np.arange(1000.0), "x": random.normal(size=1000), "g": np.arange(1000) // 10})
    frame.to_parquet(path, row_group_size=90)
    return StreamedDesign(["y ~ x + (1 | g)"], ParquetRows(path), families.get("gaussian"))


def responses(stream: RowStream, seed: int = 0, number: int = 0) -> Tensor:
    return torch.cat([rows["response"] for rows in stream.epoch(seed, number)])


def test_an_epoch_has_every_row_once_but_for_the_last_few(design: StreamedDesign) -> None:
    stream = RowStream(design, size=64, buffer=200)
    found = responses(stream)
    assert stream.steps == 15
    assert len(found) == len(found.unique()) == 15 * 64


def test_rows_keep_together_what_belongs_together(design: StreamedDesign) -> None:
    for rows in RowStream(design, size=100, buffer=200).epoch(seed=3):
        assert torch.equal(rows["codes.g"], rows["response"].long() // 10)


def test_epochs_are_shuffled_differently_and_repeatably(design: StreamedDesign) -> None:
    stream = RowStream(design, size=50, buffer=300)
    first = responses(stream)
    assert torch.equal(first, responses(stream))
    assert not torch.equal(first, responses(stream, number=1))
    assert not torch.equal(first, responses(stream, seed=1))
    # Sorted by group in the file; a batch of 50 has rows of more than the five groups that it would hold.
    groups = [len(rows["codes.g"].unique()) for rows in stream.epoch(0)]
    assert min(groups) > 20
    # Rows move far: positions and values are nearly uncorrelated within a piece's reach.
    assert abs(np.corrcoef(first, np.arange(len(first)))[0, 1]) < 0.6


def test_processes_share_the_rows(design: StreamedDesign) -> None:
    shards = [responses(RowStream(design, 40, rank=rank, world=3)) for rank in range(3)]
    assert len({len(one) for one in shards}) == 1
    joined = torch.cat(shards)
    assert len(joined.unique()) == len(joined) > 800


def test_more_processes_than_row_groups_are_refused(design: StreamedDesign) -> None:
    with pytest.raises(DataError, match="12 row groups for 13 processes"):
        RowStream(design, 10, world=13)


def test_a_minibatch_of_all_rows_is_the_data(design: StreamedDesign) -> None:
    data = RowStream(design, size=1000).data
    assert data.size == data.n_rows == 1000
    assert data.response is not None
    assert sorted(data.response.tolist()) == list(range(1000))


def test_rows_fill_the_batch_in_place(design: StreamedDesign) -> None:
    stream = RowStream(design, size=300, buffer=100)
    held = stream.data.response
    assert held is not None
    seen = []
    for _, positions in zip(range(4), stream.rows(seed=0), strict=False):
        assert positions.tolist() == list(range(300))
        seen.append(held.clone())
    assert torch.cat(seen[:3]).unique().numel() == 900
    assert stream.data.n_rows == 1000


def test_the_thread_raises_here_and_ends_when_nobody_asks() -> None:
    def broken() -> Iterator[dict[str, Tensor]]:
        yield {"x": torch.ones(1)}
        raise DataError("broken")

    with pytest.raises(DataError, match="broken"):
        list(prefetched(broken, 2))

    def endless() -> Iterator[dict[str, Tensor]]:
        while True:
            yield {"x": torch.ones(1)}

    rows = prefetched(endless, 2)
    next(rows)
    rows.close()  # type: ignore[attr-defined]
    time.sleep(0.3)
    assert not [one for one in threading.enumerate() if one.name == "pyro_armed rows"]


def test_the_buffer_bounds_what_is_held() -> None:
    taken = 0

    def chunks() -> Iterator[dict[str, Tensor]]:
        nonlocal taken
        for start in range(0, 1000, 10):
            taken += 10
            yield {"x": torch.arange(start, start + 10)}

    given = 0
    for rows in shuffled(chunks(), 5, 50, torch.Generator().manual_seed(0)):
        given += len(rows["x"])
        assert taken - given < 50 + 5 + 10
    assert given == 1000
