"""Common terms through `formulae`: evaluated once on training data, reproduced on new data, stored as JSON."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from formulae import model_description
from formulae.categorical import ENCODINGS
from formulae.config import config as formulae_config
from formulae.environment import Environment
from formulae.matrices import CommonEffectsMatrix
from formulae.transforms import TRANSFORMS

from pyro_armed.errors import DataError, FileFormatError, FormulaError

__all__ = ["CommonTerms"]

_SAFE_FUNCTIONS = (
    "log log2 log10 log1p exp expm1 sqrt cbrt abs square sin cos tan arctan arcsinh sinh cosh tanh sign floor ceil "
    "minimum maximum clip where power"
).split()
SAFE_NAMESPACE: dict[str, Any] = {
    "np": np,
    **{name: getattr(np, name) for name in ("log", "log2", "log10", "log1p", "exp", "expm1", "sqrt")},
    "abs": np.abs,
}


class CommonTerms:
    """The columns of a formula's common terms.

    Parameters
    ----------
    text : str
        Terms such as ``"1 + x + bs(z, df=4)"``.
    frame : pandas.DataFrame
        Cleaned training data.
    namespace : mapping, optional
        Functions and constants that the terms may use beside `formulae`'s own, ``np``, ``log``, ``exp``, ``sqrt``.

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
    """

    def __init__(self, text: str, frame: pd.DataFrame, namespace: Mapping[str, Any] | None = None):
        self.text = text
        environment = Environment([{**SAFE_NAMESPACE, **(namespace or {})}])
        with _translated(text):
            description = model_description(text)
            self._matrix: CommonEffectsMatrix | None = None
            if description.common_terms:
                description.eval(frame, environment)
                self._matrix = CommonEffectsMatrix(description.common_terms)
                self._matrix.evaluate(frame, environment)
        terms = self._matrix.terms if self._matrix is not None else {}
        self.intercept = any(term.kind == "intercept" for term in terms.values())
        self._offsets = [name for name, term in terms.items() if term.kind == "offset"]
        self._names = [n for n, t in terms.items() if t.kind not in ("intercept", "offset")]
        self.labels = {name: _labels(terms[name]) for name in self._names}

    @property
    def has_offset(self) -> bool:
        """Whether there is an ``offset(...)`` term."""
        return bool(self._offsets)

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
        offset = np.zeros(len(frame))
        if self._matrix is None:
            return {}, offset
        terms = self._matrix.terms
        previous = formulae_config["EVAL_UNSEEN_CATEGORIES"]
        formulae_config["EVAL_UNSEEN_CATEGORIES"] = "error" if unseen_levels == "error" else "silent"
        try:
            with _translated(self.text, DataError):
                columns = {name: _two_dimensional(terms[name].eval_new_data(frame)) for name in self._names}
                for name in self._offsets:
                    offset = offset + np.asarray(terms[name].eval_new_data(frame), dtype=float).reshape(-1)
        finally:
            formulae_config["EVAL_UNSEEN_CATEGORIES"] = previous
        for name, values in [*columns.items(), ("offset", offset)]:
            bad = int(
                (~np.isfinite(values)).any(axis=-1).sum() if values.ndim > 1 else (~np.isfinite(values)).sum()
            )
            if bad:
                raise DataError(
                    f"The term '{name}' is missing or infinite in {bad} rows; mend the column it is made of."
                )
        return columns, offset

    def calls(self) -> set[str]:
        """Names of the functions that the terms call."""
        return {call.callee for call in self._lazy_calls()}

    def state(self) -> list[dict[str, Any]]:
        """What the stateful transforms have learned, JSON-able.

        Returns
        -------
        list of dict

        Raises
        ------
        FormulaError
            For a transform whose state is not made of numbers, strings and arrays.
        """
        states = []
        for call in self._lazy_calls():
            if call.stateful_transform is not None:
                values = vars(call.stateful_transform)
                states.append({key: _encode(value, str(call)) for key, value in values.items()})
        return states

    def restore(self, states: list[dict[str, Any]]) -> None:
        """Put back what `state` returned.

        Parameters
        ----------
        states : list of dict
            From `state` of the same terms.

        Raises
        ------
        FileFormatError
            Where the number of transforms differs.
        """
        calls = [call for call in self._lazy_calls() if call.stateful_transform is not None]
        if len(calls) != len(states):
            raise FileFormatError(
                f"The file stores {len(states)} transforms for {self.text!r}, which has {len(calls)}."
            )
        for call, state in zip(calls, states, strict=True):
            vars(call.stateful_transform).update({key: _decode(value) for key, value in state.items()})

    def _lazy_calls(self) -> Iterator[Any]:
        terms = self._matrix.terms.values() if self._matrix is not None else ()
        for term in terms:
            for component in getattr(term, "components", ()):
                if hasattr(component, "call"):
                    yield from _walk(component.call)


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
    """
    names = set()
    for term in model_description(text).common_terms:
        for component in getattr(term, "components", ()):
            if hasattr(component, "call"):
                names |= {call.callee for call in _walk(component.call)}
    safe = {*TRANSFORMS, *ENCODINGS, *SAFE_NAMESPACE, *known, *(f"np.{name}" for name in _SAFE_FUNCTIONS)}
    return names - safe


@contextlib.contextmanager
def _translated(text: str, kind: type[Exception] = FormulaError) -> Iterator[None]:
    """Third-party failures as one sentence; `formulae` also prints, which is swallowed."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except (FormulaError, DataError):
        raise
    except KeyError as error:
        raise FormulaError(
            f"The formula part {text!r} uses {error}, which is neither a column nor a known function; "
            "pass functions of your own with namespace={'name': function}."
        ) from error
    except Exception as error:
        raise kind(f"The formula part {text!r} cannot be evaluated: {error}") from error


def _walk(call: Any) -> Iterator[Any]:
    if hasattr(call, "callee"):
        yield call
    for argument in [*getattr(call, "args", ()), *getattr(call, "kwargs", {}).values()]:
        yield from _walk(argument)


def _labels(term: Any) -> tuple[str, ...]:
    """Coordinate labels of a term's columns; none if the term is one plain number."""
    full = list(term.labels)
    if term.kind == "numeric" and len(full) == 1:
        return ()
    short = [", ".join(re.findall(r"\[([^\[\]]*)\](?=:|$)", label)) for label in full]
    return tuple(short if all(short) and len(set(short)) == len(short) else full)


def _two_dimensional(values: Any) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    return array[:, None] if array.ndim == 1 else array


def _encode(value: Any, call: str) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return {"array": value.tolist(), "dtype": value.dtype.str}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple)):
        return [_encode(item, call) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise FormulaError(
        f"The transform {call!r} keeps a {type(value).__name__}, which cannot be saved in a file."
    )


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        return np.array(value["array"], dtype=value["dtype"])
    if isinstance(value, list):
        return [_decode(item) for item in value]
    return value
