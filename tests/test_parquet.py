"""Rows in files: pieces, columns of folders, counts of distinct rows, missing values."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as arrow
import pyarrow.dataset as datasets
import pytest

from pyro_armed.errors import DataError
from pyro_armed.parquet import Distinct, ParquetRows, incomplete_rows


@pytest.fixture
def frame() -> pd.DataFrame:
    random = np.random.default_rng(0)
    return pd.DataFrame(
        {"x": random.normal(size=50), "g": random.choice(["a", "b", "c"], 50), "h": range(50)}
    )


def test_a_file_is_read_row_group_by_row_group(frame: pd.DataFrame, tmp_path: Path) -> None:
    frame.to_parquet(tmp_path / "rows.parquet", row_group_size=20)
    rows = ParquetRows(tmp_path / "rows.parquet")
    assert (rows.n_rows, rows.sizes) == (50, [20, 20, 10])
    whole = arrow.concat_tables(rows.tables(["h", "x"])).to_pandas()
    pd.testing.assert_frame_equal(whole, frame[["h", "x"]])
    third = [table["h"].to_pylist() for table in rows.tables(["h"], [2, 0], size=8)]
    assert third == [list(range(40, 48)), [48, 49], list(range(8)), list(range(8, 16)), [16, 17, 18, 19]]
    assert list(rows.empty().columns) == ["x", "g", "h"]


def test_a_folder_named_by_a_column_has_that_column(frame: pd.DataFrame, tmp_path: Path) -> None:
    frame.to_parquet(tmp_path / "rows", partition_cols=["g"])
    rows = ParquetRows(tmp_path / "rows")
    found = arrow.concat_tables(rows.tables(["g", "h"])).to_pandas().sort_values("h")
    assert found["g"].astype(str).tolist() == frame["g"].tolist()


def test_what_is_no_parquet_is_refused(frame: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="names no file or folder"):
        ParquetRows(tmp_path / "nothing.parquet")
    (tmp_path / "text.parquet").write_text("x,y")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        ParquetRows(tmp_path / "text.parquet")
    frame[:0].to_parquet(tmp_path / "empty.parquet")
    with pytest.raises(DataError, match="no rows"):
        ParquetRows(tmp_path / "empty.parquet")
    frame.to_parquet(tmp_path / "rows.parquet")
    filtered = datasets.dataset(tmp_path / "rows.parquet").filter(datasets.field("h") < 10)
    with pytest.raises(DataError, match="filter"):
        ParquetRows(filtered)
    with pytest.raises(DataError, match="another kind"):
        ParquetRows(datasets.dataset(arrow.Table.from_pandas(frame)))


def test_distinct_rows_are_counted_as_pandas_counts_them(
    frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyro_armed.parquet._PENDING", 4)  # merges again and again
    frame["k"] = frame["h"] % 3
    found = Distinct(["g", "k"])
    for start in range(0, 50, 7):
        found.add(arrow.Table.from_pandas(frame[start : start + 7], preserve_index=False))
    expected = frame.groupby(["g", "k"]).size()
    assert found.frame().set_index(["g", "k"])["count_all"].sort_index().tolist() == expected.tolist()


def test_the_order_of_a_dictionary_column_is_kept() -> None:
    values = pd.Categorical(["lo", "hi"], categories=["lo", "mid", "hi"], ordered=True)
    found = Distinct(["c"])
    found.add(arrow.Table.from_pandas(pd.DataFrame({"c": values})))
    assert found.order("c") == ["lo", "mid", "hi"]
    assert sorted(found.frame()["c"]) == ["hi", "lo"]


def test_missing_values_are_nulls_and_nans() -> None:
    table = arrow.table({"x": [1.0, float("nan"), None], "n": [1, 2, None], "t": ["a", "b", "c"]})
    rows, counts = incomplete_rows(table)
    assert rows.tolist() == [False, True, True]
    assert counts == {"x": 2, "n": 1}
