import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pyro_armed import frames
from pyro_armed.errors import ArgumentError, DataError

NUMBERS = [1.0, 0.0, 2.0]
LABELS = ["b", "a", "b"]


@pytest.mark.parametrize(
    "series",
    [
        pd.Series([1, 0, 2]),
        pd.Series([1, 0, 2], dtype="uint8"),
        pd.Series([1, 0, 2], dtype="float16"),
        pd.Series([1, 0, 2], dtype="Int64"),
        pd.Series([1, 0, 2], dtype="Float32"),
        pd.Series([1, 0, 2], dtype="int64[pyarrow]"),
        pd.Series([1, 0, 2], dtype="double[pyarrow]"),
        pd.Series([Decimal(1), Decimal(0), Decimal(2)]),
        pd.Series([Decimal(1), Decimal(0), Decimal(2)], dtype=pd.ArrowDtype(pa.decimal128(5, 2))),
        pd.Series([Fraction(1), 0, 2.0], dtype=object),
        pd.Series([np.int8(1), False, np.float32(2)], dtype=object),
        pd.Series([1, 0, 2], dtype=pd.SparseDtype(float)),
    ],
    ids=lambda s: str(s.dtype),
)
def test_numbers_of_any_dtype(series: pd.Series) -> None:
    clean = frames.clean_column(series, "x")
    assert clean.dtype == np.float64
    assert clean.tolist() == NUMBERS


@pytest.mark.parametrize("dtype", ["boolean", "bool[pyarrow]", object, "Int64", "double[pyarrow]", "float64"])
def test_missing_numbers_stay_missing(dtype: Any) -> None:
    values = [True, None, False] if "bool" in str(dtype) else [1, None, 0]
    clean = frames.clean_column(pd.Series(values, dtype=dtype), "x")
    np.testing.assert_array_equal(clean, [1.0, np.nan, 0.0])


@pytest.mark.parametrize(
    "series",
    [
        pd.Series(LABELS, dtype=object),
        pd.Series(LABELS, dtype="string"),
        pd.Series(LABELS, dtype="string[pyarrow]"),
        pd.Series(LABELS, dtype=pd.ArrowDtype(pa.dictionary(pa.int32(), pa.string()))),
        pd.Series([label.encode() for label in LABELS], dtype=object),
        pd.Series(pd.Categorical(LABELS, categories=["a", "b", "unused"])),
    ],
    ids=lambda s: str(s.dtype),
)
def test_labels_of_any_dtype(series: pd.Series) -> None:
    clean = frames.clean_column(series, "x")
    assert clean.cat.categories.tolist() == ["a", "b"]
    assert clean.cat.ordered
    assert clean.tolist() == LABELS


def test_the_order_of_a_categorical_is_kept() -> None:
    clean = frames.clean_column(pd.Series(pd.Categorical([2, 10, 2], categories=[10, 5, 2])), "x")
    assert clean.cat.categories.tolist() == ["10", "2"]
    assert clean.tolist() == ["2", "10", "2"]


def test_mixed_labels_do_not_depend_on_the_order_of_rows() -> None:
    values = [3, "b", 1.0, "a", None]
    clean = frames.clean_column(pd.Series(values, dtype=object), "x")
    turned = frames.clean_column(pd.Series(values[::-1], dtype=object), "x")
    assert clean.cat.categories.tolist() == turned.cat.categories.tolist()
    assert clean.isna().tolist() == [False] * 4 + [True]


@pytest.mark.parametrize(
    ("series", "message"),
    [
        (pd.Series([1j, 2]), "complex"),
        (pd.Series(pd.to_datetime(["2020-01-01"])), "holds dates"),
        (pd.Series(pd.to_timedelta([1], unit="D")), "holds dates"),
        (pd.Series(pd.to_datetime(["2020-01-01"])).astype("timestamp[ns][pyarrow]"), "holds dates"),
        (pd.Series([datetime.date(2020, 1, 1)], dtype=object), "holds date"),
        (pd.Series([{"a": 1}, "b"], dtype=object), "holds dict, str"),
        (pd.Series([(1, 2)], dtype=object), "holds tuple"),
        (pd.Series([[1]], dtype=pd.ArrowDtype(pa.list_(pa.int64()))), "use numbers or text"),
        (pd.Series([1, "1"], dtype=object), "same text"),
        (pd.Series([10**400, 1], dtype=object), "cannot be read as numbers"),
        (pd.Series(pd.period_range("2020", periods=2, freq="M")), "holds Period"),
    ],
)
def test_columns_that_are_no_predictors(series: pd.Series, message: str) -> None:
    with pytest.raises(DataError, match=message):
        frames.clean_column(series, "x")


def test_check_frame() -> None:
    frame = frames.check_frame({"a": [1], 0: [2], ("b", 1): [3]})
    assert frame.columns.tolist() == ["a", "0", "('b', 1)"]
    same = pd.DataFrame({"a": [1]})
    assert frames.check_frame(same) is same
    assert frames.check_frame(pa.table({"a": [1]})).columns.tolist() == ["a"]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (3, "must be a pandas DataFrame, not int"),
        (pd.Series([1]), "must be a pandas DataFrame, not Series"),
        (np.zeros((2, 2)), "must be a pandas DataFrame, not ndarray"),
        (pd.DataFrame({"x": []}), "has no rows"),
        ({"a": [1, 2], "b": [1]}, "cannot be made a pandas DataFrame"),
        (
            pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_product([["a"], ["b", "c"]])),
            "columns of 2 levels",
        ),
    ],
)
def test_what_is_no_frame(frame: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        frames.check_frame(frame)


def test_check_columns() -> None:
    frame = pd.DataFrame([[1, 2, 3]], columns=["age", "x", "x"])
    frames.check_columns(frame, ["age"], "y ~ age")
    with pytest.raises(DataError, match=r"Column 'agee' .* Did you mean 'age'\?"):
        frames.check_columns(frame, ["agee"], "y ~ agee")
    with pytest.raises(DataError, match="Columns: age, x, x"):
        frames.check_columns(frame, ["qqq"], "y ~ qqq")
    with pytest.raises(DataError, match="'x' stands 2 times"):
        frames.check_columns(frame, ["x"], "y ~ x")


def test_missing_values_are_counted() -> None:
    frame = pd.DataFrame({"x": [1.0, None, 2.0], "s": ["a", None, None], "ok": [1, 2, 3]})
    masks = frames.missing_rows(frame, ["x", "s", "ok"])
    assert {name: mask.tolist() for name, mask in masks.items()} == {
        "x": [False, True, False],
        "s": [False, True, True],
    }
    with pytest.raises(
        DataError, match=r"'x' has 1 missing value \(rows 1\); 's' has 2 .*\(rows 1, 2\)\. Mend"
    ):
        frames.refuse_missing(masks, "Mend it.")
    frames.refuse_missing({}, "Mend it.")
    many = frames.missing_rows(pd.DataFrame({"x": [None] * 9}), ["x"])
    with pytest.raises(DataError, match=r"9 missing values \(rows 0, 1, 2, 3, 4, \.\.\.\)"):
        frames.refuse_missing(many, "")


def test_policies_and_infinite_values() -> None:
    assert frames.check_policy("drop") == "drop"
    with pytest.raises(ArgumentError, match="missing='ignore' is not one of"):
        frames.check_policy("ignore")
    frames.refuse_infinite(np.array([1.0, np.nan]), "x")
    with pytest.raises(DataError, match="'x' has 2 infinite values"):
        frames.refuse_infinite(np.array([np.inf, -np.inf, 0.0]), "x")


def test_ordered_and_texts() -> None:
    assert frames.ordered([True, 10, 9.5]) == [True, 9.5, 10]
    assert frames.ordered([(2, "a"), ("a", 2)]) == frames.ordered([("a", 2), (2, "a")])
    days = [datetime.date(2020, 10, 1), datetime.date(2020, 9, 1)]
    assert frames.ordered(days) == days[::-1]
    assert [frames.text_of(v) for v in (2.0, np.float32(3), 2.5, "2.0", True, b"x")] == [
        "2",
        "3",
        "2.5",
        "2.0",
        "True",
        "x",
    ]
