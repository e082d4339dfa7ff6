"""Reading array arguments: numbers, labels and effects, or a sentence about what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from pyro_armed import frames
from pyro_armed.effects import RandomEffects
from pyro_armed.errors import ArgumentError, DataError
from pyro_armed.families import Family
from pyro_armed.groups import group_labels
from pyro_armed.spec import FEATURES

__all__ = [
    "Rows",
    "checked_effects",
    "checked_groups",
    "group_order",
    "number_array",
    "response_column",
    "row_numbers",
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


def number_array(values: Any, what: str) -> np.ndarray:
    """An array of floating numbers of any shape, missing ones NaN.

    Parameters
    ----------
    values : array-like
        NumPy array, tensor, data frame, nested lists.
    what : str
        The argument's name, for messages.

    Returns
    -------
    numpy.ndarray
        Single precision stays single; integers become double.

    Raises
    ------
    DataError
        For complex numbers, objects, text, sparse matrices and ragged lists.
    """
    if isinstance(values, pd.DataFrame):
        columns = [frames.clean_column(values.iloc[:, i], str(name)) for i, name in enumerate(values.columns)]
        for name, column in zip(values.columns, columns, strict=True):
            if isinstance(column.dtype, pd.CategoricalDtype):
                raise DataError(
                    f"Column '{name}' of {what} holds labels; make numbers of them, or use a formula."
                )
        return (
            np.stack([column.to_numpy() for column in columns], axis=1) if columns else np.empty(values.shape)
        )
    if isinstance(values, (pd.Series, pd.Index, pd.api.extensions.ExtensionArray)):
        return row_numbers(values, what)
    array = _plain_array(values, what)
    if array.dtype.kind == "c":
        raise DataError(f"{what} is complex; use its real and imaginary parts, or its modulus.")
    if array.dtype.kind not in "fiub":
        raise DataError(
            f"{what} has dtype {array.dtype}, not numbers; convert it, such as with {what}.astype(float)."
        )
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)


def row_numbers(values: Any, what: str) -> np.ndarray:
    """One number for each row, missing ones NaN.

    Parameters
    ----------
    values : array-like, shape (N,)
        Any dtype that holds numbers.
    what : str
        The argument's name, for messages.

    Returns
    -------
    numpy.ndarray, shape (N,), dtype float64

    Raises
    ------
    DataError
        For other shapes, labels, infinite values.
    """
    if isinstance(values, (pd.Series, pd.Index, pd.api.extensions.ExtensionArray)):
        column = frames.clean_column(pd.Series(values).reset_index(drop=True), what)
        if isinstance(column.dtype, pd.CategoricalDtype) and not column.isna().all():
            raise DataError(f"{what} holds labels; give numbers.")
        array = column.astype(float).to_numpy()
    else:
        array = number_array(values, what).astype(np.float64)
    if array.ndim != 1:
        raise DataError(f"{what} has shape {array.shape}; give one number for each row.")
    if infinite := int(np.isinf(array).sum()):
        raise DataError(f"{what} has {frames.counted(infinite, 'infinite value')}; mend or remove them.")
    return array


def response_column(values: Any, what: str) -> pd.Series:
    """Responses as a column with its own dtype.

    Parameters
    ----------
    values : array-like, shape (N,) or (N, 1)
        Numbers or labels.
    what : str
        The argument's name, for messages.

    Returns
    -------
    pandas.Series, shape (N,)

    Raises
    ------
    DataError
        For other shapes.
    """
    if isinstance(values, pd.DataFrame) and values.shape[1] == 1:
        values = values.iloc[:, 0]
    if isinstance(values, (pd.Series, pd.Index, pd.api.extensions.ExtensionArray)):
        return pd.Series(values).reset_index(drop=True)
    if isinstance(values, (list, tuple)) and not any(
        isinstance(v, (list, tuple, np.ndarray)) for v in values
    ):
        return pd.Series(list(values), dtype=object).infer_objects()
    array = _plain_array(values, what)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise DataError(f"{what} has shape {array.shape}; give one response for each row.")
    return pd.Series(array)


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
        For unknown groups or parameters, repeated effects, features without a network.
    """
    effects = [effects] if isinstance(effects, RandomEffects) else effects
    if not isinstance(effects, Sequence) or not all(isinstance(one, RandomEffects) for one in effects):
        raise ArgumentError("random_effects must be a list such as [pa.RandomEffects('site')].")
    seen: set[tuple[str, str, str]] = set()
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
        slopes = [one.slopes] if isinstance(one.slopes, str) else [str(slope) for slope in one.slopes or ()]
        for name in (["1"] if one.intercept else []) + slopes:
            key = (one.parameter, one.group, name)
            if key in seen:
                what = "an intercept" if name == "1" else f"slopes on {name!r}"
                raise ArgumentError(f"random_effects gives group {one.group!r} {what} twice; keep one.")
            seen.add(key)
    parameters = ["mu", *dict.fromkeys(one.parameter for one in effects)]
    return sorted(effects, key=lambda one: parameters.index(one.parameter))


def group_order(labels: Any, name: str) -> list[Any] | None:
    """Order of the groups: that of a categorical column's categories, else None."""
    dtype = getattr(labels, "dtype", None)
    return group_labels(dtype.categories, name).tolist() if isinstance(dtype, pd.CategoricalDtype) else None


def _plain_array(values: Any, what: str) -> np.ndarray:
    if hasattr(values, "toarray"):
        raise DataError(f"{what} is a sparse matrix; give a dense one, {what}.toarray().")
    try:
        if isinstance(values, torch.Tensor):
            values = values.detach().cpu()
            return (values.float() if values.dtype in (torch.bfloat16, torch.float16) else values).numpy()
        if isinstance(values, np.ma.MaskedArray):
            return np.ma.filled(values.astype(np.float64), np.nan)
        if isinstance(values, (list, tuple)):
            values = [v.detach().cpu().numpy() if isinstance(v, torch.Tensor) else v for v in values]
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise DataError(f"{what} cannot be made an array: {error}.") from error
