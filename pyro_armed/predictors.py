"""Predictor columns with the levels and fill values that training taught."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import pandas as pd

from pyro_armed import frames
from pyro_armed.errors import DataError

__all__ = ["PredictorColumns"]


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

    Examples
    --------
    >>> columns = PredictorColumns(["x"], fill=True)
    >>> columns.learn(pd.DataFrame({"x": [1.0, None, 3.0]})).to_numpy().tolist()
    [[1.0, 0.0], [2.0, 1.0], [3.0, 0.0]]
    """

    def __init__(self, names: Sequence[str], fill: bool):
        self.names = list(names)
        self.fill = fill
        self.levels: dict[str, list[str]] = {}
        self.fills: dict[str, float | str] = {}

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
                self.levels[name] = [str(level) for level in column.cat.categories]
            if self.fill and column.isna().any():
                self.fills[name] = _fill_value(column, name)
            columns[name] = column
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
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> PredictorColumns:
        """Rebuild from `to_config`."""
        self = cls(config["names"], config["fill"])
        self.levels, self.fills = config["levels"], config["fills"]
        return self

    def _trained(self, series: pd.Series, name: str, unseen_levels: str) -> pd.Series:
        column = frames.clean_column(series, name)
        categorical = isinstance(column.dtype, pd.CategoricalDtype)
        if name not in self.levels:
            if categorical and not column.isna().all():
                raise DataError(f"Column '{name}' held numbers in training and holds text now; convert it.")
            return column.astype(float)
        if not categorical:
            codes, found = pd.factorize(column)
            column = pd.Series(
                pd.Categorical.from_codes(codes, [frames.text_of(v) for v in found]), index=column.index
            )
        levels = self.levels[name]
        unseen = frames.ordered(set(column.cat.remove_unused_categories().cat.categories) - set(levels))
        if unseen and unseen_levels != "baseline":
            raise DataError(
                f"Column '{name}' has levels that training did not have: {', '.join(map(repr, unseen[:5]))}. "
                f"Known levels: {', '.join(map(repr, levels[:10]))}. "
                f"Pass unseen_levels='baseline' to read them as {levels[0]!r}."
            )
        baseline = column.isin(unseen)
        column = column.cat.set_categories(pd.Index(levels, dtype=object), ordered=True)
        return column.mask(baseline, levels[0]) if baseline.any() else column

    def _finish(self, columns: dict[str, pd.Series], index: pd.Index) -> pd.DataFrame:
        indicators = {}
        for name, value in self.fills.items():
            if f"{name}_missing" in columns:
                raise DataError(
                    f"missing='indicator' makes a column '{name}_missing', which the formula uses already; "
                    "rename it."
                )
            indicators[f"{name}_missing"] = columns[name].isna().astype(float)
            columns[name] = columns[name].fillna(value)
        for name, column in columns.items():
            if not isinstance(column.dtype, pd.CategoricalDtype):
                frames.refuse_infinite(column.to_numpy(), name)
        return pd.DataFrame({**columns, **indicators}, index=index)


def _fill_value(column: pd.Series, name: str) -> float | str:
    if column.isna().all():
        raise DataError(f"Column '{name}' has no values at all; leave it out of the formula.")
    return (
        str(column.mode().iloc[0]) if isinstance(column.dtype, pd.CategoricalDtype) else float(column.mean())
    )
