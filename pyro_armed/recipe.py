"""Making a model again: on other rows, or with another setting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pyro_armed.errors import ArgumentError

if TYPE_CHECKING:
    from pyro_armed.armed import ARMED

__all__ = ["made_on", "remake"]

_OF_ROWS = ("weights", "offset", "trials")


def remake(model: Any, data: Any, *, y: Any = None, groups: Any = None, **changes: Any) -> ARMED:
    """An unfitted model like this one, on other rows.

    Parameters
    ----------
    model : ARMED
        Fitted or not. Its network is used as it was given: a module of the user's own keeps its weights.
    data : pandas.DataFrame or array-like
        Training rows; for a model from arrays the inputs x.
    y : array-like, shape (N,), optional
        Responses, for a model from arrays.
    groups : mapping of str to array-like, optional
        Group labels, for a model from arrays.
    **changes
        Arguments of `ARMED` (or `ARMED.from_arrays`) that are to differ.

    Returns
    -------
    ARMED

    Raises
    ------
    ArgumentError
        For a model from a file, and where the model had values of each row (``weights``, ``offset``,
        ``trials``) that are not given for the new ones.

    Examples
    --------
    >>> import pyro_armed as pa
    >>> frame = pa.simulate.mixed_model(8, 10, seed=0).frame
    >>> model = pa.ARMED("y ~ x1 + (1 | group)", frame)
    >>> remake(model, frame[10:]).spec.n_rows
    70
    """
    arguments: Mapping[str, Any] | None = getattr(model, "_arguments", None)
    if arguments is None:
        raise ArgumentError(
            "model must be an ARMED that was made here: one from a file does not know how it was made."
        )
    for name in _OF_ROWS:
        given = arguments.get(name)
        if given is not None and not isinstance(given, str) and changes.get(name) is None:
            mend = f"{name}='column'" if "formula" in arguments else f"{name}= for them"
            raise ArgumentError(f"The model's {name} belong to the rows that it has; for others give {mend}.")
    settings = {**arguments, **changes}
    if "formula" not in arguments:
        return type(model).from_arrays(data, y, groups, **settings)
    if y is not None or groups is not None:
        raise ArgumentError("y= and groups= are for models from arrays; a formula reads both from the frame.")
    return type(model)(settings.pop("formula"), data, **settings)


def made_on(model: Any, data: Any, **changes: Any) -> ARMED:
    """A model specification on other rows of a data frame.

    Parameters
    ----------
    model : ARMED or callable
        A model, which is made again, or a function that takes rows and returns a model.
    data : pandas.DataFrame
        Training rows.
    **changes
        As for `remake`.

    Returns
    -------
    ARMED
        Unfitted, if the function returns such.

    Raises
    ------
    ArgumentError
        For anything else, and as for `remake`.
    """
    if hasattr(model, "_arguments"):
        return remake(model, data, **changes)
    if not callable(model):
        raise ArgumentError(
            f"model must be an ARMED, or a function that takes rows and returns one, not {model!r}."
        )
    made = model(data)
    if not hasattr(made, "_arguments"):
        raise ArgumentError(f"The function given as model must return an ARMED, not {type(made).__name__}.")
    return remake(made, data, **changes) if changes else made
