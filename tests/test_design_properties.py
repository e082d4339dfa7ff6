"""Whatever the frame: a design is built and gives the same rows again, or it is refused with a sentence."""

import datetime
import json
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_armed import families
from pyro_armed.design import FormulaDesign
from pyro_armed.errors import ArmedError
from pyro_armed.formula import quote

N = 12

NAMES = st.one_of(
    st.sampled_from(
        ["x", "_x", "my col", "été", "2x", "a.b", "x:z", "True", "features", "Intercept", "y~x", "'"]
    ),
    st.text(min_size=1, max_size=4).filter(lambda name: "`" not in name),
)


def of_length(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(values, min_size=N, max_size=N)


FLOATS = st.floats(-1e6, 1e6, allow_subnormal=False)
MAYBE = st.sampled_from([None, np.nan, pd.NA])
TEXT = st.text(max_size=2)
COLUMNS: st.SearchStrategy[Any] = st.one_of(
    of_length(st.integers(-3, 3)).map(pd.Series),
    of_length(FLOATS).map(pd.Series),
    of_length(st.floats()).map(pd.Series),
    of_length(st.booleans()).map(pd.Series),
    of_length(TEXT).map(lambda v: pd.Series(v, dtype=object)),
    of_length(TEXT).map(lambda v: pd.Series(v, dtype="string")),
    of_length(st.sampled_from("abc")).map(lambda v: pd.Series(pd.Categorical(v, categories=list("cabz")))),
    of_length(st.sampled_from("abc")).map(
        lambda v: pd.Series(v, dtype=pd.ArrowDtype(pa.dictionary(pa.int32(), pa.string())))
    ),
    of_length(st.one_of(st.none(), st.integers(0, 2))).map(lambda v: pd.Series(v, dtype="Int64")),
    of_length(st.one_of(st.none(), st.booleans())).map(lambda v: pd.Series(v, dtype="boolean")),
    of_length(st.one_of(st.none(), FLOATS)).map(lambda v: pd.Series(v, dtype="double[pyarrow]")),
    of_length(st.one_of(st.none(), TEXT)).map(lambda v: pd.Series(v, dtype="string[pyarrow]")),
    of_length(st.decimals(-9, 9, places=1)).map(lambda v: pd.Series(v, dtype=object)),
    of_length(st.dates()).map(lambda v: pd.Series(v, dtype=object)),
    of_length(st.datetimes(datetime.datetime(1900, 1, 1), datetime.datetime(2100, 1, 1))).map(pd.Series),
    of_length(st.complex_numbers(max_magnitude=9)).map(pd.Series),
    of_length(
        st.one_of(
            st.integers(), FLOATS, TEXT, MAYBE, st.booleans(), st.binary(max_size=2), st.just(Decimal(1))
        )
    ).map(lambda v: pd.Series(v, dtype=object)),
    of_length(
        st.one_of(st.tuples(st.integers(0, 1), TEXT), st.frozensets(st.integers(0, 2)), st.just([1]))
    ).map(lambda v: pd.Series(v, dtype=object)),
)
RIGHT_SIDES = st.sampled_from(
    [
        "{x} + (1 | {g})",
        "{x} * {z} + (1 + {x} | {g})",
        "0 + {x} + {z} + (0 + {z} || {g})",
        "{x}:{z} + (1 | {g}) + (1 | {h})",
        "C({x}) + (1 | {g}/{h})",
        "scale({x}) + bs({z}, df=4) + (1 | {g}:{h})",
        "np.log({x}) + I({z} > 0) + (1 | {g})",
        "{x} + offset({z}) + ({x} | {g})",
    ]
)
LEFT_SIDES = st.sampled_from(["{y}", "np.exp({y})", "p({y}, {z})", "{y}['a']", "{{{y} > 0}}"])


@settings(max_examples=150)
@given(
    left=LEFT_SIDES,
    right=RIGHT_SIDES,
    names=st.lists(NAMES, min_size=5, max_size=5, unique=True),
    columns=st.lists(COLUMNS, min_size=5, max_size=5),
    family=st.sampled_from(
        ["gaussian", "bernoulli", "poisson", "binomial", "categorical", "ordinal", "beta"]
    ),
    missing=st.sampled_from(["error", "drop", "indicator"]),
    network=st.booleans(),
    sane=st.sets(st.integers(0, 4)),
)
def test_any_frame_builds_or_is_refused(
    left: str,
    right: str,
    names: list[str],
    columns: list[pd.Series],
    family: str,
    missing: str,
    network: bool,
    sane: set[int],
) -> None:
    # Columns that are in order let the odd ones get further.
    good = [
        pd.Series(np.tile([0.0, 1.0], N // 2)),
        pd.Series(np.linspace(0.1, 2, N)),
        pd.Series(np.linspace(1, 3, N) ** 2),
        pd.Series(np.arange(N) % 3),
        pd.Series(list("aabbcc") * 2),
    ]
    frame = pd.concat(
        [(good[i] if i in sane else columns[i]).rename(name) for i, name in enumerate(names)], axis=1
    )
    parts = dict(zip("yxzgh", map(quote, names), strict=True))
    formula = f"{left} ~ {right}".format(**parts)
    try:
        design = FormulaDesign(
            [formula], frame, families.get(family), missing=missing, network=network, linear_path=network
        )
        encoded = design.encode(frame.iloc[design.training.index], response=True)
    except ArmedError as error:
        assert len(str(error)) > 20  # noqa: PT017
        return
    training = design.training.batch
    for name in ("inputs", "response", "trials"):
        one, two = getattr(training, name), getattr(encoded.batch, name)
        assert one is two is None or torch.equal(one, two)
    for name in ("columns", "slopes", "codes", "offsets"):
        one, two = getattr(training, name), getattr(encoded.batch, name)
        assert list(one) == list(two)
        assert all(torch.equal(one[key], two[key]) for key in one)
        assert all(values.isfinite().all() for values in one.values())
    assert training.response is not None
    assert training.response.isfinite().all()
    try:
        config = json.loads(json.dumps(design.to_config()))
    except ArmedError:
        return
    again = FormulaDesign.from_config(config)
    assert again.spec == design.spec
    for name, values in again.encode(frame.iloc[design.training.index]).batch.columns.items():
        assert torch.equal(values, training.columns[name])


@settings(max_examples=200)
@given(st.text("xzg01()|:/+-*~`'\"[]{},= .\n", max_size=25))
def test_any_formula_is_read_or_refused(text: str) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"y": rng.normal(size=N), "x": rng.normal(size=N), "z": rng.normal(size=N), "g": [0, 1, 2] * 4}
    )
    try:
        FormulaDesign([f"y ~ {text}"], frame, families.get("gaussian"))
    except ArmedError as error:
        assert len(str(error)) > 20  # noqa: PT017
