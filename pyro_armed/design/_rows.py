"""The arguments of a model from arrays: all of one length, without missing values, naming what there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from pyro_armed import frames
from pyro_armed.design._arrays import number_array, response_column, row_numbers
from pyro_armed.effects import RandomEffects, ScaleBias
from pyro_armed.errors import ArgumentError, DataError
from pyro_armed.families import Family
from pyro_armed.groups import group_labels
from pyro_armed.spec import FEATURES

__all__ = [
    "Rows",
    "checked_effects",
    "checked_groups",
    "column_names",
    "gather_rows",
    "group_order",
    "input_array",
    "parted_effects",
    "refuse_repeated_effects",
    "slope_columns",
]


@dataclass(frozen=True)
class Rows:
    """Row-wise arguments of one length.

    Attributes
    ----------
    size : int
        Rows N.
    x : numpy.ndarray, shape (N, ...), or None
        Inputs.
    y : pandas.Series, shape (N,), or None
        Responses.
    groups : dict of str to numpy.ndarray, shape (N,)
        Labels from `group_labels`.
    others : dict of str to numpy.ndarray, shape (N,)
        Weights, offset, trials: those that were given.
    index : numpy.ndarray, shape (N,)
        Positions in what the user gave.
    """

    size: int
    x: np.ndarray | None
    y: pd.Series | None
    groups: dict[str, np.ndarray]
    others: dict[str, np.ndarray]
    index: np.ndarray

    def select(self, kept: np.ndarray) -> Rows:
        """Some of the rows, by position."""
        return replace(
            self,
            size=len(kept),
            x=None if self.x is None else self.x[kept],
            y=None if self.y is None else self.y.iloc[kept].reset_index(drop=True),
            groups={name: labels[kept] for name, labels in self.groups.items()},
            others={name: values[kept] for name, values in self.others.items()},
            index=self.index[kept],
        )


def input_array(x: Any, network: bool) -> np.ndarray | None:
    """The inputs as an array of numbers.

    Parameters
    ----------
    x : array-like, shape (N, ...), or None
        As the user gave it.
    network : bool
        Whether it is for a network; else it must be two-dimensional.

    Returns
    -------
    numpy.ndarray, shape (N, ...), or None
        Missing values are NaN.

    Raises
    ------
    DataError, ArgumentError
        For other shapes and types, infinite values, and no inputs for a network.
    """
    if x is None:
        if network:
            raise ArgumentError("A network needs inputs: x is None.")
        return None
    values = number_array(x, "x")
    if values.ndim == 0:
        raise DataError("x is a single number; give an array with one row for each observation.")
    if values.size == 0:
        raise DataError(f"x has shape {values.shape}, which is empty; give at least one row and one column.")
    if values.ndim == 1:
        raise DataError(f"x has shape {values.shape}; give one row for each observation, such as x[:, None].")
    if not network and values.ndim != 2:
        raise DataError(f"x has shape {values.shape}; without a network it must be two-dimensional.")
    if infinite := int(np.isinf(values).reshape(len(values), -1).any(axis=1).sum()):
        raise DataError(f"x has infinite values in {frames.counted(infinite, 'row')}; mend or remove them.")
    # Means and sds of columns are taken in double precision.
    return values.astype(np.float64) if values.ndim == 2 else values


def column_names(columns: Any, shape: tuple[int, ...] | None) -> list[str]:
    """Names of the columns of a two-dimensional x; none for other inputs.

    Parameters
    ----------
    columns : sequence of str, optional
        As the user gave them; default ``x0``, ``x1``, ...
    shape : tuple of int, optional
        Shape of one row of x.

    Returns
    -------
    list of str

    Raises
    ------
    ArgumentError
        For a wrong number of names, names that repeat, and names of what has no columns.
    """
    if shape is None or len(shape) != 1:
        if columns is not None:
            raise ArgumentError("columns= names the columns of a two-dimensional x; leave it out.")
        return []
    if columns is None:
        return [f"x{i}" for i in range(shape[0])]
    if isinstance(columns, str) or not all(isinstance(name, str) and name for name in columns):
        raise ArgumentError("columns= must be a list of names, one for each column of x.")
    names = list(columns)
    if len(names) != shape[0]:
        raise ArgumentError(
            f"columns= has {frames.counted(len(names), 'name')} and x has "
            f"{frames.counted(shape[0], 'column')}."
        )
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise ArgumentError(f"columns= has the name {repeated!r} twice; names must differ.")
    return names


def slope_columns(effects: RandomEffects, columns: Sequence[str]) -> list[int]:
    """Positions of the columns on which effects have slopes.

    Parameters
    ----------
    effects : RandomEffects
        What varies between groups.
    columns : sequence of str
        Names of the columns of a two-dimensional x.

    Returns
    -------
    list of int

    Raises
    ------
    ArgumentError
        For columns that x does not have.
    """
    if effects.slopes is None or isinstance(effects.slopes, str):
        return []
    what = f"RandomEffects({effects.group!r})"
    if not columns:
        raise ArgumentError(
            f"{what} has slopes on columns, which needs a two-dimensional x; use slopes='features' or None."
        )
    positions = []
    for column in effects.slopes:
        whole = isinstance(column, (int, np.integer)) and not isinstance(column, bool)
        if isinstance(column, str) and column in columns:
            positions.append(list(columns).index(column))
        elif whole and 0 <= int(column) < len(columns):
            positions.append(int(column))
        else:
            raise ArgumentError(
                f"{what} has a slope on {column!r}; x has the columns 0 to {len(columns) - 1}: "
                f"{', '.join(columns[:10])}."
            )
    return positions


def refuse_repeated_effects(
    effects: Sequence[RandomEffects], slopes: Sequence[Sequence[int]], columns: Sequence[str]
) -> None:
    """Raise if an effect of a group is there twice.

    Parameters
    ----------
    effects : sequence of RandomEffects
        What varies between groups.
    slopes : sequence of sequence of int
        From `slope_columns`.
    columns : sequence of str
        Names of the columns of x.

    Raises
    ------
    ArgumentError
        Naming group and effect.
    """
    seen = set()
    for one, positions in zip(effects, slopes, strict=True):
        names = ["an intercept"] * one.intercept + [f"a slope on {columns[i]!r}" for i in positions]
        for name in [*names, *["slopes on features"] * (one.slopes == FEATURES)]:
            key = (one.parameter, one.group, name)
            if key in seen:
                raise ArgumentError(f"random_effects gives group {one.group!r} {name} twice; keep one.")
            seen.add(key)


def gather_rows(
    x: np.ndarray | None,
    y: Any,
    groups: Mapping[str, Any],
    others: Mapping[str, Any],
    *,
    training: bool,
    drop: bool,
) -> Rows:
    """All row-wise arguments, of one length and without missing values.

    Parameters
    ----------
    x : numpy.ndarray, shape (N, ...), or None
        From `input_array`.
    y : array-like, shape (N,), or None
        Responses.
    groups : mapping of str to array-like, shape (N,)
        From `checked_groups`.
    others : mapping of str to array-like, shape (N,)
        Weights, offset and trials; None where not given. Trials may be one number.
    training : bool
        Whether the response is needed; in new rows a missing group label is not looked for here.
    drop : bool
        Whether rows with missing values are left out; else they are an error.

    Returns
    -------
    Rows

    Raises
    ------
    DataError
        For different lengths, no rows, and missing values.
    """
    if training and y is None:
        raise DataError("y is None; give one response for each row.")
    parts: dict[str, Any] = {} if y is None else {"y": response_column(y, "y")}
    constant = {name for name, value in others.items() if getattr(value, "ndim", np.isscalar(value) - 1) == 0}
    if wrong := sorted(constant - {"trials"}):
        raise DataError(f"{wrong[0]} is a single number; give one for each row.")
    given = {name: value for name, value in others.items() if value is not None and name not in constant}
    parts |= {name: row_numbers(value, name) for name, value in given.items()}
    labels = {name: group_labels(value, name) for name, value in groups.items()}
    lengths = {} if x is None else {"x": len(x)}
    lengths |= {name: len(values) for name, values in parts.items()}
    lengths |= {f"group {name!r}": len(values) for name, values in labels.items()}
    if not lengths or not min(lengths.values()):
        raise DataError(f"There are no rows in {next(iter(lengths), 'x, y or groups')}; give at least one.")
    first, n_rows = next(iter(lengths.items()))
    for name, length in lengths.items():
        if length != n_rows:
            raise DataError(
                f"{first} has {frames.counted(n_rows, 'row')} and {name} has {length}; give one for each row."
            )
    if "trials" in constant:
        parts["trials"] = np.full(n_rows, float(number_array(others["trials"], "trials")))
    rows = Rows(n_rows, x, parts.pop("y", None), labels, parts, np.arange(n_rows))
    return _complete(rows, training, drop)


def checked_groups(groups: Any) -> dict[str, Any]:
    """The ``groups`` argument as a dictionary.

    Parameters
    ----------
    groups : mapping of str to array-like, data frame, or None
        Labels of each grouping factor.

    Returns
    -------
    dict of str to array-like

    Raises
    ------
    ArgumentError
        For anything else.
    """
    if groups is None:
        return {}
    if isinstance(groups, pd.DataFrame):
        return {str(name): groups.iloc[:, i] for i, name in enumerate(groups.columns)}
    if not isinstance(groups, Mapping) or not all(isinstance(name, str) and name for name in groups):
        raise ArgumentError(
            "groups must be a dictionary from names to labels, such as groups={'site': site}."
        )
    return dict(groups)


def parted_effects(effects: Any) -> tuple[Any, list[ScaleBias]]:
    """The ``random_effects`` argument without those within a network, and these.

    Parameters
    ----------
    effects : RandomEffects, ScaleBias or a sequence of them
        As the user gave it.

    Returns
    -------
    others : list, or the argument itself where it is something else
    within : list of ScaleBias
    """
    effects = [effects] if isinstance(effects, ScaleBias) else effects
    if not isinstance(effects, Sequence):
        return effects, []
    within = [one for one in effects if isinstance(one, ScaleBias)]
    return [one for one in effects if not isinstance(one, ScaleBias)], within


def checked_effects(
    effects: Any, groups: Mapping[str, Any], network: bool, family: Family
) -> list[RandomEffects]:
    """The ``random_effects`` argument as a list, those of the mean first.

    Parameters
    ----------
    effects : RandomEffects or sequence of RandomEffects
        What varies between groups.
    groups : mapping of str to array-like
        The grouping factors.
    network : bool
        Whether there is a network, for slopes on features.
    family : Family
        Says which parameters may have a predictor.

    Returns
    -------
    list of RandomEffects

    Raises
    ------
    ArgumentError
        For unknown groups or parameters, and features without a network.
    """
    effects = [effects] if isinstance(effects, RandomEffects) else effects
    if not isinstance(effects, Sequence) or not all(isinstance(one, RandomEffects) for one in effects):
        raise ArgumentError("random_effects must be a list such as [pa.RandomEffects('site')].")
    for one in effects:
        known = ", ".join(map(repr, groups)) or "none"
        if one.group not in groups:
            raise ArgumentError(
                f"RandomEffects({one.group!r}) names no grouping factor; groups has: {known}."
            )
        if one.slopes == FEATURES and not network:
            raise ArgumentError(
                f"RandomEffects({one.group!r}, slopes='features') needs a network; pass network= or name "
                "columns."
            )
        if one.parameter != "mu" and one.parameter not in family.auxiliary_links:
            others = ", ".join(map(repr, ["mu", *family.auxiliary_links]))
            raise ArgumentError(
                f"RandomEffects({one.group!r}) is for the parameter {one.parameter!r}; family "
                f"{family.name!r} has: {others}."
            )
    parameters = ["mu", *dict.fromkeys(one.parameter for one in effects)]
    return sorted(effects, key=lambda one: parameters.index(one.parameter))


def group_order(labels: Any, name: str) -> list[Any] | None:
    """Order of the groups: that of a categorical column's categories, else None."""
    dtype = getattr(labels, "dtype", None)
    return group_labels(dtype.categories, name).tolist() if isinstance(dtype, pd.CategoricalDtype) else None


def _complete(rows: Rows, training: bool, drop: bool) -> Rows:
    """The rows without missing values, or an error that counts them."""
    masks = {} if rows.x is None else {"x": np.isnan(rows.x).reshape(rows.size, -1).any(axis=1)}
    if rows.y is not None:
        masks["y"] = pd.isna(rows.y).to_numpy(dtype=bool)
    masks |= {name: np.isnan(values) for name, values in rows.others.items()}
    if training:
        masks |= {f"group {name!r}": pd.isna(labels) for name, labels in rows.groups.items()}
    counts = [
        f"{name} in {frames.counted(int(mask.sum()), 'row')}" for name, mask in masks.items() if mask.any()
    ]
    if not counts:
        return rows
    if not drop:
        mend = "pass missing='drop' to leave these rows out" if training else "leave these rows out"
        raise DataError(f"Values are missing: {', '.join(counts)}. Fill them in, or {mend}.")
    kept = np.flatnonzero(~np.any(list(masks.values()), axis=0))
    if not len(kept):
        raise DataError("Every row has a missing value; nothing is left to use.")
    return rows.select(kept)
