"""The user's rows, a data frame or arrays: some of them, and a model made of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pyro_armed.armed import ARMED
from pyro_armed.design import Encoded
from pyro_armed.errors import ArgumentError, ArmedError
from pyro_armed.recipe import made_on, remake

if TYPE_CHECKING:
    Source = ARMED | Callable[[Any], ARMED]

__all__ = ["check_data", "encode", "fit_arguments", "made", "naming_the_fold", "take"]

_ARRAYS = ("x", "y", "groups")
_MORE_ARRAYS = ("weights", "offset", "trials")
_OWN = ("seed", "progressbar")


def check_data(data: Any) -> Any:
    """A data frame, or arrays as a dictionary.

    Parameters
    ----------
    data : pandas.DataFrame, tuple or mapping
        For a model from arrays ``(x, y, groups)``, or a dictionary of these that may have ``weights``,
        ``offset`` and ``trials`` too.

    Returns
    -------
    pandas.DataFrame or dict

    Raises
    ------
    ArgumentError
        For anything else.
    """
    if isinstance(data, pd.DataFrame):
        return data
    if isinstance(data, tuple) and len(data) == len(_ARRAYS):
        data = dict(zip(_ARRAYS, data, strict=True))
    if not isinstance(data, Mapping) or not set(_ARRAYS) <= set(data) <= {*_ARRAYS, *_MORE_ARRAYS}:
        raise ArgumentError(
            "data must be a data frame; for a model from arrays (x, y, groups), or a dictionary of these and "
            "of weights, offset and trials."
        )
    return dict(data)


def take(data: Any, rows: np.ndarray) -> Any:
    """Some rows, by position, of what the user gave.

    Parameters
    ----------
    data : pandas.DataFrame, mapping, array-like or None
        Mappings are looked into; single numbers stay.
    rows : numpy.ndarray of int, shape (M,)
        Positions.

    Returns
    -------
    object
        Of the same type.
    """
    if data is None or np.isscalar(data) or getattr(data, "ndim", 1) == 0:
        return data
    if isinstance(data, Mapping):
        return {name: take(part, rows) for name, part in data.items()}
    if isinstance(data, (pd.DataFrame, pd.Series)):
        return data.iloc[rows]
    if isinstance(data, (list, tuple)):
        return [data[row] for row in rows]
    return data[rows]


def made(model: Source, data: Any) -> ARMED:
    """An unfitted model of these rows.

    Parameters
    ----------
    model : ARMED or callable
        A model, whose specification is used again, or a function that takes ``data`` and returns a model.
        For arrays the function gets a dictionary with ``x``, ``y``, ``groups``.
    data : pandas.DataFrame or dict
        From `check_data` and `take`.

    Returns
    -------
    ARMED

    Raises
    ------
    ArgumentError, DataError
        As for `pyro_armed.recipe.remake` and for models of these rows.
    """
    arguments = getattr(model, "_arguments", None)
    if arguments is not None and ("formula" in arguments) != isinstance(data, pd.DataFrame):
        wanted = "a data frame" if "formula" in arguments else "(x, y, groups)"
        raise ArgumentError(f"data must be {wanted} for this model.")
    if isinstance(data, pd.DataFrame) or not hasattr(model, "_arguments"):
        return made_on(model, data)
    more = {name: data[name] for name in _MORE_ARRAYS if name in data}
    return remake(model, data["x"], y=data["y"], groups=data["groups"], **more)


def encode(model: ARMED, data: Any, unseen_levels: str) -> Encoded:
    """Other rows as the model sees them, with their response.

    Parameters
    ----------
    model : ARMED
        A model.
    data : pandas.DataFrame or dict
        From `check_data` and `take`.
    unseen_levels : {"error", "baseline"}
        As for `ARMED.predict`.

    Returns
    -------
    Encoded
    """
    if isinstance(data, pd.DataFrame):
        return model._encode(data, None, response=True, unseen_levels=unseen_levels)
    more: dict[str, Any] = {name: data[name] for name in _MORE_ARRAYS if name in data}
    design: Any = model._design
    encoded: Encoded = design.encode(data["x"], data["groups"], data["y"], **more)
    return encoded


def fit_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """Check what is passed on to `ARMED.fit`.

    Parameters
    ----------
    given : mapping
        Keyword arguments.

    Returns
    -------
    dict
        With ``log_likelihood=False`` where nothing is said of it: folds need none.

    Raises
    ------
    ArgumentError
        For names that ``fit`` does not have.
    """
    known = [name for name in inspect.signature(ARMED.fit).parameters if name not in ("self", *_OWN)]
    if unknown := [name for name in given if name not in known]:
        raise ArgumentError(f"{unknown[0]}= is no argument of fit(); it has {', '.join(known)}.")
    return {"log_likelihood": False, **given}


@contextmanager
def naming_the_fold(fold: int) -> Iterator[None]:
    """Errors inside say which fold they are about."""
    try:
        yield
    except ArmedError as error:
        raise type(error)(f"In fold {fold}: {error}") from error
