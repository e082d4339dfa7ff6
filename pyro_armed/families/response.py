"""From a column of any dtype to the numbers that a family takes, or a sentence about what is wrong."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from pandas.api.types import infer_dtype, is_bool_dtype, is_complex_dtype, is_numeric_dtype, is_object_dtype

from pyro_armed.errors import ArgumentError, DataError
from pyro_armed.families.base import Family

__all__ = ["Response", "prepare_response"]

_NUMBER_KINDS = {"integer", "floating", "mixed-integer-float", "decimal", "boolean", "empty"}


@dataclass(frozen=True, eq=False)
class Response:
    """A response as a family takes it.

    Attributes
    ----------
    name : str
        Name of the column.
    y : ndarray
        Shape (N,). float64 numbers (0 and 1 for a binary response), or int64 codes into `levels` for a
        categorical or ordinal one.
    levels : list or None
        Labels in the order of their codes, as plain Python objects; None for numbers, and for a binary
        response that was 0 and 1 or boolean.
    trials : ndarray or None
        Numbers of trials of a binomial response, float64 of shape (N,).
    """

    name: str
    y: np.ndarray
    levels: list[Any] | None = None
    trials: np.ndarray | None = None


def prepare_response(
    family: Family,
    values: Any,
    name: str,
    trials: Any = None,
    levels: Sequence[Any] | None = None,
    *,
    training: bool = True,
) -> Response:
    """Check a response against the support of its family, and code its labels.

    Parameters
    ----------
    family : Family
        Its ``response`` says what is allowed.
    values : Series, ndarray, Tensor or sequence
        Shape (N,) or (N, 1), any dtype. Labels are sorted, or in the order of a pandas Categorical (whose
        unused categories are dropped); of two labels the second is the success.
    name : str
        Name of the column, for messages.
    trials : int or like `values`, optional
        Numbers of trials of a binomial response.
    levels : sequence, optional
        The labels of a response that was prepared before, so that new rows get the same codes.
    training : bool, default True
        Whether a model is to be fitted to it. If not, it may be constant.

    Raises
    ------
    DataError
        When values are missing, infinite, outside the support, of the wrong type, constant, or unseen labels.
    ArgumentError
        When `trials` is given for another than a binomial family.

    Examples
    --------
    >>> from pyro_armed.families import get
    >>> prepare_response(get("bernoulli"), ["no", "yes", "no"], "use")
    Response(name='use', y=array([0., 1., 0.]), levels=['no', 'yes'], trials=None)
    >>> prepare_response(get("poisson"), [2, 0, -1], "y")
    Traceback (most recent call last):
        ...
    pyro_armed.errors.DataError: response 'y' has 1 value that is not a count (first: -1.0 in row 2): ...
    """
    if trials is not None and family.response != "binomial":
        raise ArgumentError(f"trials are for family 'binomial', not {family.name!r}: leave them out")
    series = _series(values, f"response {name!r}")
    training = training and levels is None
    if family.response == "binomial":
        successes, numbers = _binomial(series, trials, name, training)
        return Response(name, successes, None, numbers)
    if family.response == "binary":
        return _binary(series, name, levels, training)
    if family.response in ("categorical", "ordinal"):
        return _labelled(family, series, name, levels, training)
    return Response(name, _numbers(family, series, name, training))


def _series(values: Any, what: str) -> pd.Series:
    """One column without an index, checked for shape and missing values."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values.double() if values.dtype == torch.bfloat16 else values).numpy()
    if isinstance(values, pd.DataFrame) and values.shape[1] == 1:
        values = values.iloc[:, 0]
    if not isinstance(values, pd.Series | pd.Index | pd.api.extensions.ExtensionArray | np.ndarray):
        values = _array(values)
    shape = tuple(np.shape(values))
    if isinstance(values, np.ndarray) and values.ndim == 2 and shape[1] == 1:
        values = values[:, 0]
    elif len(shape) != 1:
        raise DataError(f"{what} has shape {shape}: it must be one column, with one value for each row")
    series = pd.Series(values).reset_index(drop=True)
    if not len(series):
        raise DataError(f"{what} is empty: give at least one row")
    missing, infinite = _not_finite(series)
    if missing:
        raise DataError(f"{what} has {_count(missing, 'missing value')}: drop those rows, or fill them in")
    if infinite:
        raise DataError(f"{what} has {_count(infinite, 'infinite value')}: drop or correct those rows")
    return series


def _not_finite(series: pd.Series) -> tuple[int, int]:
    """Numbers of missing and of infinite values."""
    missing = series.isna().to_numpy()
    if series.dtype.kind == "f":
        numbers = series.to_numpy(dtype=np.float64, na_value=np.nan)
        return int(np.isnan(numbers).sum()), int(np.isinf(numbers).sum())
    if is_object_dtype(series.dtype):
        infinite = sum(isinstance(v, float | np.floating) and bool(np.isinf(v)) for v in series)
        return int(missing.sum()), infinite
    return int(missing.sum()), 0


def _array(values: Any) -> Any:
    """Array of a sequence that keeps each label's own type."""
    if isinstance(values, list | tuple) and not any(isinstance(v, list | tuple | np.ndarray) for v in values):
        return pd.Series(list(values), dtype=object).infer_objects()
    return np.asarray(values)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _to_float(series: pd.Series, what: str, mend: str) -> np.ndarray:
    """Numbers as float64; strings, dates and categories are not numbers."""
    dtype = series.dtype
    kind = infer_dtype(series, skipna=True) if is_object_dtype(dtype) else None
    numeric = is_numeric_dtype(dtype) and not is_complex_dtype(dtype)
    if not (numeric or is_bool_dtype(dtype) or kind in _NUMBER_KINDS):
        found = f"has dtype {dtype}" if kind is None else f"holds {kind} objects"
        raise DataError(f"{what} {found}, not numbers: {mend}")
    if isinstance(dtype, pd.CategoricalDtype):
        raise DataError(f"{what} is categorical, not numbers: {mend}")
    return series.to_numpy(dtype=np.float64)


def _refuse(bad: np.ndarray, y: np.ndarray, what: str, noun: tuple[str, str], mend: str) -> None:
    """Raise an error that counts the bad values and shows the first."""
    if bad.any():
        row = int(bad.argmax())
        number = int(bad.sum())
        verb = f"value that is not {noun[0]}" if number == 1 else f"values that are not {noun[1]}"
        raise DataError(f"{what} has {number} {verb} (first: {float(y[row])!r} in row {row}): {mend}")


def _numbers(family: Family, series: pd.Series, name: str, training: bool) -> np.ndarray:
    """Response of a family of real, positive, unit or count values."""
    what = f"response {name!r}"
    mend = f"convert it to numbers, or choose another family than {family.name!r}"
    y = _to_float(series, what, mend)
    if family.response == "count":
        mend = "counts are 0, 1, 2, ...; correct those rows, or choose family='gaussian' or 'gamma'"
        _refuse((y < 0) | (y != np.floor(y)), y, what, ("a count", "counts"), mend)
        return y
    if family.response == "positive":
        mend = "correct those rows, or choose family='gaussian'"
        _refuse(y <= 0, y, what, ("positive", "positive"), mend)
    if family.response == "unit":
        mend = "squeeze or rescale them, or choose family='binomial' for counts of successes"
        words = ("strictly between 0 and 1", "strictly between 0 and 1")
        _refuse((y <= 0) | (y >= 1), y, what, words, mend)
    if training and (y == y[0]).all():
        raise DataError(
            f"response {name!r} is constant (always {float(y[0])!r}): there is nothing to model, "
            "check that it is the right column"
        )
    return y


def _binomial(series: pd.Series, trials: Any, name: str, training: bool) -> tuple[np.ndarray, np.ndarray]:
    """Successes and trials."""
    what = f"response {name!r}"
    if trials is None:
        raise DataError(f"{what} of family 'binomial' has no trials: give trials=, one number for each row")
    y = _to_float(series, what, "give the number of successes in each row")
    if np.ndim(trials) == 0:
        trials = np.full(len(y), trials)
    of_trials = f"trials of response {name!r}"
    numbers = _to_float(_series(trials, of_trials), of_trials, "give the number of trials in each row")
    if len(numbers) != len(y):
        raise DataError(f"{of_trials} have {len(numbers)} rows, the response {len(y)}: give one for each row")
    mend = "trials are 1, 2, ...; drop or correct those rows"
    _refuse(
        (numbers < 1) | (numbers != np.floor(numbers)),
        numbers,
        of_trials,
        ("a positive integer", "positive integers"),
        mend,
    )
    words = ("an integer from 0 to its trials", "integers from 0 to their trials")
    mend = "give numbers of successes, not proportions, and check the trials"
    _refuse((y < 0) | (y > numbers) | (y != np.floor(y)), y, what, words, mend)
    if training and ((y == 0).all() or (y == numbers).all()):
        outcome = "failures" if (y == 0).all() else "successes"
        raise DataError(f"{what} is constant (only {outcome}): there is nothing to model, check the column")
    return y, numbers


def _binary(series: pd.Series, name: str, levels: Sequence[Any] | None, training: bool) -> Response:
    """0 and 1, booleans or two labels."""
    codes, found = _factorise(series, name)
    zero_one = not isinstance(series.dtype, pd.CategoricalDtype) and all(
        isinstance(v, bool | int | float) and v in (0, 1) for v in found
    )
    if levels is not None:
        return Response(name, _recode(codes, found, levels, name).astype(np.float64), list(levels))
    if training and len(found) == 1:
        raise DataError(
            f"response {name!r} is constant (always {found[0]!r}): family 'bernoulli' needs both outcomes, "
            "check that it is the right column"
        )
    if zero_one:
        return Response(name, np.array([float(v) for v in found])[codes])
    if len(found) == 1:
        raise DataError(f"response {name!r} has one label, {found[0]!r}: give levels=, both labels in order")
    if len(found) > 2:
        raise DataError(
            f"response {name!r} has {len(found)} labels ({_listed(found)}), family 'bernoulli' takes two: "
            "choose family='categorical' or 'ordinal', or make it binary"
        )
    return Response(name, codes.astype(np.float64), found)


def _labelled(
    family: Family, series: pd.Series, name: str, levels: Sequence[Any] | None, training: bool
) -> Response:
    """Codes of a categorical or ordinal response."""
    codes, found = _factorise(series, name)
    if levels is not None:
        return Response(name, _recode(codes, found, levels, name), list(levels))
    if family.response == "ordinal" and not _has_order(series, found):
        raise DataError(
            f"response {name!r} has labels without an order ({_listed(found)}): "
            "make it an ordered pd.Categorical, with categories=[lowest, ..., highest] and ordered=True"
        )
    if training and len(found) < 2:
        raise DataError(
            f"response {name!r} is constant (always {found[0]!r}): family {family.name!r} needs two levels, "
            "check that it is the right column"
        )
    if training and family.response == "categorical" and len(found) == 2:
        raise DataError(
            f"response {name!r} has two levels ({_listed(found)}): use family='bernoulli', which is the "
            "same model"
        )
    return Response(name, codes, found)


def _has_order(series: pd.Series, found: list[Any]) -> bool:
    if isinstance(series.dtype, pd.CategoricalDtype):
        return bool(series.dtype.ordered)
    return all(isinstance(v, bool | int | float) for v in found)


def _factorise(series: pd.Series, name: str) -> tuple[np.ndarray, list[Any]]:
    """Codes and labels as Python objects: in a Categorical's order, else sorted where that is possible."""
    if isinstance(series.dtype, pd.CategoricalDtype):
        used = series.cat.remove_unused_categories()
        return used.cat.codes.to_numpy(dtype=np.int64), [_plain(v) for v in used.cat.categories]
    try:
        codes, unique = pd.factorize(series)
    except TypeError as error:
        raise DataError(
            f"response {name!r} has labels that cannot be hashed: use strings or numbers"
        ) from error
    labels = [_plain(v) for v in unique]
    try:
        order = sorted(range(len(labels)), key=labels.__getitem__)
    except TypeError:
        return codes.astype(np.int64), labels
    rank = np.empty(len(labels), dtype=np.int64)
    rank[order] = np.arange(len(labels))
    return rank[codes], [labels[i] for i in order]


def _plain(label: Any) -> Any:
    """Label as a Python object; 1.0 becomes 1, so that both are one label in files too."""
    label = label.item() if isinstance(label, np.generic) and label.dtype.kind in "biufUS" else label
    return int(label) if isinstance(label, float) and label.is_integer() else label


def _recode(codes: np.ndarray, found: list[Any], levels: Sequence[Any], name: str) -> np.ndarray:
    """Codes into the levels seen before."""
    known = {label: code for code, label in enumerate(levels)}
    unseen = [label for label in found if label not in known]
    if unseen:
        raise DataError(
            f"response {name!r} has {_listed(unseen)}, which the training data did not have "
            f"({_listed(levels)}): "
            "drop those rows, or fit a model to data that have them"
        )
    return np.array([known[label] for label in found], dtype=np.int64)[codes]


def _listed(labels: Sequence[Any]) -> str:
    shown = ", ".join(repr(label) for label in labels[:5])
    return shown + (", ..." if len(labels) > 5 else "")
