"""What a fitted baseline does: score rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import pandas as pd

from pyro_armed.armed import ARMED
from pyro_armed.baselines._task import Rows
from pyro_armed.evaluation import pointwise

__all__ = ["ArmedFit", "Fitted"]


class Fitted(Protocol):
    """A fitted baseline."""

    @property
    def model(self) -> ARMED | None:
        """The model, where it is one; it takes `inputs`."""

    def inputs(self, rows: Rows) -> Any:
        """What the model takes as x for the rows, shape (N, ...)."""

    def pointwise(self, rows: Rows, *, seed: int = 0) -> pd.DataFrame:
        """Scores of each row, ``nlpd`` and others: see `pyro_armed.evaluation.pointwise`."""


@dataclass(frozen=True, eq=False)
class ArmedFit:
    """A baseline that is an `ARMED`.

    Attributes
    ----------
    model : ARMED
        Fitted.
    new_groups : str
        How it predicts new groups.
    draws : int or None
        Posterior draws of each restart that it predicts with.
    """

    model: ARMED
    new_groups: str = "marginal"
    draws: int | None = None

    def inputs(self, rows: Rows) -> Any:
        """What the model takes for the rows; shape (N, ...)."""
        return rows.x

    def pointwise(self, rows: Rows, *, seed: int = 0) -> pd.DataFrame:
        """Scores of each row."""
        model = self.model
        encoded = model._encode(self.inputs(rows), rows.groups, rows.y, response=True)
        mode = model._mode(self.new_groups, None)
        draws = self.draws if self.draws is not None or not model.spec.layers else _FEW
        return pointwise(model._fitted(), encoded, mode, seed=seed, draws=draws)


_FEW = 50  # as `ARMED.predict`: with effects within the network each draw takes a pass of its own
