"""What formulas say without data: their parts, the columns they need, the rows they can use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pyro_armed import frames
from pyro_armed.design._response import FormulaResponse
from pyro_armed.errors import DataError, FormulaError
from pyro_armed.families import Family
from pyro_armed.formula import GroupTerm, ParsedFormula, parse_formula, variables
from pyro_armed.groups import combine_columns, group_labels
from pyro_armed.predictors import PredictorColumns
from pyro_armed.within_between import WithinBetween, decompose_formula

__all__ = ["FormulaColumns"]


class FormulaColumns:
    """The formulas of a model and the columns of a data frame that they use.

    Parameters
    ----------
    formulas : sequence of str
        The main formula, then those of auxiliary parameters.
    family : Family
        Response family.
    missing : {"error", "drop", "indicator"}
        What to do with rows that have missing values.
    weights : str, optional
        Column of row weights.
    namespace : mapping
        Functions that the formulas may use.
    within_between : optional
        The user's argument, or a `WithinBetween`.

    Attributes
    ----------
    parsed : dict of str to ParsedFormula
        By parameter, the main formula as ``"mu"``.
    response : FormulaResponse
        The main formula's left side.
    split : WithinBetween or None
        What is split into group mean and deviation.
    predictors : PredictorColumns
        What the terms are made of.
    factors : dict of str to tuple of str
        Columns of each grouping factor.

    Raises
    ------
    FormulaError
        Where a formula cannot be read.
    """

    def __init__(
        self,
        formulas: Sequence[str],
        family: Family,
        missing: str,
        weights: str | None,
        namespace: Mapping[str, Any],
        within_between: Any = None,
    ):
        self.formulas, self.missing, self.weights = list(formulas), frames.check_policy(missing), weights
        self.parsed = _parse(self.formulas, family)
        self.split: WithinBetween | None = None
        if within_between is not None:
            given = isinstance(within_between, WithinBetween)
            self.split = within_between if given else WithinBetween.parse(within_between, self.parsed["mu"])
            self.parsed["mu"] = decompose_formula(self.parsed["mu"], list(self.split.factors))
        self.response = FormulaResponse(self.parsed["mu"].response or "", family, namespace)
        names = set().union(*(variables(text) for text in self.texts)) - set(namespace)
        self.predictors = PredictorColumns(sorted(names), fill=missing == "indicator")
        self.factors: dict[str, tuple[str, ...]] = {}
        for term in self.group_terms:
            name = ":".join(term.group)
            if self.factors.setdefault(name, term.group) != term.group:
                raise FormulaError(f"'{name}' is a column and an interaction of groups; rename the column.")

    @property
    def group_terms(self) -> list[GroupTerm]:
        """The bars of all formulas."""
        return [term for parsed in self.parsed.values() for term in parsed.group_terms]

    @property
    def texts(self) -> list[str]:
        """All common parts and all left sides of bars."""
        return [p.common for p in self.parsed.values()] + [term.effects for term in self.group_terms]

    @property
    def wants_features(self) -> bool:
        """Whether any formula names the network's hidden activations."""
        return any(p.features for p in self.parsed.values()) or any(t.features for t in self.group_terms)

    @property
    def group_columns(self) -> list[str]:
        """Columns that hold group labels."""
        groups = [*self.factors.values(), *(self.split.factors.values() if self.split else ())]
        return list(dict.fromkeys(column for group in groups for column in group))

    @property
    def inputs(self) -> list[str]:
        """Columns that a prediction needs."""
        derived, sources = (self.split.derived, self.split.factors) if self.split else ((), ())
        own = [name for name in self.predictors.names if name not in derived]
        return list(dict.fromkeys([*own, *sources, *self.group_columns]))

    @property
    def used(self) -> list[str]:
        """Columns that a fit needs."""
        weights = [self.weights] if self.weights else []
        return list(dict.fromkeys([*self.inputs, *self.response.columns, *weights]))

    def take(self, frame: Any, *, training: bool, response: bool) -> tuple[pd.DataFrame, np.ndarray]:
        """The columns in use of the rows that can be used, numbered anew: an index may repeat itself.

        Parameters
        ----------
        frame : pandas.DataFrame
            Rows as the user gave them.
        training : bool
            Whether a model is to be fitted to them.
        response : bool
            Whether response and weights are needed.

        Returns
        -------
        frame : pandas.DataFrame
        kept : numpy.ndarray
            Positions of its rows in what was given.

        Raises
        ------
        DataError
            For missing columns, and missing values that the policy does not allow.
        """
        frame = frames.check_frame(frame)
        frames.check_columns(frame, self.used if response else self.inputs, self.formulas[0])
        kept = self._complete(frame, training, response)
        # `used` although the response may be unknown: a binomial prediction takes trials if they are there.
        columns = [name for name in self.used if name in frame.columns]
        frame = frame[columns] if len(kept) == len(frame) else frame[columns].iloc[kept]
        return frame.reset_index(drop=True), kept

    def labels(self, frame: pd.DataFrame) -> dict[str, np.ndarray]:
        """Labels of each grouping factor, shape (N,)."""
        parts = {part: group_labels(frame[part], part) for group in self.factors.values() for part in group}
        return {
            name: combine_columns([parts[part] for part in group]) for name, group in self.factors.items()
        }

    def group_order(self, frame: pd.DataFrame, factor: str) -> list[Any] | None:
        """Order of a factor's groups: that of a categorical column's categories, else None."""
        columns = self.factors[factor]
        dtype = frame[columns[0]].dtype
        if len(columns) > 1 or not isinstance(dtype, pd.CategoricalDtype):
            return None
        return group_labels(dtype.categories, factor).tolist()

    def _complete(self, frame: pd.DataFrame, training: bool, response: bool) -> np.ndarray:
        """Positions of the rows to use; raises where the policy does not allow leaving any out."""
        masks = frames.missing_rows(frame, self.used if response else self.inputs)
        groups = set(self.group_columns)
        if not training:  # never left out in silence: encoding the groups refuses missing labels
            masks = {name: mask for name, mask in masks.items() if name not in groups}
        fillable = self.predictors.fillable(masks, training)
        if self.split and self.missing == "indicator":
            fillable |= set(self.split.factors)
        fillable -= {*groups, *(self.response.columns if response else ()), self.weights}
        masks = {name: mask for name, mask in masks.items() if name not in fillable}
        if self.missing != "drop":
            drop = "Pass missing='drop' to leave these rows out"
            mend = f"{drop}, or missing='indicator' to fill predictors and mark them."
            mend = f"{drop}." if self.missing == "indicator" else mend
            frames.refuse_missing(masks, mend if training else "Fill them in or leave these rows out.")
            return np.arange(len(frame))
        bad = np.zeros(len(frame), dtype=bool)
        for mask in masks.values():
            bad |= mask
        if bad.all():
            raise DataError(
                "Every row has a missing value in some column of the formula; nothing is left to use."
            )
        return np.flatnonzero(~bad)


def _parse(formulas: Sequence[str], family: Family) -> dict[str, ParsedFormula]:
    parsed: dict[str, ParsedFormula] = {}
    for position, text in enumerate(formulas):
        one = parse_formula(text)
        if one.response is None:
            raise FormulaError(f"The formula {text!r} has no response: write 'y ~ ...'.")
        parameter = "mu" if position == 0 else one.response
        if position and parameter not in family.auxiliary_links:
            known = ", ".join(family.auxiliary_links) or "none"
            raise FormulaError(
                f"The formula {text!r} models '{parameter}', which family '{family.name}' does not have (it "
                f"has: {known})."
            )
        if parameter in parsed:
            raise FormulaError(f"There are two formulas for '{parameter}'; join them.")
        parsed[parameter] = one
    return parsed
