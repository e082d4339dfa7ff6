"""Pyro modules that keep their parameters to themselves."""

from __future__ import annotations

import copy
import itertools
from contextlib import AbstractContextManager
from typing import Any, Self

import pyro
from pyro.nn import PyroModule

__all__ = ["LocalPyroModule", "local_parameters"]

_numbers = itertools.count()


def local_parameters() -> AbstractContextManager[None]:
    """A context in which Pyro's global parameter store is neither read nor written."""
    return pyro.settings.context(module_local_params=True)


class LocalPyroModule(PyroModule):
    """A `PyroModule` whose parameters no other one shares.

    The library runs its modules under `local_parameters`. A user's own `pyro.infer.SVI` fills Pyro's global
    store as usual; there, parameters of one name are shared, so each module has a name of its own.
    """

    def __init__(self) -> None:
        with local_parameters():
            super().__init__(self._new_name())

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy with a name of its own, so that it does not meet the original in the global store either."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__setstate__({**copy.deepcopy(self.__dict__, memo), "_pyro_name": self._new_name()})
        return copied

    def _new_name(self) -> str:
        return f"{type(self).__name__}{next(_numbers)}"
