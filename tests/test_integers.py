import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyro_armed.integers import Integers, compact

WHOLE = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20)


@given(WHOLE, st.integers(-25, 25), st.slices(20))
def test_integers_do_what_a_tuple_does(values: list[int], place: int, part: slice) -> None:
    numbers, known = Integers(values), tuple(values)
    assert numbers == known == tuple(numbers)
    assert numbers == values
    assert hash(numbers) == hash(known)
    assert repr(numbers) == repr(known)
    assert numbers[part] == known[part]
    assert (place in numbers) == (place in known)
    assert [type(number) for number in numbers] == [int] * len(known)
    if -len(known) <= place < len(known):
        assert numbers[place] == known[place]
        assert numbers.index(known[place]) == known.index(known[place])
    else:
        with pytest.raises(IndexError):
            numbers[place]


def test_integers_differ_from_other_numbers() -> None:
    assert Integers([1, 2]) != (1, 3)
    assert Integers([1, 2]) != (1, 2, 3)
    assert Integers([1, 2]) != "12"
    assert "1" not in Integers([1])


def test_integers_cannot_be_changed_and_survive_copies() -> None:
    numbers = Integers(np.arange(5))
    with pytest.raises(ValueError, match="read-only"):
        numbers.array[0] = 7
    assert copy.deepcopy(numbers) is numbers
    kind, arguments = numbers.__reduce__()
    assert kind(*arguments) == numbers


def test_an_array_is_not_copied() -> None:
    values = np.arange(3)
    assert np.shares_memory(Integers(values).array, values)
    values[0] = 1  # the array itself stays the owner's


@pytest.mark.parametrize("values", [[True, False], [1, 2.0], ["a"], [2**63], [], [1, None]])
def test_only_whole_numbers_are_made_compact(values: list[object]) -> None:
    assert compact(values) == tuple(values)
    assert type(compact(values)) is tuple


def test_compact_numbers() -> None:
    assert isinstance(compact([1, 2]), Integers)
    assert isinstance(compact(np.array([1, 2], dtype="int32")), Integers)
    assert compact(Integers([1])) == (1,)
