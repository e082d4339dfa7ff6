"""A model's design from formulas and rows in files: two passes instead of a data frame."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from pyro_armed import frames
from pyro_armed.batch import Batch
from pyro_armed.design._encoded import Encoded, ResponseMoments
from pyro_armed.design._formula import FormulaDesign, Values
from pyro_armed.design._running import RunningMoments
from pyro_armed.effects import ScaleBias
from pyro_armed.errors import ArgumentError, DataError, FormulaError
from pyro_armed.families import Family, Response
from pyro_armed.formula import FEATURES, variables
from pyro_armed.groups import GroupIndex, combine_columns, group_labels
from pyro_armed.integers import Integers
from pyro_armed.parquet import Distinct, ParquetRows, incomplete_rows
from pyro_armed.seeds import stream
from pyro_armed.spec import with_layers
from pyro_armed.terms import CommonTerms, unsafe_calls

__all__ = ["StreamedDesign"]

SAMPLE = 2_000
_LABELLED = ("binary", "categorical", "ordinal")
_MOST_LEVELS = 100_000
_MEND = "make it a column of the file, or read the rows into a data frame: pandas.read_parquet(...)"


class StreamedDesign(FormulaDesign):
    """The design of a model of rows that do not fit into memory.

    A first pass gathers missing values, levels and groups; a second one means and sds of the columns that the
    formulas make, the response's, and a random sample of rows. It encodes new rows as a `FormulaDesign` does.

    Parameters
    ----------
    formulas, family, network, linear_path, missing, weights, namespace, layers
        As for `FormulaDesign`.
    rows : ParquetRows
        Training rows.
    within_between : object
        Refused: group means take all rows.
    seed : int
        Seed of the sample.
    dtype : torch.dtype
        Type of the tensors.

    Attributes
    ----------
    training : Encoded
        The sample: at most 2000 rows, whose ``n_rows`` is that of the whole data.
    kept : list of int
        Complete rows of each row group.

    Raises
    ------
    DataError, FormulaError, ArgumentError
        As `FormulaDesign`, and for terms that need all rows at once.

    Examples
    --------
    >>> from pyro_armed import families
    >>> frame = pd.DataFrame({"y": [1.0, 2.0, 4.0, 3.0], "x": [0.0, 1.0, 2.0, 3.0], "g": list("aabb")})
    >>> frame.to_parquet("rows.parquet")
    >>> design = StreamedDesign(["y ~ x + (1 | g)"], ParquetRows("rows.parquet"), families.get("gaussian"))
    >>> design.spec.mu.terms[0].center, design.spec.n_rows
    ((1.5,), 4)
    """

    def __init__(
        self,
        formulas: Sequence[str],
        rows: ParquetRows,
        family: Family,
        *,
        network: bool = False,
        linear_path: bool = False,
        missing: str = "error",
        weights: str | None = None,
        namespace: Mapping[str, Any] | None = None,
        within_between: Any = None,
        layers: Sequence[ScaleBias] = (),
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ):
        if within_between is not None:
            raise ArgumentError(f"within_between={within_between!r} needs all rows at once; {_MEND}.")
        if missing == "indicator":
            raise ArgumentError(
                "missing='indicator' is for data frames; pass missing='drop', or fill them in."
            )
        self.network, self.linear_path, self.dtype = network, linear_path, dtype
        self.rows, self.seed = rows, seed
        self._prepare(formulas, family, missing, weights, namespace, None)
        if self._columns.wants_features and FEATURES in rows.schema.names:
            raise FormulaError(
                "'features' means the network's hidden activations; rename the column of that name."
            )
        frames.check_columns(rows.empty(), self._columns.used, self.formulas[0])
        known = _first_pass(self)
        self.kept, self.n_rows = known.kept, sum(known.kept)
        clean = self._columns.predictors.learn(known.example)
        self._learn_terms(clean)
        self._groups = {name: self._index(name, found) for name, found in known.groups.items()}
        self._lookups = {name: _Lookup(self._groups[name]) for name in self._groups}
        self._levels = list(
            self._columns.response.read(known.example, training=labelled(family)).levels or ()
        )
        _refuse_whole(self)
        self._second_pass(layers)

    # --- rows --------------------------------------------------------------------------------------------

    def chunks(self, position: int) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """The complete rows of a row group, some at a time, and their places in it."""
        start = 0
        for table in self.rows.piece(position, self._columns.used):
            bad, _ = incomplete_rows(table)
            places = start + np.flatnonzero(~bad)
            start += len(table)
            if len(places):
                yield (table.filter(pa.array(~bad)) if bad.any() else table), places

    def encode_table(self, table: pa.Table) -> Batch:
        """Complete rows with their response as tensors, of a model of all rows."""
        frame = table.to_pandas()
        values, response, weights = self._read(frame)
        encoded = self._encode(frame, {}, values, response, np.arange(len(frame)))
        codes = {name: self._codes(name, frame) for name in self._groups}
        batch = replace(encoded.batch, n_rows=self.n_rows, codes=codes)
        return batch if weights is None else replace(batch, weights=self._tensor(weights))

    def _codes(self, name: str, frame: pd.DataFrame) -> torch.Tensor:
        columns = self._columns.factors[name]
        codes = self._lookups[name].codes([frame[column] for column in columns], columns)
        if (codes < 0).any():
            raise DataError(
                f"Rows have groups of '{name}' that the first pass did not see: the files changed."
            )
        return torch.as_tensor(codes)

    def _read(self, frame: pd.DataFrame) -> tuple[Values, Response, np.ndarray | None]:
        values = self._evaluate(self._columns.predictors.apply(frame), "error")
        response = self._columns.response.read(frame, self._levels, training=False)
        if self.weights is None:
            return values, response, None
        weights = frames.clean_column(frame[self.weights], self.weights)
        if (
            isinstance(weights.dtype, pd.CategoricalDtype)
            or not (np.isfinite(weights) & (weights >= 0)).all()
        ):
            raise DataError(f"The weights in column '{self.weights}' must be finite numbers, zero or more.")
        return values, response, weights.to_numpy()

    def _blank(self) -> FormulaDesign:
        """Of some groups: no files are read any more."""
        return FormulaDesign.__new__(FormulaDesign)

    # --- passes ------------------------------------------------------------------------------------------

    def _index(self, name: str, found: Distinct) -> GroupIndex:
        """The groups of a factor; labels in the order of a data frame's."""
        distinct, columns = found.frame(), self._columns.factors[name]
        labels = combine_columns([group_labels(distinct[column], column) for column in columns])
        if len(labels) < 2:
            return GroupIndex.from_values(name, labels)  # says so
        order = found.order(columns[0]) if len(columns) == 1 else None
        if labels.dtype == np.int64 and order is None:
            ascending = labels.argsort()
            sizes = distinct["count_all"].to_numpy(np.int64)
            return GroupIndex(name, Integers(labels[ascending]), Integers(sizes[ascending]))
        counts = dict(zip(labels.tolist(), distinct["count_all"].tolist(), strict=True))
        wanted = frames.ordered(counts) if order is None else [label for label in order if label in counts]
        return GroupIndex(name, wanted, [counts[label] for label in wanted])

    def _second_pass(self, layers: Sequence[ScaleBias]) -> None:
        moments = _DesignMoments()
        sample = _Sample(self.seed)
        offset, frame = 0, pd.DataFrame()
        for position in range(len(self.rows.pieces)):
            for table, places in self.chunks(position):
                frame = table.to_pandas()
                moments.add(*self._read(frame))
                sample.add(table, offset + places)
            offset += self.rows.sizes[position]
        if moments.constant:
            self._columns.response.read(frame, training=True)  # says so
        if moments.weight == 0.0:
            raise DataError(f"The weights in column '{self.weights}' are all zero.")
        response = moments.response(self.family, self._columns.response.text, self._levels)
        spec = self._specify(moments.values(self.n_rows), response, None, weighted=self.weights is not None)
        self.spec = with_layers(spec, layers, "add a term such as (1 | group) to the formula")
        table, index = sample.table()
        self.training = Encoded(
            replace(self.encode_table(table), rows=torch.arange(len(table))),
            {name: [] for name in self._groups},
            index,
        )


def labelled(family: Family) -> bool:
    """Whether responses of a family are labels, all of which the first pass gathers."""
    return family.response in _LABELLED


@dataclass
class _Known:
    """What the first pass finds: complete rows by row group, groups, and rows that have every level."""

    kept: list[int]
    groups: dict[str, Distinct]
    example: pd.DataFrame


def _first_pass(design: StreamedDesign) -> _Known:
    columns, rows = design._columns, design.rows
    groups = {name: Distinct(parts) for name, parts in columns.factors.items()}
    texts = [name for name in columns.predictors.names if _has_levels(rows.schema.field(name).type)]
    texts += columns.response.columns[:1] if labelled(design.family) else []
    levels = {name: Distinct([name]) for name in dict.fromkeys(texts)}
    kept: list[int] = []
    missing, first = dict.fromkeys(columns.used, 0), list[pa.Table]()
    for position in range(len(rows.pieces)):
        kept.append(0)
        for table in rows.piece(position, columns.used):
            bad, counts = incomplete_rows(table)
            for name, count in counts.items():
                missing[name] += count
            table = table.filter(pa.array(~bad)) if counts else table
            if not len(table):
                continue
            kept[-1] += len(table)
            if sum(len(part) for part in first) < SAMPLE:
                first.append(table.slice(0, SAMPLE))
            for found in [*groups.values(), *levels.values()]:
                found.add(table)
    _refuse_missing(missing, columns.missing)
    if not first:
        raise DataError(
            "Every row has a missing value in some column of the formula; nothing is left to use."
        )
    example = pa.concat_tables(first, promote_options="permissive").to_pandas()
    return _Known(kept, groups, _with_all_levels(example, levels))


def _refuse_missing(missing: Mapping[str, int], policy: str) -> None:
    counts = {name: count for name, count in missing.items() if count}
    if counts and policy == "error":
        parts = [f"'{name}' has {frames.counted(count, 'missing value')}" for name, count in counts.items()]
        raise DataError(f"Column {'; '.join(parts)}. Pass missing='drop' to leave these rows out.")


def _has_levels(kind: pa.DataType) -> bool:
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return text or pa.types.is_dictionary(kind) or pa.types.is_binary(kind)


def _with_all_levels(example: pd.DataFrame, levels: Mapping[str, Distinct]) -> pd.DataFrame:
    """Rows in which each level of each categorical column stands at least once."""
    found: dict[str, tuple[list[Any], bool]] = {}
    for name, distinct in levels.items():
        order, present = distinct.order(name), distinct.frame()[name].tolist()
        if len(present) > _MOST_LEVELS:
            raise DataError(f"Column '{name}' has {len(present)} different values; use a group or numbers.")
        known = set(present)
        found[name] = ([one for one in order if one in known], True) if order else (present, False)
    size = max([len(example), *(len(labels) for labels, _ in found.values())])
    frame = example.iloc[np.arange(size) % len(example)].reset_index(drop=True)
    for name, (labels, categorical) in found.items():
        codes = np.arange(size) % len(labels)
        if categorical:
            dtype = example[name].dtype
            ordered = isinstance(dtype, pd.CategoricalDtype) and bool(dtype.ordered)
            frame[name] = pd.Categorical.from_codes(codes, categories=labels, ordered=ordered)
        else:
            frame[name] = pd.Series(labels)[codes].reset_index(drop=True)
    return frame


def _refuse_whole(design: StreamedDesign) -> None:
    """Refuse terms that would be something else for some rows than for all."""
    columns = design._columns
    for terms in [*design._common.values(), *design._effects]:
        _refuse_terms(terms, columns.predictors.levels)
        if odd := sorted(unsafe_calls(terms.text, design.namespace)):
            raise FormulaError(f"The formula calls {odd[0]}, which may need all rows at once; {_MEND}.")
    state = columns.response.state() or {"transforms": {}}
    if state["transforms"] or columns.response.unsafe_calls():
        raise FormulaError(f"The response {columns.response.text!r} needs all rows at once; {_MEND}.")


def _refuse_terms(terms: CommonTerms, levels: Mapping[str, Any]) -> None:
    if whole := next(iter(terms.state()["transforms"]), None):
        raise FormulaError(f"The term '{whole}' needs all rows at once; {_MEND}.")
    for name in terms.factors:
        if not variables(f"0 + {name}") <= set(levels):
            raise FormulaError(f"The term '{name}' makes levels of numbers, which takes all rows; {_MEND}.")


class _Lookup:
    """Codes of labels by a hash table of one type, instead of a Python call for each label."""

    def __init__(self, index: GroupIndex):
        self.index = index
        labels = index.labels
        kinds: set[Any] = {int} if isinstance(labels, Integers) else {type(label) for label in labels}
        self.kind = kinds.pop() if len(kinds) == 1 else None
        self._table: pd.Index | None = None
        if self.kind in (int, str):
            found = labels.array if isinstance(labels, Integers) else labels
            self._table = pd.Index(found, dtype=np.int64 if self.kind is int else object)

    def codes(self, parts: Sequence[pd.Series], names: Sequence[str]) -> np.ndarray:
        """Codes of some rows, -1 for unknown labels."""
        if len(parts) == 1 and self._table is not None:
            if self.kind is int and parts[0].dtype.kind in "iu":
                return self._table.get_indexer(parts[0].to_numpy(np.int64))
            if self.kind is str:
                return self._table.get_indexer(parts[0].to_numpy(object))
        labels = [group_labels(part, name) for part, name in zip(parts, names, strict=True)]
        return self.index.encode(combine_columns(labels))


class _DesignMoments:
    """Running moments of all columns and of the response."""

    def __init__(self) -> None:
        self._common: dict[str, dict[str, RunningMoments]] = {}
        self._effects: list[dict[str, RunningMoments]] = []
        # y, w y and w n: their means are all that a family's start and the sd take.
        self._y, self._totals = RunningMoments(), RunningMoments()
        self.low, self.high = np.inf, -np.inf

    def add(self, values: Values, response: Response, weights: np.ndarray | None) -> None:
        """Take in some rows."""
        if not self._effects:
            self._effects = [{} for _ in values.effects]
        for parameter, (columns, _) in values.common.items():
            _add(self._common.setdefault(parameter, {}), columns, weights)
        for found, columns in zip(self._effects, values.effects, strict=True):
            _add(found, columns, weights)
        y = response.y.astype(np.float64)
        trials = np.ones_like(y) if response.trials is None else response.trials
        w = np.ones_like(y) if weights is None else weights
        self._y.add(y[:, None], weights)
        self._totals.add(np.stack([y * w, trials * w, y / trials], axis=1))
        self.low, self.high = min(self.low, (y / trials).min()), max(self.high, (y / trials).max())
        self._counted = weights is not None or response.trials is not None

    @property
    def weight(self) -> float:
        return self._y.weight

    @property
    def constant(self) -> bool:
        return bool(self.low == self.high)

    def values(self, n_rows: int) -> Values:
        """Moments in the place of columns."""
        common = {
            parameter: ({name: one.moments() for name, one in found.items()}, np.empty(0))
            for parameter, found in self._common.items()
        }
        return Values(
            n_rows, common, [{n: one.moments() for n, one in found.items()} for found in self._effects]
        )

    def response(self, family: Family, name: str, levels: Sequence[Any]) -> ResponseMoments:
        """Moments of the response."""
        n_rows = round(self._totals.weight)
        mean, count, _ = (np.broadcast_to(value, n_rows) for value in self._totals.moments().center)
        center = float(family.start(mean, count if self._counted else None))
        scale = float(self._y.moments().scale[0]) if family.identity_scale else 1.0
        return ResponseMoments(name, list(levels) or None, n_rows, scale, center)


def _add(
    found: dict[str, RunningMoments], columns: Mapping[str, np.ndarray], weights: np.ndarray | None
) -> None:
    for name, values in columns.items():
        found.setdefault(name, RunningMoments()).add(values, weights)


class _Sample:
    """A uniform random sample of rows of unknown number: those with the smallest random keys."""

    def __init__(self, seed: int):
        self._random = np.random.default_rng(stream(seed, "sample"))
        self._table: pa.Table | None = None
        self._keys, self._places = np.empty(0), np.empty(0, dtype=np.int64)

    def add(self, table: pa.Table, places: np.ndarray) -> None:
        """Take in some rows."""
        keys = self._random.random(len(table))
        limit = self._keys.max() if len(self._keys) >= SAMPLE else 1.0
        chosen = np.flatnonzero(keys <= limit)
        if len(chosen) > SAMPLE:
            chosen = np.sort(chosen[np.argpartition(keys[chosen], SAMPLE)[:SAMPLE]])
        part = table.take(pa.array(chosen))
        held = (
            part
            if self._table is None
            else pa.concat_tables([self._table, part], promote_options="permissive")
        )
        keys, places = np.append(self._keys, keys[chosen]), np.append(self._places, places[chosen])
        if len(keys) > SAMPLE:
            smallest = np.sort(np.argpartition(keys, SAMPLE)[:SAMPLE])
            held, keys, places = held.take(pa.array(smallest)), keys[smallest], places[smallest]
        self._table, self._keys, self._places = held, keys, places

    def table(self) -> tuple[pa.Table, np.ndarray]:
        """The rows, and their positions in the data."""
        if self._table is None:
            raise RuntimeError("no rows have been added")
        return self._table, self._places
