"""From arrays and tensors to the model's rows: images, embeddings, anything that a network takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from pyro_armed import frames
from pyro_armed.batch import Batch
from pyro_armed.design import Encoded
from pyro_armed.design._encoded import (
    as_tensor,
    encode_groups,
    model_spec,
    row_weights,
    spec_from_config,
    spec_to_config,
)
from pyro_armed.design._grouped import GroupedDesign
from pyro_armed.design._rows import (
    Rows,
    checked_effects,
    checked_groups,
    column_names,
    gather_rows,
    group_order,
    input_array,
    parted_effects,
    refuse_repeated_effects,
    slope_columns,
)
from pyro_armed.design._structure import effect_terms, linear_terms, network_terms, standardised
from pyro_armed.effects import RandomEffects, ScaleBias
from pyro_armed.errors import ArgumentError, ArmedError, DataError, FileFormatError
from pyro_armed.families import Family, Response, prepare_response
from pyro_armed.groups import GroupIndex
from pyro_armed.spec import FEATURES, EffectBlock, Predictor, Term, with_layers

__all__ = ["ArrayDesign"]


class ArrayDesign(GroupedDesign):
    """The design of a model given by arrays: learned from training data, applied to any rows.

    Parameters
    ----------
    x : array-like, shape (N, ...), or None
        Inputs: NumPy array, tensor, data frame or nested lists. Without a network two-dimensional, one column
        for each predictor, or None for a model without predictors.
    y : array-like, shape (N,)
        Responses.
    groups : mapping of str to array-like, shape (N,)
        Labels of each grouping factor.
    family : Family
        Response family.
    random_effects : sequence of RandomEffects and ScaleBias
        What varies between groups. Factors of ``groups`` that none of them names are encoded too: an
        adversary may use them.
    network : bool
        Whether x is the input of a network.
    weights, offset : array-like, shape (N,), optional
        Row weights; known values added to the predictor.
    trials : int or array-like, shape (N,), optional
        Trials of a binomial response.
    columns : sequence of str, optional
        Names of the columns of a two-dimensional x; default ``x0``, ``x1``, ... or a data frame's own.
    standardize : bool
        Whether columns of a two-dimensional x are centred and scaled for a network (0/1 columns are not).
        Inputs of more dimensions are left alone. A linear predictor reports coefficients for x as given.
    response_name : str
        Name of the response in the posterior.
    missing : {"error", "drop"}
        What to do with rows that have missing values.
    dtype : torch.dtype
        Type of the tensors.

    Attributes
    ----------
    spec : ModelSpec
        The model's structure.
    training : Encoded
        The training rows.
    shape : tuple of int or None
        Shape of one row of x.

    Raises
    ------
    DataError, ArgumentError
        One sentence that names the argument and the mend.

    Examples
    --------
    >>> import pyro_armed.families as families
    >>> x, y = np.arange(6.0).reshape(6, 1), np.array([1.0, 2.0, 4.0, 3.0, 5.0, 7.0])
    >>> site = ["a", "a", "a", "b", "b", "b"]
    >>> gaussian = families.get("gaussian")
    >>> design = ArrayDesign(x, y, {"site": site}, gaussian, [RandomEffects("site")], network=False)
    >>> design.encode([[2.5]], {"site": ["c"]}).batch.codes
    {'site': tensor([2])}
    """

    def __init__(
        self,
        x: Any,
        y: Any,
        groups: Mapping[str, Any] | None,
        family: Family,
        random_effects: Sequence[RandomEffects | ScaleBias],
        *,
        network: bool,
        weights: Any = None,
        offset: Any = None,
        trials: Any = None,
        columns: Sequence[str] | None = None,
        standardize: bool = True,
        response_name: str = "y",
        missing: str = "error",
        dtype: torch.dtype = torch.float64,
    ):
        if frames.check_policy(missing) == "indicator":
            raise ArgumentError("missing='indicator' is for formulas; with arrays use 'error' or 'drop'.")
        self.family, self.network, self.missing, self.dtype = family, network, missing, dtype
        self.response_name, self.standardize = response_name, standardize
        if columns is None and isinstance(x, pd.DataFrame):
            columns = [str(name) for name in x.columns]
        values = input_array(x, self.network)
        self.shape = None if values is None else values.shape[1:]
        self.columns = column_names(columns, self.shape)
        groups = checked_groups(groups)
        random_effects, within = parted_effects(random_effects)
        self._effects = checked_effects(random_effects, groups, network, family)
        self._slopes = [slope_columns(effects, self.columns) for effects in self._effects]
        refuse_repeated_effects(self._effects, self._slopes, self.columns)
        others = {"weights": weights, "offset": offset, "trials": trials}
        rows = gather_rows(values, y, groups, others, training=True, drop=missing == "drop")
        self._groups = {
            name: GroupIndex.from_values(name, labels, group_order(groups[name], name))
            for name, labels in rows.groups.items()
        }
        response = self._response(rows, training=True)
        spec = model_spec(family, response, self._predictors(rows), self._groups, weights=_weights_of(rows))
        self.spec = with_layers(spec, within, "add it to groups=")
        self.training = self._encode(rows, response)

    def describe(self) -> str:
        """The arrays and effects in a line."""
        inputs = (
            "no inputs"
            if self.shape is None
            else f"inputs of shape (N{''.join(f', {n}' for n in self.shape)})"
        )
        within = [f"scale and bias of {one.layer} by {one.group}" for one in self.spec.layers]
        effects = ", ".join([*map(repr, self._effects), *within]) or "no random effects"
        return f"{self.response_name} from {inputs}; {effects}"

    def encode(
        self,
        x: Any,
        groups: Mapping[str, Any] | None = None,
        y: Any = None,
        *,
        weights: Any = None,
        offset: Any = None,
        trials: Any = None,
    ) -> Encoded:
        """Encode new rows with what training taught.

        Parameters
        ----------
        x : array-like, shape (M, ...), or None
            Inputs, rows of the same shape as in training.
        groups : mapping of str to array-like, shape (M,)
            Labels of every grouping factor that has random effects; others may be left out.
        y : array-like, shape (M,), optional
            Responses.
        weights, offset, trials : array-like, shape (M,), optional
            As in training. The offset is needed where training had one, trials with a binomial ``y``.

        Returns
        -------
        Encoded

        Raises
        ------
        DataError
            For other shapes than in training, missing values or labels, unknown or absent grouping factors.
        """
        values = input_array(self._in_order(x), self.network)
        shape = None if values is None else values.shape[1:]
        if shape != self.shape:
            raise DataError(
                f"x has {_rows_of(shape)}, in training it had {_rows_of(self.shape)}; give the same kind of "
                "input."
            )
        groups = checked_groups(groups)
        known = ", ".join(map(repr, self._groups)) or "none"
        for name in groups:
            if name not in self._groups:
                raise DataError(f"groups has {name!r}, which training did not have (it had: {known}).")
        for group in self.spec.groups:
            if group.name not in groups and self.spec.effect_names(group.name):
                raise DataError(
                    f"groups lacks {group.name!r}, which has random effects; give "
                    f"groups={{{group.name!r}: labels}}."
                )
        if offset is None and self.spec.mu.offset:
            raise DataError("The model was trained with an offset; give offset= for the new rows.")
        if offset is not None and not self.spec.mu.offset:
            raise DataError("The model was trained without an offset; leave offset= out.")
        others = {"weights": weights, "offset": offset, "trials": trials}
        rows = gather_rows(values, y, groups, others, training=False, drop=self.missing == "drop")
        return self._encode(rows, None if rows.y is None else self._response(rows, training=False))

    def _in_order(self, x: Any) -> Any:
        """A data frame with the columns in the order of training."""
        if not isinstance(x, pd.DataFrame) or not self.columns:
            return x
        names = [str(name) for name in x.columns]
        if sorted(names) == sorted(self.columns):
            return x.set_axis(names, axis=1)[self.columns]
        if self.columns != column_names(None, self.shape):
            raise DataError(f"x has the columns {', '.join(names)}; training had {', '.join(self.columns)}.")
        return x

    # --- the specification -------------------------------------------------------------------------------

    def _response(self, rows: Rows, training: bool) -> Response:
        trials = rows.others.get("trials")
        levels = None if training else (list(self.spec.levels) or None)
        return prepare_response(
            self.family, rows.y, self.response_name, trials=trials, levels=levels, training=training
        )

    def _predictors(self, rows: Rows) -> list[Predictor]:
        ordinal = self.family.response == "ordinal"
        terms: tuple[Term, ...] = ()
        inputs: tuple[Term, ...] = ()
        if self.columns:
            columns, labels = self._columns(rows), dict.fromkeys(self.columns, ())
            if self.network:
                inputs = network_terms(columns, labels, self.standardize, _weights_of(rows))
            else:
                terms = linear_terms(columns, labels, True, _weights_of(rows))
        blocks: dict[str, list[EffectBlock]] = {"mu": []}
        for effects, slopes in zip(self._effects, self._slopes, strict=True):
            blocks.setdefault(effects.parameter, []).append(self._block(effects, slopes, rows))
        mu = Predictor(
            "mu",
            intercept=not ordinal,
            terms=terms,
            blocks=tuple(blocks.pop("mu")),
            network=self.network,
            features=self.network,
            offset="offset" in rows.others,
            inputs=inputs,
        )
        return [
            mu,
            *(Predictor(p, intercept=True, terms=(), blocks=tuple(some)) for p, some in blocks.items()),
        ]

    def _block(self, effects: RandomEffects, slopes: Sequence[int], rows: Rows) -> EffectBlock:
        names = [self.columns[position] for position in slopes]
        columns = {name: values for name, values in self._columns(rows).items() if name in names}
        features = effects.slopes == FEATURES
        terms = effect_terms(
            effects.intercept,
            {name: columns[name] for name in names},
            dict.fromkeys(names, ()),
            features,
            _weights_of(rows),
        )
        return EffectBlock(
            effects.group, terms, effects.correlated and not features and len(terms) > 1, effects.parameter
        )

    def _columns(self, rows: Rows) -> dict[str, np.ndarray]:
        if not self.columns:
            return {}
        return {name: rows.x[:, [position]] for position, name in enumerate(self.columns)}  # type: ignore[index]

    # --- rows as tensors ---------------------------------------------------------------------------------

    def _encode(self, rows: Rows, response: Response | None) -> Encoded:
        mu = self.spec.mu
        common = np.empty((rows.size, 0)) if rows.x is None else rows.x
        if self.columns:
            common = standardised(mu.inputs or mu.terms, self._columns(rows), rows.size)
        slopes = {}
        for block, positions in zip(self.spec.blocks, self._slopes, strict=True):
            intercept = [np.ones((rows.size, 1))] * (block.terms[0].name == "1")
            raw = np.empty((rows.size, 0)) if not positions else rows.x[:, positions]  # type: ignore[index]
            slopes[block.key] = self._tensor(np.concatenate([*intercept, raw], axis=1))
        codes, new_groups = encode_groups(self._groups, rows.groups)
        trials = rows.others.get("trials") if response is None else response.trials
        weights = _weights_of(rows)
        batch = Batch(
            size=rows.size,
            n_rows=rows.size,
            inputs=self._tensor(common) if self.network else None,
            columns={"mu": self._tensor(common)} if not self.network and mu.terms else {},
            slopes=slopes,
            codes=codes,
            offsets={"mu": self._tensor(rows.others["offset"])} if mu.offset else {},
            response=None if response is None else self._tensor(response.y),
            trials=None if trials is None else self._tensor(trials),
            weights=None if weights is None else self._tensor(weights),
        )
        return Encoded(batch, new_groups, rows.index)

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return as_tensor(values, self.dtype)

    # --- files -------------------------------------------------------------------------------------------

    def to_config(self) -> dict[str, Any]:
        """A JSON-able description, enough to encode new rows.

        Raises
        ------
        DataError
            For labels that a file cannot keep.
        """
        return {
            "network": self.network,
            "missing": self.missing,
            "standardize": self.standardize,
            "response_name": self.response_name,
            "dtype": str(self.dtype).removeprefix("torch."),
            "shape": None if self.shape is None else list(self.shape),
            "columns": self.columns,
            "random_effects": [
                {
                    "group": e.group,
                    "intercept": e.intercept,
                    "correlated": e.correlated,
                    "parameter": e.parameter,
                }
                | {"slopes": FEATURES if e.slopes == FEATURES else slopes or None}
                for e, slopes in zip(self._effects, self._slopes, strict=True)
            ],
            "spec": spec_to_config(self.spec),
        }

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        family: Family | None = None,
        namespace: Mapping[str, Any] | None = None,
    ) -> ArrayDesign:
        """Rebuild from `to_config`.

        Parameters
        ----------
        config : mapping
            From `to_config`.
        family : Family, optional
            Needed where the family is the user's own.
        namespace : mapping, optional
            Not used; formulas have one.

        Returns
        -------
        ArrayDesign
            Without `training`.

        Raises
        ------
        FileFormatError
            Where something is missing.
        """
        self = cls.__new__(cls)
        try:
            self.spec = spec_from_config(config["spec"], family)
            self.family, self.network, self.missing = self.spec.family, config["network"], config["missing"]
            self.standardize, self.response_name = config["standardize"], config["response_name"]
            self.dtype, self.columns = getattr(torch, config["dtype"]), list(config["columns"])
            self.shape = None if config["shape"] is None else tuple(config["shape"])
            self._effects = [RandomEffects(**effects) for effects in config["random_effects"]]
            self._slopes = [slope_columns(effects, self.columns) for effects in self._effects]
            self._groups = {g.name: GroupIndex(g.name, g.labels, g.counts) for g in self.spec.groups}
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, ArmedError):
                raise
            raise FileFormatError(f"The stored design cannot be read: {error!r}") from error
        return self


def _rows_of(shape: tuple[int, ...] | None) -> str:
    return "no inputs" if shape is None else f"rows of shape {shape}"


def _weights_of(rows: Rows) -> np.ndarray | None:
    weights = rows.others.get("weights")
    return None if weights is None else row_weights(weights, "weights=")
