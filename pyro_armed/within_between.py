"""The within-between (Mundlak) decomposition: a predictor as group mean and deviation from it.

The effect of a group's mean and that of a row's deviation differ where something unmeasured at the group's
level is related to both the predictor and the response (Mundlak, Econometrica 46, 1978).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from pyro_armed import frames
from pyro_armed.errors import ArgumentError, DataError, FormulaError
from pyro_armed.formula import ParsedFormula, components, quote, unquote
from pyro_armed.groups import (
    combine_columns,
    decode_labels,
    encode_labels,
    group_labels,
    refuse_missing_labels,
)

__all__ = ["WithinBetween", "decompose_formula"]

WITHIN, BETWEEN = "_within", "_between"


class WithinBetween:
    """Splits columns into ``x_between``, the group's mean, and ``x_within``, the deviation from it.

    Parameters
    ----------
    factors : mapping of str to tuple of str
        For each column the columns whose combination is the grouping factor.

    Attributes
    ----------
    factors : dict of str to tuple of str
        As given.
    means : dict of str to dict
        Training mean of each group for each column, by label.

    Examples
    --------
    >>> split = WithinBetween({"x": ("g",)})
    >>> split.learn(pd.DataFrame({"x": [1.0, 3.0, 5.0], "g": ["a", "a", "b"]}))["x_within"].tolist()
    [-1.0, 1.0, 0.0]
    >>> split.apply(pd.DataFrame({"x": [4.0, 8.0], "g": ["a", "c"]}))["x_between"].tolist()
    [2.0, 8.0]
    """

    def __init__(self, factors: Mapping[str, Sequence[str]]):
        self.factors = {name: tuple(group) for name, group in factors.items()}
        self.means: dict[str, dict[Any, float]] = {}

    @classmethod
    def parse(cls, argument: Any, parsed: ParsedFormula) -> WithinBetween:
        """Read the ``within_between`` argument.

        Parameters
        ----------
        argument : str, sequence of str, or mapping of str to str
            Columns, which take the formula's first grouping factor, or a factor for each:
            ``{"x": "school"}``; ``"school:class"`` combines columns.
        parsed : ParsedFormula
            The main formula.

        Returns
        -------
        WithinBetween

        Raises
        ------
        ArgumentError
            For anything else.
        FormulaError
            Where the formula has no grouping factor to take.
        """
        names = [argument] if isinstance(argument, str) else argument
        if isinstance(names, Mapping):
            pairs = dict(names)
        elif isinstance(names, Sequence):
            if not parsed.group_terms:
                raise FormulaError(
                    "within_between needs a grouping factor: name it, within_between={'x': 'school'}, or add "
                    "a term (1 | school) to the formula."
                )
            pairs = dict.fromkeys(names, parsed.group_terms[0].group)
        else:
            pairs = {}
        factors = {}
        for name, group in pairs.items():
            if isinstance(group, str):
                group = tuple(unquote(part) for part in group.split(":"))
            if not isinstance(name, str) or not isinstance(group, tuple) or not all(group):
                pairs = {}
                break
            factors[unquote(name)] = group
        if not pairs:
            raise ArgumentError(
                f"within_between={argument!r} must be columns such as ['x'], or their factors such as "
                "{'x': 'school'}."
            )
        return cls(factors)

    @property
    def sources(self) -> list[str]:
        """Columns of the data that are needed: what is split, and the grouping columns."""
        return list(
            dict.fromkeys([*self.factors, *(part for group in self.factors.values() for part in group)])
        )

    @property
    def derived(self) -> set[str]:
        """Names of the columns that are made."""
        return {name + suffix for name in self.factors for suffix in (WITHIN, BETWEEN)}

    def learn(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Learn the groups' means and split the training rows.

        Parameters
        ----------
        frame : pandas.DataFrame
            Training rows.

        Returns
        -------
        pandas.DataFrame
            With the columns ``x_within`` and ``x_between`` added.

        Raises
        ------
        FormulaError
            For columns that are not numeric.
        DataError
            Where a new column's name is taken, or a group label is missing.
        """
        for name, group in self.factors.items():
            _, found, means = _group_means(frame, name, group)
            self.means[name] = dict(zip(found, means.tolist(), strict=True))
        return self.apply(frame)

    def apply(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Split rows: groups known from training keep their means, new groups have those of their rows here.

        Parameters
        ----------
        frame : pandas.DataFrame
            Rows.

        Returns
        -------
        pandas.DataFrame
            With the columns ``x_within`` and ``x_between`` added.

        Raises
        ------
        FormulaError
            For columns that are not numeric.
        DataError
            Where a new column's name is taken, or a group label is missing.
        """
        if taken := sorted(self.derived & set(frame.columns)):
            raise DataError(
                f"within_between makes a column '{taken[0]}', which the data have already; rename it."
            )
        new = {}
        for name, group in self.factors.items():
            codes, found, here = _group_means(frame, name, group)
            known = self.means[name]
            means = np.array([known.get(label, mean) for label, mean in zip(found, here, strict=True)])[codes]
            new[name + WITHIN] = _numbers(frame, name) - means
            new[name + BETWEEN] = means
        return frame.assign(**new)

    def to_config(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return {
            name: {
                "group": list(group),
                "labels": encode_labels(list(self.means[name]), ":".join(group)),
                "means": [None if np.isnan(mean) else mean for mean in self.means[name].values()],
            }
            for name, group in self.factors.items()
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> WithinBetween:
        """Rebuild from `to_config`."""
        self = cls({name: tuple(item["group"]) for name, item in config.items()})
        for name, item in config.items():
            means = (np.nan if mean is None else mean for mean in item["means"])
            self.means[name] = dict(zip(decode_labels(item["labels"]), means, strict=True))
        return self


def decompose_formula(parsed: ParsedFormula, names: Sequence[str]) -> ParsedFormula:
    """Write ``(x_within + x_between)`` for x among the common effects, and ``x_within`` inside bars.

    Parameters
    ----------
    parsed : ParsedFormula
        The main formula.
    names : sequence of str
        Columns that are split.

    Returns
    -------
    ParsedFormula

    Raises
    ------
    FormulaError
        Where a column is not a common effect, or only inside a function.

    Examples
    --------
    >>> from pyro_armed.formula import parse_formula
    >>> decompose_formula(parse_formula("y ~ x * z + (x | g)"), ["x"]).common
    '(x_within + x_between) * z'
    """
    common = parsed.common
    effects = [term.effects for term in parsed.group_terms]
    for name in names:
        plain = {part.name for part in components(common) if not hasattr(part, "call")}
        if name not in plain:
            raise FormulaError(
                f"within_between splits '{name}', which must be a common effect by itself in the formula "
                f"(not inside a function): add + {quote(name)}."
            )
        if taken := {name + WITHIN, name + BETWEEN} & plain:
            raise FormulaError(
                f"within_between makes a column '{min(taken)}', which the formula uses already; leave it out."
            )
        within, between = quote(name + WITHIN), quote(name + BETWEEN)
        common = _replaced(common, name, f"({within} + {between})")
        effects = [_replaced(text, name, within) for text in effects]
    terms = tuple(replace(term, effects=text) for term, text in zip(parsed.group_terms, effects, strict=True))
    return replace(parsed, common=common, group_terms=terms)


def _replaced(text: str, name: str, new: str) -> str:
    """Replace a variable in a formula, but not in the arguments of functions."""
    result, position, calls = "", 0, []
    while position < len(text):
        char = text[position]
        end = position + 1
        if char in "'\"`":
            end = text.index(char, end) + 1
        elif char.isalpha():
            while end < len(text) and (text[end].isalnum() or text[end] in "._"):
                end += 1
        elif char in "([{":
            before = result.rstrip()[-1:]
            calls.append(char != "(" or before.isalnum() or before == "_")
        elif char in ")]}":
            calls.pop()
        token = text[position:end]
        called = text[end:].lstrip().startswith("(")
        result += new if unquote(token) == name and not any(calls) and not called else token
        position = end
    return result


def _numbers(frame: pd.DataFrame, name: str) -> np.ndarray:
    column = frames.clean_column(frame[name], name)
    if isinstance(column.dtype, pd.CategoricalDtype):
        raise FormulaError(
            f"within_between splits '{name}', which holds labels; only numbers have group means."
        )
    frames.refuse_infinite(column.to_numpy(), name)
    return column.to_numpy()


def _group_means(
    frame: pd.DataFrame, name: str, group: tuple[str, ...]
) -> tuple[np.ndarray, list[Any], np.ndarray]:
    """Codes of the groups, shape (N,), their labels, and the means of the present values, shape (C,)."""
    labels = combine_columns([group_labels(frame[part], part) for part in group])
    codes, found = pd.factorize(labels)
    refuse_missing_labels(":".join(group), int((codes < 0).sum()))
    return codes, found.tolist(), pd.Series(_numbers(frame, name)).groupby(codes).mean().to_numpy()
