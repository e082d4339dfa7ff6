"""Whole numbers by the million as one array that behaves like a tuple: labels and sizes of groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np

__all__ = ["Integers", "compact"]

_INT64 = np.iinfo(np.int64)


class Integers(Sequence[int]):
    """An immutable sequence of integers, an eighth as large as a tuple of them.

    Equal to a tuple or list of the same integers, and of the same hash as the tuple; its items are Python's
    own integers.

    Parameters
    ----------
    values : array-like of int, shape (C,)
        Taken over without a copy where they are an int64 array.

    Attributes
    ----------
    array : numpy.ndarray, shape (C,), int64
        The numbers; not to be written to.

    Examples
    --------
    >>> numbers = Integers([3, 5, 8])
    >>> numbers[1], numbers == (3, 5, 8), numbers
    (5, True, (3, 5, 8))
    """

    __slots__ = ("array",)

    def __init__(self, values: Any):
        self.array = np.asarray(values, dtype=np.int64).view()
        self.array.flags.writeable = False

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, place: int) -> int: ...

    @overload
    def __getitem__(self, place: slice) -> Integers: ...

    def __getitem__(self, place: Any) -> Any:
        found = self.array[place]
        return Integers(found) if isinstance(place, slice) else int(found)

    def __iter__(self) -> Iterator[int]:
        for start in range(0, len(self), 10_000):
            yield from self.array[start : start + 10_000].tolist()

    def __contains__(self, value: object) -> bool:
        return isinstance(value, (int, float)) and bool((self.array == value).any())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Integers):
            return np.array_equal(self.array, other.array)
        if isinstance(other, (tuple, list)):
            return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))
        return NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))

    def __deepcopy__(self, memo: dict[int, Any]) -> Integers:
        return self

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.array, dtype=dtype) if copy else np.asarray(self.array, dtype=dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        return Integers, (np.array(self.array),)


def compact(values: Sequence[Any]) -> Integers | tuple[Any, ...]:
    """A sequence as `Integers` where it has nothing but Python's own integers of 64 bits, else as a tuple.

    Parameters
    ----------
    values : sequence
        Labels of any kind, or counts.

    Returns
    -------
    Integers or tuple

    Examples
    --------
    >>> type(compact([1, 2])).__name__, compact([1, "a"]), compact([True, False])
    ('Integers', (1, 'a'), (True, False))
    """
    if isinstance(values, Integers):
        return values
    if isinstance(values, np.ndarray) and values.dtype.kind in "iu":
        return Integers(values)
    values = tuple(values)
    whole = all(type(value) is int and _INT64.min <= value <= _INT64.max for value in values)
    return Integers(values) if values and whole else values
