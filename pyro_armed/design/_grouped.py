"""What designs of formulas and of arrays do alike with their groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pyro_armed.groups import GroupIndex
from pyro_armed.integers import Integers
from pyro_armed.spec import Group, ModelSpec

__all__ = ["GroupedDesign"]


class GroupedDesign:
    """A design whose rows belong to groups."""

    spec: ModelSpec
    _groups: dict[str, GroupIndex]

    def group_index(self, name: str) -> GroupIndex:
        """The groups of a grouping factor; KeyError if there is none."""
        return self._groups[name]

    def with_groups(self, groups: Mapping[str, GroupIndex]) -> Self:
        """The same design for some of the groups; labels of the others are new to it.

        Parameters
        ----------
        groups : mapping of str to GroupIndex
            In the place of the grouping factors of the same names.

        Returns
        -------
        GroupedDesign
            Without `training`; that of rows in files is one of frames.
        """
        other: Self = self._blank()
        other.__dict__.update({name: value for name, value in vars(self).items() if name != "training"})
        other._groups = {**self._groups, **groups}
        other.spec = self.spec.with_groups(
            {name: Group(name, i.labels, Integers(i.counts)) for name, i in groups.items()}
        )
        return other

    def _blank(self) -> Any:
        """A design with nothing in it yet."""
        return type(self).__new__(type(self))
