"""The left-hand side of a formula."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pyro_armed import frames
from pyro_armed.errors import DataError, FormulaError
from pyro_armed.families import Family, Response, prepare_response
from pyro_armed.formula import split_outside, unquote, variables
from pyro_armed.terms import CommonTerms, unsafe_calls

__all__ = ["FormulaResponse"]

_PROPORTION = re.compile(r"^(?:p|prop|proportion)\s*\((.+)\)$", re.DOTALL)
_LEVEL = re.compile(r"^(`[^`]+`|[^()`\[\]]+)\[(.+)\]$", re.DOTALL)


class FormulaResponse:
    """Reads a response such as ``y``, ``np.log(y)``, ``use['Y']`` or ``p(successes, trials)``.

    Parameters
    ----------
    text : str
        Left-hand side of the formula.
    family : Family
        Response family.
    namespace : mapping
        The user's functions.

    Attributes
    ----------
    columns : list of str
        Columns that it is made of.
    trials : str, float or None
        Column or number of trials of ``p(successes, trials)``.

    Raises
    ------
    FormulaError
        Where the text cannot be read.

    Examples
    --------
    >>> from pyro_armed import families
    >>> FormulaResponse("p(k, n)", families.get("binomial"), {}).columns
    ['k', 'n']
    """

    def __init__(self, text: str, family: Family, namespace: Mapping[str, Any]):
        self.text, self.family, self.namespace = text, family, dict(namespace)
        self.trials: str | float | None = None
        self.level: str | None = None
        self.computed = False
        self._terms: CommonTerms | None = None
        if match := _PROPORTION.match(text):
            self.columns = self._proportion(split_outside(match[1], ","))
        elif match := _LEVEL.match(text):
            self.level = match[2].strip().strip("'\"")
            self.columns = [unquote(match[1])]
        elif text != unquote(text) or re.fullmatch(r"[\w.]+", text):
            self.columns = [unquote(text)]
        else:
            self.computed = True
            self.columns = sorted(variables(f"0 + {text}") - set(namespace))
            if not self.columns:
                raise FormulaError(f"The response {text!r} names no column.")

    def _proportion(self, parts: list[str]) -> list[str]:
        if len(parts) != 2 or not all(part.strip() for part in parts):
            raise FormulaError(
                f"The response {self.text!r} needs successes and trials: p(successes, trials)."
            )
        successes, trials = parts
        if re.fullmatch(r"[\d.]+", trials.strip()):
            try:
                self.trials = float(trials)
            except ValueError as error:
                raise FormulaError(
                    f"In {self.text!r}, {trials.strip()!r} is not a number of trials."
                ) from error
            return [unquote(successes)]
        self.trials = unquote(trials)
        return [unquote(successes), self.trials]

    def unsafe_calls(self) -> set[str]:
        """Functions that a formula from a file must not call."""
        return unsafe_calls(f"0 + {self.text}", self.namespace) if self.computed else set()

    def read(self, frame: pd.DataFrame, levels: Sequence[Any] = (), *, training: bool = True) -> Response:
        """The response of some rows.

        Parameters
        ----------
        frame : pandas.DataFrame
            Rows, without missing values in `columns`.
        levels : sequence
            Labels that training had.
        training : bool
            Whether a model is to be fitted to it.

        Returns
        -------
        Response

        Raises
        ------
        DataError
            For values that the family does not allow.
        """
        trials: Any = None
        values: Any = frame[self.columns[0]]
        if self.trials is not None:
            trials = frame[self.trials] if isinstance(self.trials, str) else np.full(len(frame), self.trials)
        elif self.level is not None:
            labels = values.astype(object).map(frames.text_of).to_numpy(dtype=object)
            if training and self.level not in set(labels):
                raise DataError(
                    f"The response {self.text!r} names a level that column '{self.columns[0]}' does not have."
                )
            values = labels == self.level
        elif self.computed:
            values = self._compute(frame)
        return prepare_response(
            self.family,
            values,
            self.text,
            trials=trials,
            levels=list(levels) if levels else None,
            training=training,
        )

    def read_trials(self, frame: pd.DataFrame) -> np.ndarray | None:
        """Trials of rows whose response is not known; None where the column of trials is not there.

        Parameters
        ----------
        frame : pandas.DataFrame
            Rows.

        Returns
        -------
        numpy.ndarray, shape (N,), or None

        Raises
        ------
        DataError
            For numbers of trials that are not 1, 2, ...
        """
        if not isinstance(self.trials, str):
            return None if self.trials is None else np.full(len(frame), self.trials)
        if self.trials not in frame.columns:
            return None
        if self.family.response != "binomial":
            return None
        none = np.zeros(len(frame))
        return prepare_response(
            self.family, none, self.text, trials=frame[self.trials], training=False
        ).trials

    def state(self) -> dict[str, Any] | None:
        """What transforms such as ``scale(y)`` have learned, JSON-able."""
        return None if self._terms is None else self._terms.state()

    def restore(self, state: dict[str, Any] | None) -> None:
        """Put back what `state` returned."""
        if self.computed and state is not None:
            self._terms = CommonTerms.from_state(f"0 + {self.text}", state, self.namespace)

    def _compute(self, frame: pd.DataFrame) -> np.ndarray:
        data = pd.DataFrame({n: frames.clean_column(frame[n], n) for n in self.columns}, index=frame.index)
        if self._terms is None:
            self._terms = CommonTerms(f"0 + {self.text}", data, self.namespace)
        columns, _ = self._terms.evaluate(data)
        values = next(iter(columns.values())) if len(columns) == 1 else np.empty((0, 2))
        if values.shape[1] != 1:
            raise FormulaError(f"The response {self.text!r} has more than one column; a response has one.")
        return values[:, 0]
