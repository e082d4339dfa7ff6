import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pyro_armed import families
from pyro_armed.design import FormulaDesign
from pyro_armed.errors import ArgumentError, DataError, FormulaError
from pyro_armed.formula import parse_formula
from pyro_armed.within_between import WithinBetween, decompose_formula

GAUSSIAN = families.get("gaussian")
FRAME = pd.DataFrame(
    {
        "y": [1.0, 2.0, 4.0, 3.0, 5.0, 9.0],
        "x": [1.0, 3.0, 5.0, 7.0, 9.0, 2.0],
        "z": [1.0, 2.0, 1.0, 5.0, 3.0, 4.0],
        "g": ["a", "a", "b", "b", "b", "c"],
        "h": [1, 2, 1, 2, 1, 2],
    }
)


def test_split_is_that_of_pandas() -> None:
    split = WithinBetween({"x": ("g",)})
    frame = split.learn(FRAME)
    means = FRAME.groupby("g")["x"].transform("mean")
    np.testing.assert_allclose(frame["x_between"], means)
    np.testing.assert_allclose(frame["x_within"], FRAME["x"] - means)
    pd.testing.assert_frame_equal(split.apply(FRAME), frame)
    assert split.derived == {"x_within", "x_between"}
    assert split.sources == ["x", "g"]


def test_known_groups_keep_their_means_and_new_ones_have_their_own() -> None:
    split = WithinBetween({"x": ("g",)})
    split.learn(FRAME)
    new = pd.DataFrame({"x": [10.0, 20.0, 100.0, 300.0], "g": ["a", "b", "new", "new"]})
    stored = WithinBetween.from_config(json.loads(json.dumps(split.to_config())))
    for one in (split, stored):
        frame = one.apply(new)
        assert frame["x_between"].tolist() == [2.0, 7.0, 200.0, 200.0]
        assert frame["x_within"].tolist() == [8.0, 13.0, -100.0, 100.0]


def test_combined_columns_and_tuples_as_labels() -> None:
    split = WithinBetween({"x": ("g", "h")})
    frame = split.learn(FRAME)
    np.testing.assert_allclose(frame["x_between"], FRAME.groupby(["g", "h"])["x"].transform("mean"))
    labels = pd.Series([("a", 1), ("a", 1), ("b", 2), ("b", 2), ("b", 2), ("c", 3)])
    split = WithinBetween({"x": ("g",)})
    frame = split.learn(FRAME.assign(g=labels))
    np.testing.assert_allclose(frame["x_between"], FRAME.groupby("g")["x"].transform("mean"))
    stored = WithinBetween.from_config(json.loads(json.dumps(split.to_config())))
    assert stored.means == split.means


def test_columns_that_are_there_already() -> None:
    with pytest.raises(DataError, match="'x_between', which the data have already"):
        WithinBetween({"x": ("g",)}).learn(FRAME.assign(x_between=1.0))


def test_missing_values_have_no_part_in_the_means() -> None:
    frame = FRAME.assign(x=[1.0, None, None, 7.0, 9.0, None])
    split = WithinBetween({"x": ("g",)})
    between = split.learn(frame)["x_between"].tolist()
    assert between[:5] == [1.0, 1.0, 8.0, 8.0, 8.0]
    assert np.isnan(between[5])
    stored = WithinBetween.from_config(json.loads(json.dumps(split.to_config(), allow_nan=False)))
    np.testing.assert_array_equal(stored.apply(frame)["x_between"], between)


@pytest.mark.parametrize(
    ("argument", "factors"),
    [
        ("x", {"x": ("g",)}),
        (["x", "z"], {"x": ("g",), "z": ("g",)}),
        ({"x": "h"}, {"x": ("h",)}),
        ({"x": "g:h", "z": "`my g`"}, {"x": ("g", "h"), "z": ("my g",)}),
        ({"`my col`": ("g", "h")}, {"my col": ("g", "h")}),
    ],
)
def test_argument(argument: Any, factors: dict[str, tuple[str, ...]]) -> None:
    assert WithinBetween.parse(argument, parse_formula("y ~ x + (1 | g) + (1 | h)")).factors == factors


@pytest.mark.parametrize("argument", [3, [], {}, [3], {"x": 3}, {"x": ""}, {3: "g"}])
def test_arguments_that_are_none(argument: Any) -> None:
    with pytest.raises(ArgumentError, match=r"within_between=.* must be columns"):
        WithinBetween.parse(argument, parse_formula("y ~ x + (1 | g)"))


@pytest.mark.parametrize(
    ("text", "common", "effects"),
    [
        ("y ~ x", "(x_within + x_between)", []),
        ("y ~ z + x:z + (x | g)", "z + (x_within + x_between):z", ["x_within"]),
        ("y ~ (x + z)*a + (0 + x | g)", "((x_within + x_between) + z)*a", ["0 + x_within"]),
        ("y ~ x + I(x**2) + f( x ) + {x}", "(x_within + x_between) + I(x**2) + f( x ) + {x}", []),
        ("y ~ x + xx + x.y + `x x`", "(x_within + x_between) + xx + x.y + `x x`", []),
        ("y ~ x + C(s, 'x') + x2", "(x_within + x_between) + C(s, 'x') + x2", []),
        ("y ~ `x` + (1 | x)", "(x_within + x_between)", ["1"]),
    ],
)
def test_formula(text: str, common: str, effects: list[str]) -> None:
    parsed = decompose_formula(parse_formula(text), ["x"])
    assert parsed.common == common
    assert [term.effects for term in parsed.group_terms] == effects


def test_names_with_spaces() -> None:
    parsed = decompose_formula(parse_formula("y ~ `my x` + (`my x` | g)"), ["my x"])
    assert parsed.common == "(`my x_within` + `my x_between`)"
    assert parsed.group_terms[0].effects == "`my x_within`"


@pytest.mark.parametrize(
    ("formula", "data", "argument", "kind", "message"),
    [
        ("y ~ z + (1 | g)", {}, "x", FormulaError, r"splits 'x', which must be a common effect .* add \+ x"),
        ("y ~ np.log(x) + (1 | g)", {}, "x", FormulaError, "not inside a function"),
        ("y ~ g + (1 | h)", {}, "g", FormulaError, "which holds labels"),
        ("y ~ x", {}, ["x"], FormulaError, "needs a grouping factor"),
        ("y ~ x + x_within + (1 | g)", {}, "x", FormulaError, "'x_within', which the formula uses already"),
        ("y ~ x + (1 | g)", {}, {"x": "nope"}, DataError, "Column 'nope'"),
        ("y ~ x + (1 | g)", {"x": [1, 1, 1, 1, 1, np.inf]}, "x", DataError, "infinite"),
        ("y ~ x + (1 | g)", {"x": [1, 2, 3, 4, 5, None]}, "x", DataError, "'x' has 1 missing value"),
        ("y ~ x + (1 | g)", {"x": [1, 1, 2, 2, 2, 3]}, "x", DataError, "'x_within' has the same value"),
        ("y ~ x + (1 | h)", {"g": ["a"] * 5 + [None]}, {"x": "g"}, DataError, "'g' has 1 missing value"),
    ],
)
def test_what_cannot_be_split(formula: str, data: Any, argument: Any, kind: Any, message: str) -> None:
    with pytest.raises(kind, match=message):
        FormulaDesign([formula], FRAME.assign(**data), GAUSSIAN, within_between=argument)


def test_in_a_design() -> None:
    design = FormulaDesign(["y ~ x + z + (1 + x | g)"], FRAME, GAUSSIAN, within_between=["x"])
    assert [term.name for term in design.spec.mu.terms] == ["x_within", "x_between", "z"]
    assert [term.name for term in design.spec.blocks[0].terms] == ["1", "x_within"]
    split = WithinBetween({"x": ("g",)}).learn(FRAME)
    plain = FormulaDesign(["y ~ x_within + x_between + z + (1 + x_within | g)"], split, GAUSSIAN)
    assert (design.training.batch.columns["mu"] == plain.training.batch.columns["mu"]).all()
    stored = FormulaDesign.from_config(json.loads(json.dumps(design.to_config())))
    new = pd.DataFrame({"x": [3.0, 6.0], "z": [0.0, 0.0], "g": ["a", "new"]})
    for one in (design, stored):
        encoded = one.encode(new)
        assert encoded.batch.slopes["1+x_within|g"].tolist() == [[1.0, 1.0], [1.0, 0.0]]
        with pytest.raises(DataError, match="1 missing label"):
            one.encode(new.assign(g=["a", None]))


def test_missing_values_in_a_design() -> None:
    frame = FRAME.assign(x=[1.0, None, 5.0, 7.0, 9.0, 2.0])
    design = FormulaDesign(["y ~ x + (1 | g)"], frame, GAUSSIAN, within_between=["x"], missing="drop")
    assert design.training.index.tolist() == [0, 2, 3, 4, 5]
    design = FormulaDesign(["y ~ x + (1 | g)"], frame, GAUSSIAN, within_between=["x"], missing="indicator")
    assert [term.name for term in design.spec.mu.terms] == ["x_within", "x_between", "x_within_missing"]
