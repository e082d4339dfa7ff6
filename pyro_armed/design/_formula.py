"""A model's design from formulas and a data frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from pyro_armed.batch import Batch
from pyro_armed.design._columns import FormulaColumns
from pyro_armed.design._encoded import (
    Encoded,
    ResponseMoments,
    as_tensor,
    encode_groups,
    model_spec,
    row_weights,
    spec_from_config,
    spec_to_config,
)
from pyro_armed.design._grouped import GroupedDesign
from pyro_armed.design._structure import (
    formula_block,
    linear_terms,
    moments_of,
    network_terms,
    refuse_repeated,
    standardised,
)
from pyro_armed.effects import ScaleBias
from pyro_armed.errors import ArgumentError, ArmedError, FileFormatError, FormulaError
from pyro_armed.families import Family, Response
from pyro_armed.formula import FEATURES, quote
from pyro_armed.groups import GroupIndex
from pyro_armed.predictors import PredictorColumns
from pyro_armed.spec import EffectBlock, ModelSpec, Predictor, Term, with_layers
from pyro_armed.terms import CommonTerms, unsafe_calls
from pyro_armed.within_between import WithinBetween

__all__ = ["FormulaDesign", "Values"]

_CONFIG_ERRORS = (KeyError, TypeError, IndexError, AttributeError, ValueError)


class FormulaDesign(GroupedDesign):
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
    linear_path : bool
        Whether they enter linearly beside the network.
    missing : {"error", "drop", "indicator"}
        What to do with rows that have missing values.
    weights : str, optional
        Column of row weights.
    namespace : mapping, optional
        Functions that the formulas may use.
    within_between : sequence of str or mapping of str to str, optional
        Columns of the main formula that are split into group mean and deviation, see `WithinBetween`.
    layers : sequence of ScaleBias
        Group effects within the network; their grouping factors are those of the formulas.
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
        linear_path: bool = False,
        missing: str = "error",
        weights: str | None = None,
        namespace: Mapping[str, Any] | None = None,
        within_between: Any = None,
        layers: Sequence[ScaleBias] = (),
        dtype: torch.dtype = torch.float64,
    ):
        self.network, self.linear_path, self.dtype = network, linear_path, dtype
        self._prepare(formulas, family, missing, weights, namespace, within_between)
        if self._columns.wants_features and FEATURES in getattr(frame, "columns", ()):
            raise FormulaError(
                "'features' means the network's hidden activations; rename the column of that name."
            )
        frame, kept = self._columns.take(frame, training=True, response=True)
        response = self._columns.response.read(frame)
        if self._columns.split is not None:
            frame = self._columns.split.learn(frame)
        clean = self._columns.predictors.learn(frame)
        self._learn_terms(clean)
        labels = self._columns.labels(frame)
        self._groups = {
            name: GroupIndex.from_values(name, labels[name], self._columns.group_order(frame, name))
            for name in labels
        }
        values = self._evaluate(clean, "error")
        spec = self._specify(values, response, self._row_weights(frame))
        self.spec = with_layers(spec, layers, "add a term such as (1 | group) to the formula")
        self.training = self._encode(frame, labels, values, response, kept)

    def _prepare(
        self,
        formulas: Sequence[str],
        family: Family,
        missing: str,
        weights: str | None,
        namespace: Mapping[str, Any] | None,
        within_between: Any,
    ) -> None:
        self.formulas, self.family, self.missing, self.weights = list(formulas), family, missing, weights
        self.namespace = dict(namespace or {})
        self._columns = FormulaColumns(
            self.formulas, family, missing, weights, self.namespace, within_between
        )
        if self._columns.wants_features and not self.network:
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
        frame, kept = self._columns.take(frame, training=False, response=response)
        read = self._columns.response
        observed = read.read(frame, self.spec.levels, training=False) if response else None
        trials = None if response else read.read_trials(frame)
        if self._columns.split is not None:
            frame = self._columns.split.apply(frame)
        clean = self._columns.predictors.apply(frame, unseen_levels)
        values = self._evaluate(clean, unseen_levels)
        encoded = self._encode(frame, self._columns.labels(frame), values, observed, kept)
        if trials is not None:
            encoded = replace(encoded, batch=replace(encoded.batch, trials=self._tensor(trials)))
        return encoded

    # --- terms and groups --------------------------------------------------------------------------------

    def _common_text(self, parameter: str) -> str:
        text = self._columns.parsed[parameter].common
        if parameter != "mu":
            return text
        return " + ".join([text, *(quote(f"{name}_missing") for name in self._columns.predictors.fills)])

    def _learn_terms(self, clean: pd.DataFrame) -> None:
        self._common = {
            parameter: CommonTerms(self._common_text(parameter), clean, self.namespace)
            for parameter in self._columns.parsed
        }
        self._effects = [
            CommonTerms(term.effects, clean, self.namespace) for term in self._columns.group_terms
        ]
        for term, effects in zip(self._columns.group_terms, self._effects, strict=True):
            if effects.has_offset:
                raise FormulaError(
                    f"offset() cannot vary between groups; move it out of ({term.effects} | ...)."
                )
        if self.network and not self._common["mu"].labels:
            raise FormulaError(
                "A network needs at least one predictor: 'y ~ x + (1 | g)'; or pass network=None."
            )

    # --- the specification -------------------------------------------------------------------------------

    def _evaluate(self, clean: pd.DataFrame, unseen_levels: str) -> Values:
        """Columns of every predictor and every effect block."""
        return Values(
            len(clean),
            {parameter: terms.evaluate(clean, unseen_levels) for parameter, terms in self._common.items()},
            [effects.evaluate(clean, unseen_levels)[0] for effects in self._effects],
        )

    def _row_weights(self, frame: pd.DataFrame) -> np.ndarray | None:
        if self.weights is None:
            return None
        return row_weights(frame[self.weights], f"in column '{self.weights}'")

    def _specify(
        self,
        values: Values,
        response: Response | ResponseMoments,
        weights: np.ndarray | None,
        *,
        weighted: bool | None = None,
    ) -> ModelSpec:
        blocks: dict[str, list[EffectBlock]] = {parameter: [] for parameter in self._columns.parsed}
        effects = iter(zip(self._effects, values.effects, strict=True))
        for parameter, parsed in self._columns.parsed.items():
            for term in parsed.group_terms:
                blocks[parameter].append(formula_block(parameter, term, *next(effects), weights))
        refuse_repeated([block for some in blocks.values() for block in some])
        predictors = []
        for parameter, parsed in self._columns.parsed.items():
            common, network = self._common[parameter], self.network and parameter == "mu"
            ordinal = parameter == "mu" and self.family.response == "ordinal"
            centered = common.intercept or network or ordinal
            columns = {
                name: moments_of(name, column, weights)
                for name, column in values.common[parameter][0].items()
            }
            terms: tuple[Term, ...] = ()
            if self.linear_path or not network:
                terms = linear_terms(columns, common.labels, centered, weights, skip=network)
            predictors.append(
                Predictor(
                    parameter,
                    intercept=(common.intercept or network) and not ordinal,
                    terms=terms,
                    blocks=tuple(blocks[parameter]),
                    network=network,
                    features=parsed.features or network,
                    offset=common.has_offset,
                    inputs=network_terms(columns, common.labels, weights=weights) if network else (),
                )
            )
        return model_spec(self.family, response, predictors, self._groups, weights=weights, weighted=weighted)

    # --- rows as tensors ---------------------------------------------------------------------------------

    def _encode(
        self,
        frame: pd.DataFrame,
        labels: Mapping[str, np.ndarray],
        values: Values,
        response: Response | None,
        index: np.ndarray,
    ) -> Encoded:
        columns, offsets, inputs = {}, {}, None
        for predictor in self.spec.predictors:
            terms, offset = values.common[predictor.parameter]
            if predictor.network:
                inputs = self._tensor(standardised(predictor.inputs, terms, values.n_rows))
            if predictor.terms:
                columns[predictor.parameter] = self._tensor(
                    standardised(predictor.terms, terms, values.n_rows)
                )
            if predictor.offset:
                offsets[predictor.parameter] = self._tensor(offset)
        slopes = {}
        for block, effects, terms in zip(self.spec.blocks, self._effects, values.effects, strict=True):
            parts = [np.ones((values.n_rows, 1))] * effects.intercept + list(terms.values())
            slopes[block.key] = self._tensor(np.concatenate([np.ones((values.n_rows, 0)), *parts], axis=1))
        codes, new_groups = encode_groups(self._groups, labels)
        weights = None if response is None else self._row_weights(frame)
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
            weights=None if weights is None else self._tensor(weights),
        )
        return Encoded(batch, new_groups, index)

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return as_tensor(values, self.dtype)

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
            "linear_path": self.linear_path,
            "missing": self.missing,
            "weights": self.weights,
            "dtype": str(self.dtype).removeprefix("torch."),
            "namespace": sorted(self.namespace),
            "predictors": self._columns.predictors.to_config(),
            "common": {name: terms.state() for name, terms in self._common.items()},
            "effects": [effects.state() for effects in self._effects],
            "response": self._columns.response.state(),
            "within_between": None if self._columns.split is None else self._columns.split.to_config(),
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
        self.network, self.linear_path = config["network"], config.get("linear_path", False)
        self.dtype = getattr(torch, config["dtype"])
        split = config["within_between"]
        self._prepare(
            config["formulas"],
            self.spec.family,
            config["missing"],
            config["weights"],
            namespace,
            None if split is None else WithinBetween.from_config(split),
        )
        unknown = set().union(*(unsafe_calls(text, self.namespace) for text in self._columns.texts))
        if unknown := unknown | self._columns.response.unsafe_calls():
            raise FileFormatError(
                f"The formula in the file calls {', '.join(sorted(unknown))}; pass "
                "namespace={'name': function} with functions that you trust."
            )
        self._columns.predictors = PredictorColumns.from_config(config["predictors"])
        self._common = {
            parameter: CommonTerms.from_state(
                self._common_text(parameter), config["common"][parameter], self.namespace
            )
            for parameter in self._columns.parsed
        }
        self._effects = [
            CommonTerms.from_state(term.effects, state, self.namespace)
            for term, state in zip(self._columns.group_terms, config["effects"], strict=True)
        ]
        self._columns.response.restore(config["response"])
        self._groups = {
            group.name: GroupIndex(group.name, group.labels, group.counts) for group in self.spec.groups
        }


class Values:
    """Evaluated columns of some rows, or their moments.

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
        common: dict[str, tuple[dict[str, Any], np.ndarray]],
        effects: list[dict[str, Any]],
    ):
        self.n_rows, self.common, self.effects = n_rows, common, effects
