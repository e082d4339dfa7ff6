import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from formulae import design_matrices
from scipy.interpolate import BSpline

from pyro_armed.errors import DataError, FileFormatError, FormulaError
from pyro_armed.predictors import PredictorColumns
from pyro_armed.terms import CommonTerms, unsafe_calls

RNG = np.random.default_rng(0)
N = 60
FRAME = pd.DataFrame(
    {
        "x": RNG.normal(size=N),
        "z": RNG.uniform(1, 2, N),
        "n": RNG.integers(1, 5, N).astype(float),
        "a": RNG.choice(["p", "q", "r"], N),
        "b": RNG.choice(["u", "v"], N),
        "my col": RNG.normal(size=N),
    }
)
CLEAN = PredictorColumns(list(FRAME), False).learn(FRAME)
TEXTS = [
    "x",
    "0 + x + z",
    "a",
    "0 + a",
    "a:b",
    "a * x",
    "0 + a:x",
    "(x + a + b)**2",
    "a / x",
    "np.log(z) + exp(x) + sqrt(z)",
    "scale(x) + center(z) + standardize(n)",
    "scale(np.log(z))",
    "center(scale(x)):b",
    "bs(x, df=5)",
    "bs(x, df=5, degree=2, center=False)",
    "cr(x, df=4) + cc(z, 1.0, df=4) + tp(x, df=5)",
    "poly(x, 3) + poly(z, 2, raw=True)",
    "C(n) + C(a, Sum)",
    "C(n):x",
    "T(a, ref='q') * S(b)",
    "binary(a, 'q') + binary(b, success='v')",
    "I(x > 0) + {x * z - 1}",
    "np.where(x > 0, 'high', 'low')",
    "`my col`:a",
    "np.minimum(x, 0)",
]


def matrix(terms: CommonTerms, frame: pd.DataFrame) -> np.ndarray:
    columns, _ = terms.evaluate(frame)
    return np.concatenate(list(columns.values()), axis=1)


@pytest.mark.parametrize("text", TEXTS)
def test_columns_are_those_of_formulae(text: str) -> None:
    terms = CommonTerms(text, CLEAN)
    reference = design_matrices(text, CLEAN, extra_namespace={"exp": np.exp, "sqrt": np.sqrt}).common
    whole = reference.design_matrix
    start = reference.slices["Intercept"] if "Intercept" in reference.slices else slice(0, 0)
    np.testing.assert_array_equal(matrix(terms, CLEAN), np.delete(whole, np.r_[start], axis=1))
    assert terms.intercept == ("Intercept" in reference.slices)
    for name, labels in terms.labels.items():
        assert len(labels or (name,)) == whole[:, reference.slices[name]].shape[1]
        assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("text", TEXTS)
def test_new_rows_and_rows_after_a_file(text: str) -> None:
    terms = CommonTerms(text, CLEAN)
    again = CommonTerms.from_state(text, json.loads(json.dumps(terms.state())))
    whole = matrix(terms, CLEAN)
    assert again.labels == terms.labels
    assert again.intercept == terms.intercept
    for rows in ([3], [5, 2, 2], list(range(N))):
        part = CLEAN.iloc[rows].reset_index(drop=True)
        for one in (terms, again):
            np.testing.assert_allclose(matrix(one, part), whole[rows], rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(matrix(terms, part), matrix(again, part))


def test_a_spline_is_that_of_scipy() -> None:
    values = matrix(CommonTerms("0 + bs(x, df=6, center=False)", CLEAN), CLEAN)
    x = CLEAN["x"].to_numpy()
    knots = np.r_[[x.min()] * 4, np.quantile(x, [1 / 3, 2 / 3]), [x.max()] * 4]
    np.testing.assert_allclose(values, BSpline.design_matrix(x, knots, 3).toarray(), atol=1e-12)


def test_labels() -> None:
    terms = CommonTerms("x + a + C(n) + a:b + bs(x, df=4)", CLEAN)
    assert terms.labels == {
        "x": (),
        "a": ("q", "r"),
        "C(n)": ("2", "3", "4"),
        "a:b": ("p, v", "q, v", "r, v"),
        "bs(x, df=4)": ("0", "1", "2", "3"),
    }


def test_offsets() -> None:
    terms = CommonTerms("x + offset(2) + offset(np.log(z))", CLEAN)
    columns, offset = terms.evaluate(CLEAN)
    assert list(columns) == ["x"]
    assert terms.has_offset
    np.testing.assert_allclose(offset, np.log(FRAME["z"]) + 2)
    again = CommonTerms.from_state(terms.text, json.loads(json.dumps(terms.state())))
    np.testing.assert_array_equal(again.evaluate(CLEAN.iloc[:3])[1], offset[:3])
    assert not CommonTerms("1", CLEAN).has_offset


@pytest.mark.parametrize("text", ["1", "0", "x - x"])
def test_no_terms(text: str) -> None:
    columns, offset = CommonTerms(text, CLEAN).evaluate(CLEAN)
    assert columns == {}
    assert not offset.any()


def test_the_training_data_are_let_go() -> None:
    terms = CommonTerms("x + a + bs(z, df=4)", CLEAN)
    for component in terms._components.values():
        assert component.value is None
        assert component._intermediate_data is None


def test_own_functions() -> None:
    terms = CommonTerms("half(x) + x:k(z)", CLEAN, {"half": lambda v: v / 2, "k": np.square})
    np.testing.assert_allclose(matrix(terms, CLEAN)[:, 0], FRAME["x"] / 2)
    with pytest.raises(FileFormatError, match="half"):
        CommonTerms.from_state(terms.text, terms.state())
    again = CommonTerms.from_state(terms.text, terms.state(), {"half": lambda v: v / 2, "k": np.square})
    np.testing.assert_array_equal(matrix(again, CLEAN), matrix(terms, CLEAN))


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("nope(x)", FormulaError, r"uses 'nope', .* namespace="),
        ("bs(x)", FormulaError, "Must specify either 'df' or 'knots'"),
        ("log(x)", DataError, "'log\\(x\\)' is missing or infinite in"),
        ("I(z / 0)", DataError, "missing or infinite in 60 rows"),
        ("binary(a)", FormulaError, r"binary\(x, success='yes'\)"),
        ("a:offset(x)", FormulaError, "neither numbers nor labels"),
        ("scale(np.log(z)) + scale(x)", FormulaError, "formulae cannot compare; compute one"),
        ("p(n, 10)", FormulaError, "cannot be"),
        ("np.sum(x)", (FormulaError, DataError), "np.sum"),
        ("np.log(a)", FormulaError, "cannot be evaluated"),
        ("one", DataError, r"'one' has only one level \('k'\)"),
        ("T(a, ref='zz')", FormulaError, "reference not in levels"),
    ],
)
def test_terms_that_fail(text: str, kind: Any, message: str) -> None:
    frame = CLEAN.assign(one=pd.Categorical(["k"] * N, ordered=True))
    with pytest.raises(kind, match=message):
        CommonTerms(text, frame).evaluate(frame)


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FormulaError):
        CommonTerms("bs(x)", CLEAN)
    assert capsys.readouterr().out == ""


def test_levels_that_a_call_has_not_seen() -> None:
    terms = CommonTerms("C(n)", CLEAN)
    new = CLEAN.iloc[:2].assign(n=[9.0, 2.0])
    with pytest.raises(DataError, match=r"'C\(n\)' has levels that training did not have: 9.0"):
        terms.evaluate(new)
    np.testing.assert_array_equal(terms.evaluate(new, "baseline")[0]["C(n)"], [[0, 0, 0], [1, 0, 0]])


@pytest.mark.parametrize(
    ("text", "unsafe"),
    [
        ("np.log(x) + bs(z, df=4) + C(a, Sum) + {x + 1}", set()),
        ("np.fromfile(x)", {"np.fromfile"}),
        ("center(np.fromfile(x))", {"np.fromfile"}),
        ("x:I(np.save(x, z))", {"np.save"}),
        ("offset(os.system(x))", {"os.system"}),
        ("bs(x, df=np.load(z))", {"np.load"}),
        ("{np.load(z) + 1}", {"np.load"}),
        ("np.log.__class__(x)", {"np.log.__class__"}),
        ("f(x)", {"f"}),
    ],
)
def test_functions_that_a_file_must_not_call(text: str, unsafe: set[str]) -> None:
    assert unsafe_calls(text, {}) == unsafe
    assert unsafe_calls(text, dict.fromkeys(unsafe)) == set()


@pytest.mark.parametrize(
    "change",
    [
        lambda s: {},
        lambda s: {**s, "plans": [{"name": "x"}]},
        lambda s: {**s, "plans": 3},
        lambda s: {**s, "transforms": {}},
        lambda s: {**s, "transforms": {**s["transforms"], "zz": []}},
        lambda s: {**s, "transforms": {"scale(x)": [{"mean": {"array": [1], "dtype": "O", "shape": [1]}}]}},
        lambda s: {**s, "plans": [{**s["plans"][0], "parts": [{"component": "other"}]}]},
    ],
)
def test_states_from_a_foreign_file(change: Any) -> None:
    state = json.loads(json.dumps(CommonTerms("0 + scale(x)", CLEAN).state()))
    with pytest.raises(FileFormatError):
        CommonTerms.from_state("0 + scale(x)", change(state))


def test_a_transform_that_a_file_cannot_keep() -> None:
    class Odd:
        __stateful_transform__ = True

        def __init__(self) -> None:
            self.keeps = object()

        def __call__(self, x: Any) -> Any:
            return x

    terms = CommonTerms("odd(x)", CLEAN, {"odd": Odd})
    with pytest.raises(FormulaError, match="keeps a object, which cannot be saved"):
        terms.state()
