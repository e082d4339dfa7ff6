"""A model's design from formulas and a data frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from pyro_armed import frames
from pyro_armed.batch import Batch
from pyro_armed.design._encoded import (
    Encoded,
    encode_groups,
    model_spec,
    row_weights,
    spec_from_config,
    spec_to_config,
)
from pyro_armed.design._response import FormulaResponse
from pyro_armed.design._structure import (
    formula_block,
    linear_terms,
    network_terms,
    refuse_repeated,
    standardised,
)
from pyro_armed.errors import ArgumentError, ArmedError, DataError, FileFormatError, FormulaError
from pyro_armed.families import Family, Response
from pyro_armed.formula import FEATURES, GroupTerm, ParsedFormula, parse_formula, quote, variables
from pyro_armed.groups import GroupIndex, combine_columns, group_labels
from pyro_armed.predictors import PredictorColumns
from pyro_armed.spec import EffectBlock, ModelSpec, Predictor
from pyro_armed.terms import CommonTerms, unsafe_calls
from pyro_armed.within_between import WithinBetween, decompose_formula

__all__ = ["FormulaDesign"]

_CONFIG_ERRORS = (KeyError, TypeError, IndexError, AttributeError, ValueError)


class FormulaDesign:
    """The design of a model given by formulas: learned from training data, applied to any rows.

    Parameters
    ----------
    formulas : sequence of str
        The main formula, then those of auxiliary parameters: ``["y ~ x + (1 | g)", "sigma ~ x"]``.
    frame : pandas.DataFrame
        Training data.
    family : Family
        Response family.
    network : bool
        Whether the common terms of the main formula are inputs of a network.
    missing : {"error", "drop", "indicator"}
        What to do with rows that have missing values.
    weights : str, optional
        Column of row weights.
    namespace : mapping, optional
        Functions that the formulas may use.
    within_between : sequence of str or mapping of str to str, optional
        Columns of the main formula that are split into group mean and deviation, see `WithinBetween`.
    dtype : torch.dtype
        Type of the tensors.

    Attributes
    ----------
    spec : ModelSpec
        The model's structure.
    training : Encoded
        The training rows.

    Raises
    ------
    DataError, FormulaError, ArgumentError
        One sentence that names the column or term, and the mend.

    Examples
    --------
    >>> from pyro_armed import families
    >>> data = pd.DataFrame({"y": [1.0, 2.0, 4.0, 3.0], "x": [0.0, 1.0, 2.0, 3.0], "g": ["a", "a", "b", "b"]})
    >>> design = FormulaDesign(["y ~ x + (1 | g)"], data, families.get("gaussian"))
    >>> design.encode({"x": [1.5], "g": ["c"]}).new_groups
    {'g': ['c']}
    """

    def __init__(
        self,
        formulas: Sequence[str],
        frame: pd.DataFrame,
        family: Family,
        *,
        network: bool = False,
        missing: str = "error",
        weights: str | None = None,
        namespace: Mapping[str, Any] | None = None,
        within_between: Any = None,
        dtype: torch.dtype = torch.float64,
    ):
        self.formulas = list(formulas)
        self.network, self.missing, self.weights, self.dtype = (
            network,
            frames.check_policy(missing),
            weights,
            dtype,
        )
        parsed = _parse(self.formulas, family)
        self._within_between = (
            None if within_between is None else WithinBetween.parse(within_between, parsed["mu"])
        )
        self._prepare(parsed, family, namespace)
        frame = frames.check_frame(frame)
        frames.check_columns(frame, self._used_columns(), self.formulas[0])
        if self._wants_features() and FEATURES in frame.columns:
            raise FormulaError(
                "'features' means the network's hidden activations; rename the column of that name."
            )
        kept = self._complete_rows(frame, training=True, response=True)
        frame = self._rows(frame, kept)
        response = self._response.read(frame)
        if self._within_between is not None:
            frame = self._within_between.learn(frame)
        clean = self._predictors.learn(frame)
        self._learn_terms(clean)
        labels = self._labels(frame)
        self._groups = {
            name: GroupIndex.from_values(name, labels[name], self._order(frame, name)) for name in labels
        }
        values = self._evaluate(clean, "error")
        self.spec = self._specify(values, response)
        self.training = self._encode(frame, values, response, kept)

    def _prepare(
        self, parsed: dict[str, ParsedFormula], family: Family, namespace: Mapping[str, Any] | None
    ) -> None:
        """Everything that the formulas say without data."""
        self.family, self.namespace = family, dict(namespace or {})
        if self._within_between is not None:
            parsed["mu"] = decompose_formula(parsed["mu"], list(self._within_between.factors))
        self._parsed = parsed
        self._response = FormulaResponse(parsed["mu"].response or "", family, self.namespace)
        names = set().union(*(variables(text) for text in self._texts())) - set(self.namespace)
        self._predictors = PredictorColumns(sorted(names), fill=self.missing == "indicator")
        self._factors: dict[str, tuple[str, ...]] = {}
        for term in self._group_terms():
            name = ":".join(term.group)
            if self._factors.setdefault(name, term.group) != term.group:
                raise FormulaError(f"'{name}' is a column and an interaction of groups; rename the column.")
        if self._wants_features() and not self.network:
            raise FormulaError(
                "'features' needs a network: pass network=pa.networks.MLP(...) or name columns instead."
            )

    def describe(self) -> str:
        """The formulas, as given."""
        return "; ".join(self.formulas)

    def encode(self, frame: Any, *, response: bool = False, unseen_levels: str = "error") -> Encoded:
        """Encode new rows with what training taught.

        Parameters
        ----------
        frame : pandas.DataFrame
            New rows.
        response : bool
            Whether the response (and the weights) are needed.
        unseen_levels : {"error", "baseline"}
            What to do with levels of predictors that training did not have.

        Returns
        -------
        Encoded

        Raises
        ------
        DataError
            For missing columns or values, unseen levels, missing group labels.
        """
        if unseen_levels not in ("error", "baseline"):
            raise ArgumentError(f"unseen_levels={unseen_levels!r} is not 'error' or 'baseline'.")
        frame = frames.check_frame(frame)
        columns = self._used_columns() if response else self._input_columns()
        frames.check_columns(frame, columns, self.formulas[0])
        kept = self._complete_rows(frame, training=False, response=response)
        frame = self._rows(frame, kept)
        observed = self._response.read(frame, self.spec.levels, training=False) if response else None
        trials = None if response else self._response.read_trials(frame)
        if self._within_between is not None:
            frame = self._within_between.apply(frame)
        clean = self._predictors.apply(frame, unseen_levels)
        encoded = self._encode(frame, self._evaluate(clean, unseen_levels), observed, kept)
        if trials is not None:
            encoded = replace(encoded, batch=replace(encoded.batch, trials=self._tensor(trials)))
        return encoded

    # --- columns and rows --------------------------------------------------------------------------------

    def _group_terms(self) -> list[GroupTerm]:
        return [term for parsed in self._parsed.values() for term in parsed.group_terms]

    def _texts(self) -> list[str]:
        return [p.common for p in self._parsed.values()] + [term.effects for term in self._group_terms()]

    def _wants_features(self) -> bool:
        return any(p.features for p in self._parsed.values()) or any(t.features for t in self._group_terms())

    def _group_columns(self) -> list[str]:
        """Columns that hold group labels."""
        columns = [column for group in self._factors.values() for column in group]
        if self._within_between is not None:
            columns += [column for group in self._within_between.factors.values() for column in group]
        return list(dict.fromkeys(columns))

    def _input_columns(self) -> list[str]:
        split = self._within_between
        own = (
            self._predictors.names
            if split is None
            else [n for n in self._predictors.names if n not in split.derived]
        )
        return list(dict.fromkeys([*own, *([] if split is None else split.factors), *self._group_columns()]))

    def _used_columns(self) -> list[str]:
        weights = [self.weights] if self.weights else []
        return list(dict.fromkeys([*self._input_columns(), *self._response.columns, *weights]))

    def _complete_rows(self, frame: pd.DataFrame, training: bool, response: bool) -> np.ndarray:
        """Positions of the rows to use; raises where the policy does not allow leaving any out."""
        masks = frames.missing_rows(frame, self._used_columns() if response else self._input_columns())
        groups = set(self._group_columns())
        if (
            not training
        ):  # a row whose group is not known cannot be left out in silence: `encode_groups` refuses it
            masks = {name: mask for name, mask in masks.items() if name not in groups}
        fillable = self._predictors.fillable(masks, training)
        if self._within_between is not None and self.missing == "indicator":
            fillable |= set(self._within_between.factors)
        fillable -= {*groups, *(self._response.columns if response else ()), self.weights}
        masks = {name: mask for name, mask in masks.items() if name not in fillable}
        if self.missing != "drop":
            mend = "Pass missing='drop' to leave these rows out"
            mend += (
                "."
                if self.missing == "indicator"
                else ", or missing='indicator' to fill predictors and mark them."
            )
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

    def _rows(self, frame: pd.DataFrame, kept: np.ndarray) -> pd.DataFrame:
        """The rows and columns in use, numbered anew: a frame's index may repeat itself."""
        columns = [name for name in self._used_columns() if name in frame.columns]
        frame = frame[columns]
        return (frame if len(kept) == len(frame) else frame.iloc[kept]).reset_index(drop=True)

    # --- terms and groups --------------------------------------------------------------------------------

    def _common_text(self, parameter: str) -> str:
        text = self._parsed[parameter].common
        if parameter != "mu":
            return text
        return " + ".join([text, *(quote(f"{name}_missing") for name in self._predictors.fills)])

    def _learn_terms(self, clean: pd.DataFrame) -> None:
        self._common = {
            parameter: CommonTerms(self._common_text(parameter), clean, self.namespace)
            for parameter in self._parsed
        }
        self._effects = [CommonTerms(term.effects, clean, self.namespace) for term in self._group_terms()]
        for term, effects in zip(self._group_terms(), self._effects, strict=True):
            if effects.has_offset:
                raise FormulaError(
                    f"offset() cannot vary between groups; move it out of ({term.effects} | ...)."
                )
        if self.network and not self._common["mu"].labels:
            raise FormulaError(
                "A network needs at least one predictor: 'y ~ x + (1 | g)'; or pass network=None."
            )

    def _order(self, frame: pd.DataFrame, name: str) -> list[Any] | None:
        """Order of the groups: that of a categorical column's categories."""
        columns = self._factors[name]
        dtype = frame[columns[0]].dtype
        if len(columns) > 1 or not isinstance(dtype, pd.CategoricalDtype):
            return None
        return group_labels(dtype.categories, name).tolist()

    def _labels(self, frame: pd.DataFrame) -> dict[str, np.ndarray]:
        """Labels of each grouping factor."""
        parts = {part: group_labels(frame[part], part) for group in self._factors.values() for part in group}
        return {
            name: combine_columns([parts[part] for part in group]) for name, group in self._factors.items()
        }

    # --- the specification -------------------------------------------------------------------------------

    def _evaluate(self, clean: pd.DataFrame, unseen_levels: str) -> _Values:
        """Columns of every predictor and every effect block."""
        return _Values(
            len(clean),
            {parameter: terms.evaluate(clean, unseen_levels) for parameter, terms in self._common.items()},
            [effects.evaluate(clean, unseen_levels)[0] for effects in self._effects],
        )

    def _specify(self, values: _Values, response: Response) -> ModelSpec:
        blocks: dict[str, list[EffectBlock]] = {parameter: [] for parameter in self._parsed}
        effects = iter(zip(self._effects, values.effects, strict=True))
        for parameter, parsed in self._parsed.items():
            for term in parsed.group_terms:
                blocks[parameter].append(formula_block(parameter, term, *next(effects)))
        refuse_repeated([block for some in blocks.values() for block in some])
        predictors = []
        for parameter, parsed in self._parsed.items():
            common, network = self._common[parameter], self.network and parameter == "mu"
            ordinal = parameter == "mu" and self.family.response == "ordinal"
            centered = common.intercept or network or ordinal
            columns, _ = values.common[parameter]
            terms = (
                network_terms(columns, common.labels)
                if network
                else linear_terms(columns, common.labels, centered)
            )
            predictors.append(
                Predictor(
                    parameter,
                    intercept=(common.intercept or network) and not ordinal,
                    terms=terms,
                    blocks=tuple(blocks[parameter]),
                    network=network,
                    features=parsed.features or network,
                    offset=common.has_offset,
                )
            )
        return model_spec(self.family, response, predictors, self._groups, weighted=self.weights is not None)

    # --- rows as tensors ---------------------------------------------------------------------------------

    def _encode(
        self, frame: pd.DataFrame, values: _Values, response: Response | None, index: np.ndarray
    ) -> Encoded:
        columns, offsets, inputs = {}, {}, None
        for predictor in self.spec.predictors:
            terms, offset = values.common[predictor.parameter]
            matrix = self._tensor(standardised(predictor.terms, terms, values.n_rows))
            if predictor.network:
                inputs = matrix
            elif predictor.terms:
                columns[predictor.parameter] = matrix
            if predictor.offset:
                offsets[predictor.parameter] = self._tensor(offset)
        slopes = {}
        for block, effects, terms in zip(self.spec.blocks, self._effects, values.effects, strict=True):
            parts = [np.ones((values.n_rows, 1))] * effects.intercept + list(terms.values())
            slopes[block.key] = self._tensor(np.concatenate([np.ones((values.n_rows, 0)), *parts], axis=1))
        codes, new_groups = encode_groups(self._groups, self._labels(frame))
        weights = None
        if self.weights and response is not None:
            weights = self._tensor(row_weights(frame[self.weights], f"in column '{self.weights}'"))
        batch = Batch(
            size=values.n_rows,
            n_rows=values.n_rows,
            inputs=inputs,
            columns=columns,
            slopes=slopes,
            codes=codes,
            offsets=offsets,
            response=None if response is None else self._tensor(response.y),
            trials=None if response is None or response.trials is None else self._tensor(response.trials),
            weights=weights,
        )
        return Encoded(batch, new_groups, index)

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.tensor(np.ascontiguousarray(values), dtype=self.dtype)  # a copy, not the user's memory

    # --- files -------------------------------------------------------------------------------------------

    def to_config(self) -> dict[str, Any]:
        """A JSON-able description, enough to encode new rows.

        Raises
        ------
        FormulaError, DataError
            For transforms and labels that a file cannot keep.
        """
        return {
            "formulas": self.formulas,
            "network": self.network,
            "missing": self.missing,
            "weights": self.weights,
            "dtype": str(self.dtype).removeprefix("torch."),
            "namespace": sorted(self.namespace),
            "predictors": self._predictors.to_config(),
            "common": {name: terms.state() for name, terms in self._common.items()},
            "effects": [effects.state() for effects in self._effects],
            "response": self._response.state(),
            "within_between": None if self._within_between is None else self._within_between.to_config(),
            "spec": spec_to_config(self.spec),
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], family: Family | None = None, namespace: Mapping[str, Any] | None = None
    ) -> FormulaDesign:
        """Rebuild from `to_config` without evaluating anything.

        Parameters
        ----------
        config : dict
            From `to_config`.
        family : Family, optional
            Needed where the family is the user's own.
        namespace : mapping, optional
            The functions that the formulas use, if they use any of the user's own.

        Returns
        -------
        FormulaDesign
            Without `training`.

        Raises
        ------
        FileFormatError
            Where a formula calls a function that is neither known nor given, or something is missing.
        """
        self = cls.__new__(cls)
        try:
            self._load(config, family, namespace)
        except _CONFIG_ERRORS as error:
            if isinstance(error, ArmedError):
                raise
            raise FileFormatError(f"The stored design cannot be read: {error!r}") from error
        return self

    def _load(
        self, config: dict[str, Any], family: Family | None, namespace: Mapping[str, Any] | None
    ) -> None:
        self.spec = spec_from_config(config["spec"], family)
        self.formulas, self.network, self.missing = config["formulas"], config["network"], config["missing"]
        self.weights, self.dtype = config["weights"], getattr(torch, config["dtype"])
        split = config["within_between"]
        self._within_between = None if split is None else WithinBetween.from_config(split)
        self._prepare(_parse(self.formulas, self.spec.family), self.spec.family, namespace)
        unknown = set().union(*(unsafe_calls(text, self.namespace) for text in self._texts()))
        if unknown := unknown | self._response.unsafe_calls():
            raise FileFormatError(
                f"The formula in the file calls {', '.join(sorted(unknown))}; pass "
                "namespace={'name': function} with functions that you trust."
            )
        self._predictors = PredictorColumns.from_config(config["predictors"])
        self._common = {
            parameter: CommonTerms.from_state(
                self._common_text(parameter), config["common"][parameter], self.namespace
            )
            for parameter in self._parsed
        }
        self._effects = [
            CommonTerms.from_state(term.effects, state, self.namespace)
            for term, state in zip(self._group_terms(), config["effects"], strict=True)
        ]
        self._response.restore(config["response"])
        self._groups = {
            group.name: GroupIndex(group.name, group.labels, group.counts) for group in self.spec.groups
        }


class _Values:
    """Evaluated columns of some rows.

    Parameters
    ----------
    n_rows : int
        Rows N.
    common : dict of str to tuple
        Columns by term, each of shape (N, K), and offset, shape (N,), of each predictor.
    effects : list of dict
        Columns of each effect block, intercepts not included.
    """

    def __init__(
        self,
        n_rows: int,
        common: dict[str, tuple[dict[str, np.ndarray], np.ndarray]],
        effects: list[dict[str, np.ndarray]],
    ):
        self.n_rows, self.common, self.effects = n_rows, common, effects


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
