"""Predictor columns with the levels and fill values that training taught."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pyro_armed import frames
from pyro_armed.errors import DataError

__all__ = ["PredictorColumns"]

_MAX_STORED = 200


class PredictorColumns:
    """Cleans predictor columns, and new rows as training was cleaned.

    Parameters
    ----------
    names : sequence of str
        Columns that the formulas use.
    fill : bool
        Whether missing predictors are filled (mean or most frequent level) and marked by an indicator.

    Attributes
    ----------
    levels : dict of str to list of str
        Levels of each categorical column.
    fills : dict of str to float or str
        Fill value of each column that had missing values in training.
    """

    def __init__(self, names: Sequence[str], fill: bool):
        self.names = list(names)
        self.fill = fill
        self.levels: dict[str, list[str]] = {}
        self.fills: dict[str, float | str] = {}
        self._values: dict[str, list[float]] = {}

    def learn(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Clean training rows and remember levels and fill values.

        Parameters
        ----------
        frame : pandas.DataFrame
            Training rows.

        Returns
        -------
        pandas.DataFrame
            float64 and ordered categorical columns, indicators included.

        Raises
        ------
        DataError
            For infinite values, dates, and columns with nothing in them.
        """
        columns: dict[str, pd.Series] = {}
        for name in self.names:
            column = frames.clean_column(frame[name], name)
            if isinstance(column.dtype, pd.CategoricalDtype):
                self.levels[name] = list(column.cat.categories)
            if self.fill and column.isna().any():
                self.fills[name] = _fill_value(column, name)
            columns[name] = column
            if name not in self.levels:
                self._values[name] = _summary(column.to_numpy())
        return self._finish(columns, frame.index)

    def apply(self, frame: pd.DataFrame, unseen_levels: str = "error") -> pd.DataFrame:
        """Clean new rows.

        Parameters
        ----------
        frame : pandas.DataFrame
            New rows, without missing values except in columns that have a fill value.
        unseen_levels : {"error", "baseline"}
            Whether a level that training did not have is refused or read as the first level.

        Returns
        -------
        pandas.DataFrame

        Raises
        ------
        DataError
            For unseen levels, and columns that changed between numbers and text.
        """
        columns = {name: self._trained(frame[name], name, unseen_levels) for name in self.names}
        return self._finish(columns, frame.index)

    def fillable(self, names: Collection[str], training: bool) -> set[str]:
        """Columns of ``names`` whose missing values can be filled."""
        if not self.fill:
            return set()
        return {name for name in names if name in self.names and (training or name in self.fills)}

    def to_config(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return {
            "names": self.names,
            "fill": self.fill,
            "levels": self.levels,
            "fills": self.fills,
            "values": self._values,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> PredictorColumns:
        """Rebuild from `to_config`."""
        self = cls(config["names"], config["fill"])
        self.levels, self.fills, self._values = config["levels"], config["fills"], config["values"]
        return self

    def stand_in(self) -> pd.DataFrame:
        """A small frame with the training columns' types, levels and ranges, to rebuild terms from a file."""
        size = max([2, *(len(v) for v in self.levels.values()), *(len(v) for v in self._values.values())])
        columns: dict[str, Any] = {}
        for name in self.names:
            source = self.levels.get(name) or self._values[name]
            values = [source[i % len(source)] for i in range(size)]
            columns[name] = (
                pd.Categorical(values, categories=self.levels[name], ordered=True)
                if name in self.levels
                else values
            )
        indicators = {f"{name}_missing": [float(i % 2) for i in range(size)] for name in self.fills}
        return pd.DataFrame({**columns, **indicators}, index=range(size))

    def _trained(self, series: pd.Series, name: str, unseen_levels: str) -> pd.Series:
        column = frames.clean_column(series, name)
        categorical = isinstance(column.dtype, pd.CategoricalDtype)
        if name not in self.levels:
            if categorical and not column.isna().all():
                raise DataError(f"Column '{name}' held numbers in training and holds text now; convert it.")
            return column.astype(float)
        texts = (
            column.astype(object)
            if categorical
            else column.map(frames.text_of, na_action="ignore").astype(object)
        )
        levels = self.levels[name]
        unseen = sorted(set(texts.dropna()) - set(levels))
        if unseen and unseen_levels != "baseline":
            raise DataError(
                f"Column '{name}' has levels that training did not have: {', '.join(map(repr, unseen[:5]))}. "
                f"Known levels: {', '.join(map(repr, levels[:10]))}. "
                f"Pass unseen_levels='baseline' to read them as {levels[0]!r}."
            )
        texts = texts.where(~texts.isin(unseen), levels[0])
        return pd.Series(pd.Categorical(texts, categories=levels, ordered=True), index=column.index)

    def _finish(self, columns: dict[str, pd.Series], index: pd.Index) -> pd.DataFrame:
        indicators = {}
        for name, value in self.fills.items():
            indicators[f"{name}_missing"] = columns[name].isna().astype(float)
            columns[name] = columns[name].fillna(value)
        for name, column in columns.items():
            if name not in self.levels:
                frames.refuse_infinite(column.to_numpy(), name)
        return pd.DataFrame({**columns, **indicators}, index=index)


def _fill_value(column: pd.Series, name: str) -> float | str:
    if column.isna().all():
        raise DataError(f"Column '{name}' has no values at all; leave it out of the formula.")
    return (
        str(column.mode().iloc[0]) if isinstance(column.dtype, pd.CategoricalDtype) else float(column.mean())
    )


def _summary(values: np.ndarray) -> list[float]:
    """Distinct values where they are few, else quantiles: enough to rebuild factors and spline bases."""
    finite = values[np.isfinite(values)]
    distinct = np.unique(finite)
    if len(distinct) > _MAX_STORED:
        distinct = np.unique(np.quantile(finite, np.linspace(0, 1, _MAX_STORED)))
    return distinct.tolist() or [0.0]
