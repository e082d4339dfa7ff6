import datetime
import enum
import json
from collections.abc import Hashable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyro_armed.errors import ArmedError, DataError, FileFormatError
from pyro_armed.groups import (
    UNSEEN,
    GroupIndex,
    combine_columns,
    decode_labels,
    encode_labels,
    group_labels,
)

DAY = datetime.date(2020, 1, 1)


class Colour(enum.Enum):
    RED = 1


PLAIN = st.one_of(st.integers(), st.text(max_size=3), st.booleans(), st.floats(allow_nan=False))
LABELS = st.one_of(
    PLAIN,
    st.binary(max_size=3),
    st.dates(),
    st.datetimes(),
    st.decimals(allow_nan=False),
    st.fractions(),
    st.complex_numbers(allow_nan=False),
    st.tuples(st.integers(0, 2), st.text(max_size=1)),
    st.frozensets(st.integers(0, 2), max_size=2),
    st.sampled_from([Colour.RED, object, Ellipsis]),
)


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([1, 2, None], [1, 2, None]),
        (np.array([1, 2], dtype="uint8"), [1, 2]),
        (np.array([1.0, np.nan]), [1.0, None]),
        (np.array(["a", "b"]), ["a", "b"]),
        (np.array(["2020-01-01", "NaT"], dtype="M8[D]"), [DAY, None]),
        (torch.tensor([3, 4]), [3, 4]),
        (torch.tensor([1.0, 2.0], requires_grad=True), [1.0, 2.0]),
        (pd.Series([1, None], dtype="Int64"), [1, None]),
        (pd.Series([True, None], dtype="boolean"), [True, None]),
        (pd.Series(["a", None], dtype="string[pyarrow]"), ["a", None]),
        (pd.Series([1, None], dtype="int64[pyarrow]"), [1, None]),
        (pd.Categorical(["b", None, "a"]), ["b", None, "a"]),
        (pd.Series(pd.Categorical([2, 1])), [2, 1]),
        (pd.Index(["a", "b"]), ["a", "b"]),
        (pd.Series([1, 0], dtype=pd.SparseDtype(int)), [1, 0]),
        ([(1, "a"), (np.int64(1), "b")], [(1, "a"), (1, "b")]),
        ([np.str_("a"), np.int8(3)], ["a", 3]),
        (range(3), [0, 1, 2]),
        ([b"x", frozenset([1])], [b"x", frozenset([1])]),
    ],
)
def test_labels_of_any_kind(values: Any, labels: list[Any]) -> None:
    found = group_labels(values, "g")
    assert found.dtype in (object, np.int64)
    assert found.tolist() == labels
    assert not any(isinstance(label, np.generic) for label in found.tolist())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (5, "one label for each row, not int"),
        ("abc", "one label for each row, not str"),
        ({"a": 1}, "not dict"),
        (np.zeros((2, 2)), r"shape \(2, 2\)"),
        (torch.zeros(2, 1), r"shape \(2, 1\)"),
        (pd.DataFrame({"a": [1]}), "shape"),
        (pd.MultiIndex.from_product([[1], [2]]), "not MultiIndex"),
        ([[1], [2]], "label of type list in row 0"),
        ([1, {}], "label of type dict in row 1"),
        ([(1, [2])], "label of type tuple in row 0"),
        ([True, 1], "mixes True or False with numbers"),
        ([np.bool_(False), 2.5, "a"], "mixes True or False with numbers"),
        ([(1, None)], "a part of which is missing"),
        ([(1, np.float64("nan"))], "a part of which is missing"),
    ],
)
def test_what_are_no_labels(values: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        group_labels(values, "g")


@given(st.lists(LABELS, min_size=1, max_size=8))
def test_any_hashable_label_is_coded_and_found_again(values: list[Hashable]) -> None:
    try:
        labels = group_labels(values, "g")
        index = GroupIndex.from_values("g", labels)
    except DataError as error:
        assert "only one group" in str(error) or "mixes True" in str(error)  # noqa: PT017
        return
    codes = index.encode(labels)
    assert [index.labels[code] for code in codes] == labels.tolist()
    assert index.counts.tolist() == np.bincount(codes).tolist()
    coordinates = index.coordinates(["new"])
    assert len(set(coordinates)) == len(index) + 1
    assert {type(label) for label in coordinates} <= {str} or {type(label) for label in coordinates} <= {int}
    try:
        stored = encode_labels(index.labels, "g")
    except ArmedError:
        return
    again = decode_labels(json.loads(json.dumps(stored)))
    assert again == index.labels
    assert [type(label) for label in again] == [type(label) for label in index.labels]


@given(st.lists(st.tuples(PLAIN, PLAIN), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_groups_do_not_depend_on_the_order_of_rows(rows: list[tuple[Any, Any]], random: Any) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)

    def labels(rows: list[tuple[Any, Any]]) -> np.ndarray:
        columns = [group_labels([row[i] for row in rows], "g") for i in range(2)]
        return combine_columns(columns)

    try:
        straight = labels(rows)
    except DataError as error:
        assert "same text" in str(error) or "mixes True" in str(error)  # noqa: PT017
        return
    shuffled = labels([rows[i] for i in order])
    assert shuffled.tolist() == straight[order].tolist()
    if len(set(straight)) > 1:
        first, second = GroupIndex.from_values("g", straight), GroupIndex.from_values("g", shuffled)
        assert first.labels == second.labels
        assert first.encode(straight)[order].tolist() == second.encode(shuffled).tolist()


@given(st.lists(st.tuples(st.text("a:\\", max_size=3), st.text("a:\\", max_size=3)), min_size=1))
def test_interactions_keep_different_combinations_apart(rows: list[tuple[str, str]]) -> None:
    columns = [np.array([*(row[i] for row in rows), None], dtype=object)[:-1] for i in range(2)]
    labels = combine_columns(columns)
    assert len(set(labels)) == len(set(rows))


def test_interactions() -> None:
    a, b = np.array(["s", "s", None, "t"], object), np.array([1.0, 2, 1, None], object)
    assert combine_columns([a, b]).tolist() == ["s:1", "s:2", None, None]
    assert combine_columns([a]) is a
    with pytest.raises(DataError, match="same text"):
        combine_columns([np.array([1, "1"], object), np.array(["a", "a"], object)])


def test_index() -> None:
    index = GroupIndex.from_values("g", group_labels(["b", "a", "b"], "g"))
    assert (index.labels, index.counts.tolist(), len(index)) == (["a", "b"], [1, 2], 2)
    new = group_labels(["z", "b", "y", "z"], "g")
    assert index.encode(new).tolist() == [UNSEEN, 1, UNSEEN, UNSEEN]
    codes, labels = index.encode_with_new(new)
    assert (codes.tolist(), labels) == ([2, 1, 3, 2], ["z", "y"])
    assert GroupIndex.from_values("g", group_labels([1, 2, 1], "g"), order=[3, 2, 1]).labels == [2, 1]
    with pytest.raises(DataError, match="1 missing label"):
        index.encode_with_new(group_labels(["a", None], "g"))
    with pytest.raises(DataError, match="2 missing labels"):
        GroupIndex.from_values("g", group_labels([None, None], "g"))
    with pytest.raises(DataError, match=r"only one group \('a'\)"):
        GroupIndex.from_values("g", group_labels(["a", "a"], "g"))


def test_integers_and_floats_are_one_label() -> None:
    index = GroupIndex.from_values("g", group_labels([1, 2], "g"))
    assert index.encode(group_labels([2.0, 1.0, 1.5], "g")).tolist() == [1, 0, UNSEEN]


@pytest.mark.parametrize(
    ("labels", "coordinates"),
    [
        ([1, 2], [1, 2]),
        (["a", "b"], ["a", "b"]),
        ([True, False], ["True", "False"]),
        ([1, "1"], ["1", "'1'"]),
        ([1, 2**70], ["1", str(2**70)]),
        ([1.5, 2.0], ["1.5", "2.0"]),
        ([(1, "a"), (1, "b")], ["(1, 'a')", "(1, 'b')"]),
    ],
)
def test_coordinates(labels: list[Any], coordinates: list[Any]) -> None:
    assert GroupIndex("g", labels, [1, 1]).coordinates() == coordinates


def test_coordinates_of_labels_that_look_alike() -> None:
    class Label:
        def __repr__(self) -> str:
            return "label"

    assert GroupIndex("g", [Label(), Label()], [1, 1]).coordinates() == ["label (0)", "label (1)"]


@pytest.mark.parametrize("label", [Decimal(1), Fraction(1, 2), 1j, frozenset([1]), Colour.RED, (1, 1j)])
def test_labels_that_files_cannot_keep(label: Any) -> None:
    with pytest.raises(DataError, match=r"Group 'g' has labels of type .* which a file cannot keep"):
        encode_labels([label], "g")


@pytest.mark.parametrize("stored", [{"pickle": "x"}, {"tuple": [1], "bytes": ""}])
def test_labels_from_a_foreign_file(stored: Any) -> None:
    with pytest.raises(FileFormatError, match="unknown kind"):
        decode_labels([stored])


def test_a_million_rows_are_no_python_loop() -> None:
    """Distinct labels are looked at, not rows: 200 groups of 5000 rows in a fraction of a second."""
    calls = 0

    class Label:
        def __init__(self, code: int) -> None:
            self.code = code

        def __hash__(self) -> int:
            return self.code

        def __eq__(self, other: object) -> bool:
            nonlocal calls
            calls += 1
            return self is other

    labels = [Label(code) for code in range(200)]
    codes = np.arange(1_000_000) % 200
    values = np.array([*labels, None], dtype=object)[:-1][codes]
    index = GroupIndex.from_values("g", group_labels(values, "g"))
    assert len(index) == 200
    assert calls < 1_000_000
