"""Common terms: decided on training data by `formulae`, reproduced on new rows, kept as JSON.

What `formulae` has learned (which columns are factors, their levels and contrasts, the state of transforms
such as ``bs``) is taken out of it once as a plain plan. Evaluating rows needs only the plan and
`formulae`'s parse tree, so that terms from a file are the terms of the fit, and loading evaluates nothing.
"""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import reduce
from typing import Any

import numpy as np
import pandas as pd
from formulae import model_description
from formulae.categorical import ENCODINGS, CategoricalBox
from formulae.environment import Environment
from formulae.terms.call_resolver import get_function_from_module
from formulae.transforms import TRANSFORMS
from scipy.interpolate import CubicSpline

from pyro_armed.errors import ArmedError, DataError, FileFormatError, FormulaError
from pyro_armed.formula import components, lazy_calls
from pyro_armed.frames import counted, ordered, text_of

__all__ = ["CommonTerms", "unsafe_calls"]

_SAFE_FUNCTIONS = {
    *("log", "log2", "log10", "log1p", "exp", "expm1", "sqrt", "cbrt", "abs", "square", "power", "sign"),
    *("sin", "cos", "tan", "arctan", "arcsinh", "sinh", "cosh", "tanh"),
    *("floor", "ceil", "minimum", "maximum", "clip", "where"),
}
SAFE_NAMESPACE: dict[str, Any] = {
    "np": np,
    **{name: getattr(np, name) for name in ("log", "log2", "log10", "log1p", "exp", "expm1", "sqrt")},
    "abs": np.abs,
}
_STATEFUL = "__stateful_transform__"


def _labels_alone(data: Any, *_: Any, **__: Any) -> Any:
    """`C`, `S` and `T` once the levels are known."""
    return data


def _binary(data: Any, success: Any) -> np.ndarray:
    return np.asarray(data == success, dtype=float)


_WHEN_LEARNED = {"C": _labels_alone, "S": _labels_alone, "T": _labels_alone, "binary": _binary, "B": _binary}


@dataclass(frozen=True)
class _Part:
    """One factor of a product of columns.

    Attributes
    ----------
    component : str
        Name of the variable or call.
    labels : tuple of str
        Names of its columns; empty for a plain number.
    levels : tuple, optional
        Levels of a factor, in the order of the rows of ``contrast``.
    contrast : tuple of tuple of float, optional
        Contrast matrix of a factor, shape (levels, columns).
    """

    component: str
    labels: tuple[str, ...] = ()
    levels: tuple[Any, ...] | None = None
    contrast: tuple[tuple[float, ...], ...] | None = None


@dataclass(frozen=True)
class _Plan:
    """One term: its name, ``"intercept"``, ``"offset"`` or ``"columns"``, and what is multiplied."""

    name: str
    kind: str
    parts: tuple[_Part, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        several = [part.labels for part in self.parts if part.labels]
        if not several:
            return ()
        labels = [", ".join(row) for row in itertools.product(*several)]
        return tuple(labels if len(set(labels)) == len(labels) else map(str, range(len(labels))))


class CommonTerms:
    """The columns of a formula's common terms.

    Parameters
    ----------
    text : str
        Terms such as ``"1 + x + bs(z, df=4)"``.
    frame : pandas.DataFrame
        Cleaned training data.
    namespace : mapping, optional
        Functions and constants that the terms may use beside `formulae`'s own, ``np``, ``log``, ``exp``,
        ``sqrt``.

    Attributes
    ----------
    intercept : bool
        Whether the terms include an intercept.
    labels : dict of str to tuple of str
        Column labels of each term; empty for scalar terms.

    Raises
    ------
    FormulaError
        Where a term cannot be evaluated.
    DataError
        Where a factor has only one level.

    Examples
    --------
    >>> terms = CommonTerms("1 + center(x)", pd.DataFrame({"x": [1.0, 2.0, 6.0]}))
    >>> terms.evaluate(pd.DataFrame({"x": [3.0, 4.0]}))[0]["center(x)"].tolist()
    [[0.0], [1.0]]
    """

    def __init__(self, text: str, frame: pd.DataFrame, namespace: Mapping[str, Any] | None = None):
        environment = Environment([{**SAFE_NAMESPACE, **(namespace or {})}])
        with _translated(text):
            components(text)  # for its sentences about what cannot be read
            description = model_description(text)
            for term in description.common_terms:
                # In `a / x` formulae lets two terms share a factor, and the second overwrites its contrasts.
                if hasattr(term, "components"):
                    term.components = deepcopy(term.components)
            description.eval(frame, environment)
            plans = [_learned(term) for term in description.common_terms]
            sources = [part for term in description.common_terms for part in getattr(term, "components", ())]
        self._build(text, plans, namespace)
        for name, states in _transform_states(sources).items():
            self._restore_transforms(name, states)

    def _build(self, text: str, plans: list[_Plan], namespace: Mapping[str, Any] | None) -> None:
        self.text = text
        self._plans = plans
        functions = {**SAFE_NAMESPACE, **(namespace or {}), **TRANSFORMS, **ENCODINGS, **_WHEN_LEARNED}
        self._environment = Environment([functions])
        # Parsed anew: the learned ones hold the training data.
        self._components = {component.name: component for component in components(text)}
        self.intercept = any(plan.kind == "intercept" for plan in plans)
        self.labels = {plan.name: plan.labels for plan in plans if plan.kind == "columns"}

    @property
    def has_offset(self) -> bool:
        """Whether there is an ``offset(...)`` term."""
        return any(plan.kind == "offset" for plan in self._plans)

    @property
    def factors(self) -> list[str]:
        """Components that have levels: columns of labels, and calls such as ``C(x)``."""
        return [part.component for plan in self._plans for part in plan.parts if part.levels is not None]

    def evaluate(
        self, frame: pd.DataFrame, unseen_levels: str = "error"
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Columns of each term for some rows.

        Parameters
        ----------
        frame : pandas.DataFrame
            Cleaned rows, with the training levels.
        unseen_levels : str
            ``"error"``, or ``"baseline"`` to treat unknown levels as the reference level.

        Returns
        -------
        columns : dict of str to numpy.ndarray, shape (N, K)
        offset : numpy.ndarray, shape (N,)

        Raises
        ------
        DataError
            For levels that training did not have, and for terms that give missing or infinite values.
        """
        columns, offset = {}, np.zeros(len(frame))
        with _translated(self.text, DataError):
            for plan in self._plans:
                if plan.kind == "offset":
                    offset = offset + self._offset(plan.name, frame)
                elif plan.kind == "columns":
                    parts = [self._columns(part, frame, unseen_levels) for part in plan.parts]
                    columns[plan.name] = reduce(_products, parts)
        for name, values in [*columns.items(), ("offset", offset[:, None])]:
            bad = int((~np.isfinite(values)).any(axis=1).sum())
            if bad:
                raise DataError(
                    f"The term '{name}' is missing or infinite in {counted(bad, 'row')}; mend the column it "
                    "is made of."
                )
        return columns, offset

    def state(self) -> dict[str, Any]:
        """What the terms have learned, JSON-able.

        Returns
        -------
        dict

        Raises
        ------
        FormulaError
            For a transform whose state is not made of numbers, text and arrays.
        """
        states = _transform_states(self._components.values())
        return {
            "plans": [asdict(plan) for plan in self._plans],
            "transforms": {name: [_encode(state, name) for state in some] for name, some in states.items()},
        }

    @classmethod
    def from_state(
        cls, text: str, state: dict[str, Any], namespace: Mapping[str, Any] | None = None
    ) -> CommonTerms:
        """Rebuild from `state` without evaluating anything.

        Parameters
        ----------
        text : str
            The same terms.
        state : dict
            From `state`.
        namespace : mapping, optional
            As for the constructor.

        Returns
        -------
        CommonTerms

        Raises
        ------
        FileFormatError
            Where the state does not belong to the text.
        """
        self = cls.__new__(cls)
        try:
            self._build(text, [_plan(config) for config in state["plans"]], namespace)
            known = set(self._components)
            needed = {part.component for plan in self._plans for part in plan.parts}
            if not (needed | set(state["transforms"])) <= known:
                raise FileFormatError(f"The stored terms of {text!r} are not those of the formula.")
            for name, component in self._components.items():
                if hasattr(component, "call"):
                    stored = state["transforms"].get(name, [])
                    self._restore_transforms(name, [_decode(one) for one in stored])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, ArmedError):
                raise
            raise FileFormatError(f"The stored terms of {text!r} cannot be read: {error}") from error
        return self

    def _restore_transforms(self, name: str, states: list[dict[str, Any]]) -> None:
        calls = [c for c in lazy_calls(self._components[name].call) if self._is_stateful(c)]
        if len(calls) != len(states):
            raise FileFormatError(
                f"The file stores {len(states)} transforms for {name!r}, which has {len(calls)}."
            )
        for call, state in zip(calls, states, strict=True):
            call.stateful_transform = get_function_from_module(call.callee, self._environment)()
            vars(call.stateful_transform).update(state)

    def _is_stateful(self, call: Any) -> bool:
        return bool(getattr(get_function_from_module(call.callee, self._environment), _STATEFUL, False))

    def _values(self, name: str, frame: pd.DataFrame) -> Any:
        component = self._components[name]
        return component.call.eval(frame, self._environment) if hasattr(component, "call") else frame[name]

    def _columns(self, part: _Part, frame: pd.DataFrame, unseen_levels: str) -> np.ndarray:
        values = self._values(part.component, frame)
        if part.levels is None:
            array = np.asarray(values, dtype=np.float64)
            if array.shape[:1] != (len(frame),):
                raise DataError(
                    f"The term '{part.component}' gives {array.shape} values for "
                    f"{counted(len(frame), 'row')}; a term gives one value for each row."
                )
            return array.reshape(len(frame), -1)
        codes, labels = _codes(values, part.levels)
        if (codes < 0).any():
            if unseen_levels == "error":
                unseen = ", ".join(map(repr, ordered(set(labels[codes < 0]))[:5]))
                raise DataError(
                    f"The term '{part.component}' has levels that training did not have: {unseen}. "
                    "Pass unseen_levels='baseline' to read them as the first level."
                )
            codes = np.maximum(codes, 0)
        return np.array(part.contrast, dtype=np.float64).reshape(len(part.levels), -1)[codes]

    def _offset(self, name: str, frame: pd.DataFrame) -> np.ndarray:
        offset = self._values(name, frame)
        offset.set_size(len(frame))
        return np.asarray(offset.eval(), dtype=np.float64).reshape(-1)


def unsafe_calls(text: str, known: Mapping[str, Any]) -> set[str]:
    """Functions in a formula read from a file that are neither arithmetic nor given by the user.

    Parameters
    ----------
    text : str
        Terms of a formula.
    known : mapping
        The user's namespace.

    Returns
    -------
    set of str

    Examples
    --------
    >>> unsafe_calls("np.log(x) + np.fromfile(x)", {})
    {'np.fromfile'}
    """
    calls = (call for part in components(text) if hasattr(part, "call") for call in lazy_calls(part.call))
    safe = {*TRANSFORMS, *ENCODINGS, *SAFE_NAMESPACE, *known, *(f"np.{name}" for name in _SAFE_FUNCTIONS)}
    return {call.callee for call in calls} - safe


@contextlib.contextmanager
def _translated(text: str, kind: type[Exception] = FormulaError) -> Iterator[None]:
    """Third-party failures as one sentence; `formulae` also prints, which is swallowed."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), np.errstate(all="ignore"):
            yield
    except ArmedError:
        raise
    except KeyError as error:
        raise FormulaError(
            f"The formula part {text!r} uses {error}, which is neither a column nor a known function; "
            "pass functions of your own with namespace={'name': function}."
        ) from error
    except Exception as error:
        raise kind(f"The formula part {text!r} cannot be evaluated: {str(error).strip(' .')}.") from error


def _learned(term: Any) -> _Plan:
    """The plan of a term that `formulae` has evaluated on training data."""
    if term.kind in ("intercept", "offset"):
        return _Plan(getattr(term, "name", "Intercept"), term.kind)
    plan = _Plan(term.name, "columns", tuple(_learned_part(component) for component in term.components))
    for part in plan.parts:
        if part.levels is not None and len(part.levels) < 2:
            level = f" ({part.levels[0]!r})" if part.levels else ""
            raise DataError(
                f"The predictor '{part.component}' has only one level{level}; leave it out of the formula."
            )
    return plan


def _learned_part(component: Any) -> _Part:
    name = component.name
    for call in lazy_calls(component.call) if hasattr(component, "call") else ():
        if call.callee in ("binary", "B") and len(call.args) + len(call.kwargs) < 2:
            raise FormulaError(
                f"{call} takes its success from the rows at hand; name it: binary(x, success='yes')."
            )
    if component.kind == "numeric":
        width = component.value.shape[1] if component.value.ndim > 1 else 1
        return _Part(name, tuple(map(str, range(width))) if width > 1 else ())
    if component.kind != "categoric":
        raise FormulaError(f"'{name}' gives neither numbers nor labels that a term can use.")
    levels = [level.item() if isinstance(level, np.generic) else level for level in component.levels]
    texts = {str(level): text_of(level) for level in levels}
    labels = tuple(texts.get(label, label) for label in component.contrast_matrix.labels)
    contrast = tuple(map(tuple, np.asarray(component.contrast_matrix.matrix, dtype=float).tolist()))
    return _Part(name, labels, tuple(levels), contrast)


def _plan(config: dict[str, Any]) -> _Plan:
    def fixed(value: Any) -> Any:
        return tuple(fixed(item) for item in value) if isinstance(value, list) else value

    parts = (_Part(**{key: fixed(value) for key, value in part.items()}) for part in config["parts"])
    return _Plan(config["name"], config["kind"], tuple(parts))


def _transform_states(sources: Any) -> dict[str, list[dict[str, Any]]]:
    """States of the stateful transforms of each component that has any."""
    states = {}
    for component in sources:
        calls = lazy_calls(component.call) if hasattr(component, "call") else ()
        found = [dict(vars(c.stateful_transform)) for c in calls if c.stateful_transform is not None]
        if found:
            states[component.name] = found
    return states


def _codes(values: Any, levels: tuple[Any, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Positions of labels among the levels, -1 for others, and the labels."""
    if isinstance(values, CategoricalBox):
        values = values.data
    dtype = getattr(values, "dtype", None)
    if isinstance(dtype, pd.CategoricalDtype) and tuple(dtype.categories) == levels:
        codes = pd.Series(values).cat.codes.to_numpy()
        if (codes >= 0).all():
            return codes, codes
    labels = np.asarray(values, dtype=object)
    return pd.Index(levels, dtype=object).get_indexer(pd.Index(labels, dtype=object)), labels


def _products(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Products of all pairs of columns, the right ones changing fastest."""
    return (left[:, :, None] * right[:, None, :]).reshape(len(left), -1)


def _encode(value: Any, call: str) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return {"array": value.tolist(), "dtype": value.dtype.str, "shape": list(value.shape)}
    if isinstance(value, np.generic) and value.dtype.kind in "fiubU":
        return value.item()
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_encode(item, call) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[_encode(key, call), _encode(item, call)] for key, item in value.items()]}
    if type(value) is CubicSpline:
        parts = [value.c, value.x, value.extrapolate]
        return {"spline": [_encode(part, call) for part in parts]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise FormulaError(
        f"The transform {call!r} keeps a {type(value).__name__}, which cannot be saved in a file."
    )


def _decode(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "array" in value:
        if np.dtype(value["dtype"]).kind not in "fiub":
            raise FileFormatError(f"The file stores an array of type {value['dtype']!r}.")
        return np.array(value["array"], dtype=value["dtype"]).reshape(value["shape"])
    if "spline" in value:
        return CubicSpline.construct_fast(*(_decode(part) for part in value["spline"]))
    if "dict" in value:
        return {_decode(key): _decode(item) for key, item in value["dict"]}
    items = [_decode(item) for item in next(iter(value.values()))]
    return tuple(items) if "tuple" in value else items
