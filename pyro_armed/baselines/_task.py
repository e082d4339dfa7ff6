"""What all baselines get: rows, a network and a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

from pyro_armed.adversary import Adversary
from pyro_armed.effects import RandomEffects, ScaleBias
from pyro_armed.errors import ArgumentError, DataError
from pyro_armed.families import Family
from pyro_armed.spec import Reconstruction

__all__ = ["Rows", "Task"]


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows with their response.

    Parameters
    ----------
    x : array-like, shape (N, ...)
        Inputs.
    y : array-like, shape (N,)
        Responses.
    groups : mapping of str to array-like, shape (N,)
        Labels of each grouping factor.

    Raises
    ------
    DataError
        Where the lengths differ.

    Examples
    --------
    >>> rows = Rows([[0.5], [1.0]], [0, 1], {"site": ["a", "b"]})
    >>> len(rows), len(rows.take([0]))
    (2, 1)
    """

    x: Any
    y: Any
    groups: Mapping[str, Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "x", np.asarray(self.x))
        object.__setattr__(self, "y", np.asarray(self.y))
        object.__setattr__(self, "groups", {name: np.asarray(of) for name, of in self.groups.items()})
        for name, values in {"y": self.y, **self.groups}.items():
            if len(values) != len(self.x):
                raise DataError(f"x has {len(self.x)} rows, but {name} has {len(values)}; give one for each.")

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: Any) -> Rows:
        """Some of the rows, by position or by a mask."""
        rows = np.asarray(rows)
        return Rows(self.x[rows], self.y[rows], {name: of[rows] for name, of in self.groups.items()})


@dataclass(frozen=True, eq=False)
class Task:
    """One learning problem. Every baseline gets its rows, its network and its budget.

    Parameters
    ----------
    train : Rows
        To fit with.
    seen : Rows
        Other rows of the groups in ``train``, to score.
    group : str
        The grouping factor that baselines deal with: a key of ``train.groups``.
    network : callable
        Returns a fresh ``nn.Module``, as `ARMED.from_arrays` takes it.
    random_effects : sequence of RandomEffects and ScaleBias, optional
        Of the full model; None: intercept and slopes on the last hidden activations.
    adversary : Adversary, optional
        Of the full model and of the domain adversarial network.
    unseen : Rows, optional
        Rows of groups that ``train`` does not have.
    family : str or Family
        Response family.
    fit : mapping, optional
        Arguments of `ARMED.fit`; ``epochs`` (as a number), ``batch_size``, ``learning_rate`` and ``schedule``
        hold for meta-learning too.
    new_groups : str
        How models with random effects predict ``unseen``; see `ARMED.predict`.
    reconstruction : str or Reconstruction, optional
        For a network that reconstructs its input.
    fixed_effects_weight : float
        Of the models with random effects; see `ARMED`.
    options : mapping, optional
        Further arguments of `ARMED.from_arrays`, such as ``columns`` and ``priors``.
    group_layer : str, optional
        Layer at which the group enters where it is an input; see `GroupInput`.
    draws : int, optional
        Posterior draws of each restart to predict with; None: all, or 50 with effects within the network.

    Raises
    ------
    ArgumentError, DataError
        For a network that is not a function, a group that rows do not have, and groups of ``seen`` and
        ``unseen`` that are not what these say.

    Examples
    --------
    >>> import pyro_armed as pa
    >>> frame = pa.simulate.spirals(4, 50, seed=0).frame
    >>> rows = Rows(frame[["x1", "x2"]], frame["y"], {"group": frame["group"]})
    >>> task = Task(rows.take(range(150)), rows.take(range(150)), "group", lambda: pa.networks.MLP((4,)),
    ...             unseen=rows.take(range(150, 200)), family="bernoulli")
    >>> task.labels.tolist()
    ['g00', 'g01', 'g02']
    """

    train: Rows
    seen: Rows
    group: str
    network: Callable[[], nn.Module]
    random_effects: Sequence[RandomEffects | ScaleBias] | None = None
    adversary: Adversary | None = None
    unseen: Rows | None = None
    family: str | Family = "bernoulli"
    fit: Mapping[str, Any] = field(default_factory=dict)
    new_groups: str = "marginal"
    reconstruction: str | Reconstruction | None = None
    fixed_effects_weight: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)
    group_layer: str | None = None
    draws: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.network, nn.Module) or not callable(self.network):
            raise ArgumentError("network of a Task must be a function that returns a fresh nn.Module.")
        for name, rows in self.parts(train=True).items():
            if self.group not in rows.groups:
                raise DataError(f"{name} has no grouping factor {self.group!r}; add its labels to groups.")
        known = set(self.labels.tolist())
        if strange := set(self.seen.groups[self.group].tolist()) - known:
            raise DataError(f"seen has the group {min(strange, key=str)!r}, which train does not have.")
        if self.unseen is not None and (shared := set(self.unseen.groups[self.group].tolist()) & known):
            raise DataError(f"unseen has the group {min(shared, key=str)!r}, which train has too.")

    @property
    def labels(self) -> Any:
        """Groups of the training rows, sorted, shape (C,)."""
        return np.unique(self.train.groups[self.group])

    def codes(self, rows: Rows) -> Any:
        """Position of each row's group among `labels`, C for a new one, shape (N,)."""
        labels, found = self.labels, rows.groups[self.group]
        place = np.searchsorted(labels, found)
        known = labels[np.minimum(place, len(labels) - 1)] == found
        return np.where(known, place, len(labels))

    def parts(self, *, train: bool = False) -> dict[str, Rows]:
        """Rows to score by the name of their part; with ``train`` those to fit with too."""
        parts = {"train": self.train} if train else {}
        parts["seen"] = self.seen
        return parts if self.unseen is None else {**parts, "unseen": self.unseen}

    def with_labels(self, labels: Any) -> Task:
        """The task with other labels of the training rows' groups, shape (N,)."""
        groups = {**self.train.groups, self.group: labels}
        return replace(self, train=Rows(self.train.x, self.train.y, groups))
