"""From formulas and data frames to tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from pyro_armed import frames
from pyro_armed.batch import Batch
from pyro_armed.errors import ArgumentError, DataError, FileFormatError, FormulaError
from pyro_armed.families import Family, Response, prepare_response
from pyro_armed.formula import FEATURES, GroupTerm, ParsedFormula, parse_formula, quote, unquote, variables
from pyro_armed.groups import UNSEEN, GroupIndex, combine_columns, group_labels
from pyro_armed.predictors import PredictorColumns
from pyro_armed.spec import EffectBlock, Group, ModelSpec, Predictor, Term, feature_term
from pyro_armed.terms import CommonTerms, unsafe_calls

__all__ = ["Encoded", "FormulaDesign"]

_PROPORTION = re.compile(r"^(?:p|prop|proportion)\((.+),(.+)\)$", re.DOTALL)
_LEVEL = re.compile(r"^([^()]+)\[(.+)\]$", re.DOTALL)


@dataclass(frozen=True)
class Encoded:
    """Rows ready for the Pyro model.

    Attributes
    ----------
    batch : Batch
        The rows as tensors. Codes of new groups continue after those of training.
    new_groups : dict of str to list
        Labels of each grouping factor that training did not have, in the order of their codes.
    index : numpy.ndarray, shape (N,)
        Positions of the rows in what they came from (rows with missing values may have been dropped).
    """

    batch: Batch
    new_groups: dict[str, list[Any]] = field(default_factory=dict)
    index: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))


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
        dtype: torch.dtype = torch.float64,
    ):
        self._prepare(formulas, family, network, missing, weights, namespace, dtype)
        frame = frames.check_frame(frame)
        frames.check_columns(frame, self._used_columns(), self.formulas[0])
        if self._wants_features() and FEATURES in frame.columns:
            raise FormulaError(
                "'features' means the network's hidden activations; rename the column of that name."
            )
        kept = self._complete_rows(frame, training=True, response=True)
        frame = frame.iloc[kept]
        response = self._response(frame)
        clean = self._predictors.learn(frame)
        self._build_terms(clean)
        self._groups = self._learn_groups(frame)
        self.spec = self._specify(clean, response)
        self.training = self._encode(frame, clean, response, kept)

    def _prepare(
        self,
        formulas: Sequence[str],
        family: Family,
        network: bool,
        missing: str,
        weights: str | None,
        namespace: Mapping[str, Any] | None,
        dtype: torch.dtype,
    ) -> None:
        self.formulas = list(formulas)
        self.family, self.network, self.weights, self.dtype = family, network, weights, dtype
        self.missing = frames.check_policy(missing)
        self.namespace = dict(namespace or {})
        self._parsed = _parse(self.formulas, family)
        self._response_text = self._parsed["mu"].response or ""
        self._response_columns = _response_columns(self._response_text, self.namespace)
        texts = [parsed.common for parsed in self._parsed.values()]
        texts += [term.effects for parsed in self._parsed.values() for term in parsed.group_terms]
        names = set().union(*(variables(text) for text in texts)) - set(self.namespace)
        self._predictors = PredictorColumns(sorted(names), fill=missing == "indicator")
        terms = [term for parsed in self._parsed.values() for term in parsed.group_terms]
        self._factors = list(dict.fromkeys(name for term in terms for name in term.group))
        if self._wants_features() and not network:
            raise FormulaError(
                "'features' needs a network: pass network=pa.networks.MLP(...) or name columns instead."
            )

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
        trials = self._response_columns[1:] if _PROPORTION.match(self._response_text) else []
        has_trials = all(name in frame.columns for name in trials)
        frames.check_columns(
            frame, self._used_columns() if response else self._input_columns(), self.formulas[0]
        )
        kept = self._complete_rows(frame, training=False, response=response)
        frame = frame.iloc[kept]
        clean = self._predictors.apply(frame, unseen_levels)
        observed = self._response(frame, self.spec.levels) if response else None
        encoded = self._encode(frame, clean, observed, kept, unseen_levels)
        if not response and trials and has_trials:
            count = self._tensor(frame[trials[0]].to_numpy(dtype=float))
            return replace(encoded, batch=replace(encoded.batch, trials=count))
        return encoded

    # --- columns and rows --------------------------------------------------------------------------------

    def _wants_features(self) -> bool:
        return any(p.features or any(t.features for t in p.group_terms) for p in self._parsed.values())

    def _input_columns(self) -> list[str]:
        return list(dict.fromkeys([*self._predictors.names, *self._factors]))

    def _used_columns(self) -> list[str]:
        weights = [self.weights] if self.weights else []
        return list(dict.fromkeys([*self._input_columns(), *self._response_columns, *weights]))

    def _complete_rows(self, frame: pd.DataFrame, training: bool, response: bool) -> np.ndarray:
        """Positions of the rows to use; raises where the policy does not allow leaving any out."""
        masks = frames.missing_rows(frame, self._used_columns() if response else self._input_columns())
        for name in self._predictors.fillable(masks, training) - set(self._factors):
            del masks[name]
        if self.missing != "drop":
            mend = "Pass missing='drop' to leave these rows out"
            mend += (
                "."
                if self.missing == "indicator"
                else ", or missing='indicator' to fill predictors and mark them."
            )
            frames.refuse_missing(masks, mend)
            return np.arange(len(frame))
        bad = np.zeros(len(frame), dtype=bool)
        for mask in masks.values():
            bad |= mask
        if bad.all():
            raise DataError(
                "Every row has a missing value in some column of the formula; nothing is left to use."
            )
        return np.flatnonzero(~bad)

    # --- terms, groups, response -------------------------------------------------------------------------

    def _build_terms(self, clean: pd.DataFrame) -> None:
        self._common: dict[str, CommonTerms] = {}
        self._effects: list[tuple[str, GroupTerm, CommonTerms]] = []
        for parameter, parsed in self._parsed.items():
            text = parsed.common
            if parameter == "mu":
                text = " + ".join([text, *(quote(f"{name}_missing") for name in self._predictors.fills)])
            self._common[parameter] = CommonTerms(text, clean, self.namespace)
            for term in parsed.group_terms:
                effects = CommonTerms(term.effects, clean, self.namespace)
                if effects.has_offset:
                    raise FormulaError(
                        f"offset() cannot vary between groups; move it out of ({term.effects} | ...)."
                    )
                self._effects.append((parameter, term, effects))
        if self.network and not self._common["mu"].labels:
            raise FormulaError(
                "A network needs at least one predictor: 'y ~ x + (1 | g)'; or pass network=None."
            )

    def _learn_groups(self, frame: pd.DataFrame) -> dict[str, GroupIndex]:
        indices: dict[str, GroupIndex] = {}
        for _, term, _ in self._effects:
            name = ":".join(term.group)
            if name not in indices:
                dtype = frame[term.group[0]].dtype
                ordered = len(term.group) == 1 and isinstance(dtype, pd.CategoricalDtype)
                order = group_labels(pd.Series(dtype.categories), name).tolist() if ordered else None
                indices[name] = GroupIndex.from_values(name, _labels(frame, term.group), order)
        return indices

    def _response(self, frame: pd.DataFrame, levels: Sequence[Any] | None = None) -> Response:
        text = self._response_text
        trials: Any = None
        if match := _PROPORTION.match(text):
            successes, number = (unquote(part) for part in match.groups())
            values: Any = frame[successes]
            trials = frame[number] if number in frame.columns else np.full(len(frame), _number(number, text))
        elif unquote(text) in frame.columns:
            values = frame[unquote(text)]
        elif (match := _LEVEL.match(text)) and unquote(match[1]) in frame.columns:
            labels, level = frame[unquote(match[1])].map(str), match[2].strip().strip("'\"")
            if level not in set(labels) and levels is None:
                raise DataError(
                    f"The response {text!r} names a level that column '{unquote(match[1])}' does not have."
                )
            values = labels.to_numpy() == level
        else:
            values = self._computed_response(text, frame)
        return prepare_response(
            self.family, values, text, trials=trials, levels=list(levels) if levels else None
        )

    def _computed_response(self, text: str, frame: pd.DataFrame) -> np.ndarray:
        data = pd.DataFrame(
            {n: frames.clean_column(frame[n], n) for n in self._response_columns}, index=frame.index
        )
        with np.errstate(all="ignore"):
            columns, _ = CommonTerms(f"0 + {text}", data, self.namespace).evaluate(data)
        if len(columns) != 1 or next(iter(columns.values())).shape[1] != 1:
            raise FormulaError(f"The response {text!r} has more than one column; a response has one.")
        return next(iter(columns.values()))[:, 0]

    # --- the specification -------------------------------------------------------------------------------

    def _specify(self, clean: pd.DataFrame, response: Response) -> ModelSpec:
        blocks: dict[str, list[EffectBlock]] = {parameter: [] for parameter in self._parsed}
        for parameter, term, effects in self._effects:
            blocks[parameter].append(_block(parameter, term, effects, clean))
        _refuse_repeated([block for some in blocks.values() for block in some])
        predictors = []
        for parameter, parsed in self._parsed.items():
            common, network = self._common[parameter], self.network and parameter == "mu"
            ordinal = parameter == "mu" and self.family.response == "ordinal"
            centered = common.intercept or network or ordinal
            terms = _network_terms(common, clean) if network else _linear_terms(common, clean, centered)
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
        return ModelSpec(
            response=response.name,
            family=self.family,
            predictors=tuple(predictors),
            groups=tuple(
                Group(n, tuple(i.labels), tuple(i.counts.tolist())) for n, i in self._groups.items()
            ),
            n_rows=len(response.y),
            levels=tuple(response.levels or ()),
            response_scale=float(np.std(response.y)) if self.family.identity_scale else 1.0,
            response_center=float(self.family.start(response.y, response.trials)),
        )

    # --- rows as tensors ---------------------------------------------------------------------------------

    def _encode(
        self,
        frame: pd.DataFrame,
        clean: pd.DataFrame,
        response: Response | None,
        index: np.ndarray,
        unseen_levels: str = "error",
    ) -> Encoded:
        columns, offsets, inputs = {}, {}, None
        for predictor in self.spec.predictors:
            values, offset = self._common[predictor.parameter].evaluate(clean, unseen_levels)
            matrix = self._tensor(_standardised(predictor.terms, values, len(clean)))
            if predictor.network:
                inputs = matrix
            elif predictor.terms:
                columns[predictor.parameter] = matrix
            if predictor.offset:
                offsets[predictor.parameter] = self._tensor(offset)
        slopes = {}
        for block, (_, _, effects) in zip(self.spec.blocks, self._effects, strict=True):
            values, _ = effects.evaluate(clean, unseen_levels)
            parts = [np.ones((len(clean), 1))] * effects.intercept + list(values.values())
            slopes[block.key] = self._tensor(
                np.concatenate(parts, axis=1) if parts else np.ones((len(clean), 0))
            )
        codes, new_groups = self._codes(frame)
        weights = (
            _row_weights(frame[self.weights], self.weights) if self.weights and response is not None else None
        )
        batch = Batch(
            size=len(clean),
            n_rows=len(clean),
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

    def _codes(self, frame: pd.DataFrame) -> tuple[dict[str, torch.Tensor], dict[str, list[Any]]]:
        codes, new = {}, {}
        groups = {":".join(term.group): term.group for _, term, _ in self._effects}
        for name, index in self._groups.items():
            values, new[name] = index.encode_with_new(_labels(frame, groups[name]))
            codes[name] = torch.as_tensor(values)
        return codes, new

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(np.asarray(values), dtype=self.dtype)

    # --- files -------------------------------------------------------------------------------------------

    def to_config(self) -> dict[str, Any]:
        """A JSON-able description, enough to encode new rows.

        Raises
        ------
        FormulaError
            For transforms whose state cannot be stored.
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
            "effects": [effects.state() for _, _, effects in self._effects],
            "spec": self.spec.to_config(),
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], family: Family | None = None, namespace: Mapping[str, Any] | None = None
    ) -> FormulaDesign:
        """Rebuild from `to_config` without evaluating anything but arithmetic and known transforms.

        Parameters
        ----------
        config : dict
            From `to_config`.
        family : Family, optional
            Needed where the family is the user's own.
        namespace : mapping, optional
            The functions that the formulas use, if they use any of the user's own.

        Raises
        ------
        FileFormatError
            Where a formula calls a function that is neither known nor given.
        """
        self = cls.__new__(cls)
        self.spec = ModelSpec.from_config(config["spec"], family)
        dtype = getattr(torch, config["dtype"])
        network, missing, weights = config["network"], config["missing"], config["weights"]
        self._prepare(config["formulas"], self.spec.family, network, missing, weights, namespace, dtype)
        texts = [p.common for p in self._parsed.values()] + [
            t.effects for p in self._parsed.values() for t in p.group_terms
        ]
        if unknown := set().union(*(unsafe_calls(text, self.namespace) for text in texts)):
            raise FileFormatError(
                f"The formula in the file calls {', '.join(sorted(unknown))}; pass namespace={{'name': function}} "
                "with functions that you trust."
            )
        self._predictors = PredictorColumns.from_config(config["predictors"])
        self._build_terms(self._predictors.stand_in())
        for name, state in config["common"].items():
            self._common[name].restore(state)
        for (_, _, effects), state in zip(self._effects, config["effects"], strict=True):
            effects.restore(state)
        self._groups = {g.name: GroupIndex(g.name, g.labels, g.counts) for g in self.spec.groups}
        return self


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
                f"The formula {text!r} models '{parameter}', which family '{family.name}' does not have (it has: {known})."
            )
        if parameter in parsed:
            raise FormulaError(f"There are two formulas for '{parameter}'; join them.")
        parsed[parameter] = one
    return parsed


def _response_columns(text: str, namespace: Mapping[str, Any]) -> list[str]:
    if match := _PROPORTION.match(text):
        successes, trials = (unquote(part) for part in match.groups())
        return [successes] + ([] if trials.replace(".", "").isdigit() else [trials])
    if match := _LEVEL.match(text):
        return [unquote(match[1])]
    if re.search(r"[(){}+*/]", text) and not text.startswith("`"):
        return sorted(variables(text) - set(namespace))
    return [unquote(text)]


def _number(text: str, response: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise FormulaError(
            f"In {response!r}, {text!r} is neither a column nor a number of trials."
        ) from error


def _labels(frame: pd.DataFrame, group: tuple[str, ...]) -> np.ndarray:
    return combine_columns([group_labels(frame[name], name) for name in group])


def _linear_terms(common: CommonTerms, clean: pd.DataFrame, centered: bool) -> tuple[Term, ...]:
    values, _ = common.evaluate(clean)
    terms = []
    for name, columns in values.items():
        scale = columns.std(axis=0)
        constant = [
            i for i, sd in enumerate(scale) if sd <= 1e-12 * max(1.0, float(np.abs(columns[:, i]).max()))
        ]
        if constant and centered:
            label = f"{name}[{common.labels[name][constant[0]]}]" if common.labels[name] else name
            raise DataError(
                f"The predictor '{label}' has the same value in every row; leave it out of the formula."
            )
        scale[constant] = 1.0
        center = columns.mean(axis=0) if centered else np.zeros(columns.shape[1])
        terms.append(Term(name, tuple(center.tolist()), tuple(scale.tolist()), common.labels[name]))
    return tuple(terms)


def _network_terms(common: CommonTerms, clean: pd.DataFrame) -> tuple[Term, ...]:
    """Inputs of a network: numbers are standardised, 0/1 columns stay (a rare dummy would become huge)."""
    values, _ = common.evaluate(clean)
    terms = []
    for name, columns in values.items():
        center, scale = columns.mean(axis=0), columns.std(axis=0)
        plain = np.isin(columns, (0.0, 1.0)).all(axis=0)
        center[plain], scale[plain | (scale == 0)] = 0.0, 1.0
        terms.append(Term(name, tuple(center.tolist()), tuple(scale.tolist()), common.labels[name]))
    return tuple(terms)


def _block(parameter: str, term: GroupTerm, effects: CommonTerms, clean: pd.DataFrame) -> EffectBlock:
    terms = [Term("1", (0.0,), (1.0,))] if effects.intercept else []
    for name, columns in effects.evaluate(clean)[0].items():
        scale = np.where(columns.std(axis=0) > 0, columns.std(axis=0), 1.0)
        terms.append(Term(name, (0.0,) * columns.shape[1], tuple(scale.tolist()), effects.labels[name]))
    if term.features:
        terms.append(feature_term(0))
    group = ":".join(term.group)
    if not terms:
        raise FormulaError(f"The term (0 | {group}) has no effects; write (1 | {group}).")
    correlated = term.correlated and not term.features and sum(t.size for t in terms) > 1
    return EffectBlock(group, tuple(terms), correlated, parameter)


def _refuse_repeated(blocks: Sequence[EffectBlock]) -> None:
    names = [block.effect_name(term) for block in blocks for term in block.terms]
    for name in names:
        if names.count(name) > 1:
            raise FormulaError(f"The effect {name} stands twice in the formula; keep one of the terms.")


def _standardised(terms: Sequence[Term], values: Mapping[str, np.ndarray], n_rows: int) -> np.ndarray:
    if not terms:
        return np.empty((n_rows, 0))
    return np.concatenate([(values[t.name] - np.array(t.center)) / np.array(t.scale) for t in terms], axis=1)


def _row_weights(column: pd.Series, name: str | None) -> np.ndarray:
    weights = frames.clean_column(column, str(name))
    if (
        isinstance(weights.dtype, pd.CategoricalDtype)
        or not np.isfinite(weights).all()
        or (weights < 0).any()
    ):
        raise DataError(f"The weights in column '{name}' must be finite numbers, zero or more.")
    if not (weights > 0).any():
        raise DataError(f"The weights in column '{name}' are all zero.")
    return weights.to_numpy()
