import json
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_armed import families
from pyro_armed.batch import Batch
from pyro_armed.design import Encoded, FormulaDesign
from pyro_armed.errors import ArgumentError, DataError, FileFormatError, FormulaError
from pyro_armed.spec import ModelSpec

RNG = np.random.default_rng(1)
N = 80
FRAME = pd.DataFrame(
    {
        "y": RNG.normal(5.0, 2.0, N),
        "x": RNG.normal(size=N),
        "z": RNG.uniform(1, 2, N),
        "n": RNG.integers(5, 9, N),
        "k": RNG.integers(0, 6, N),
        "use": RNG.choice(["N", "Y"], N),
        "cat": RNG.choice(list("abc"), N),
        "w": RNG.uniform(0.5, 2, N),
        "g": RNG.integers(0, 7, N),
        "h": RNG.choice(["u", "v", "w"], N),
        "my col": RNG.normal(size=N),
        "été": RNG.normal(size=N),
    }
)


def design(
    formula: str | list[str], frame: Any = FRAME, family: str = "gaussian", **options: Any
) -> FormulaDesign:
    formulas = [formula] if isinstance(formula, str) else formula
    return FormulaDesign(formulas, frame, families.get(family), **options)


def assert_same(first: Encoded, second: Encoded) -> None:
    assert first.index.tolist() == second.index.tolist()
    assert first.new_groups == second.new_groups
    for name in Batch.__dataclass_fields__:
        one, two = getattr(first.batch, name), getattr(second.batch, name)
        if isinstance(one, dict):
            assert list(one) == list(two)
            assert all(torch.equal(one[key], two[key]) for key in one), name
        else:
            assert torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two, name


def stored(made: FormulaDesign, **options: Any) -> FormulaDesign:
    return FormulaDesign.from_config(json.loads(json.dumps(made.to_config())), **options)


CASES: list[tuple[Any, str, dict[str, Any]]] = [
    ("y ~ x + (1 | g)", "gaussian", {}),
    ("y ~ 0 + x + cat + (0 + x | g)", "gaussian", {}),
    ("y ~ x * cat + (1 + x | g) + (1 | h)", "gaussian", {}),
    ("y ~ (1 + x || g/h)", "gaussian", {}),
    ("y ~ bs(z, df=5) + poly(x, 2) + (1 | g:h)", "gaussian", {}),
    ("np.log(y + 10) ~ scale(x) + center(z) + C(n) + (cat | g)", "gaussian", {}),
    ("scale(y) ~ x + (1 | g)", "gaussian", {}),
    ("`y` ~ `my col` + été + (1 | `h`)", "gaussian", {}),
    ("y ~ x + offset(np.log(n)) + (1 | g)", "gaussian", {}),
    ("k ~ x + offset(np.log(n)) + (1 | g)", "poisson", {}),
    ("p(k, n) ~ x + (1 | g)", "binomial", {}),
    ("p(k, 10) ~ x + (1 | g)", "binomial", {}),
    ("use ~ x + (1 | g)", "bernoulli", {}),
    ("use['N'] ~ x + (1 | g)", "bernoulli", {}),
    ("n[6] ~ x + (1 | g)", "bernoulli", {}),
    ("cat ~ x + (1 | g)", "categorical", {}),
    ("n ~ x + (1 | g)", "ordinal", {}),
    ("{z / 3} ~ x + (1 | g)", "beta", {}),
    (["y ~ x + (1 | g)", "sigma ~ z + (1 | h)"], "gaussian", {}),
    ("y ~ x + cat + (1 | g)", "gaussian", {"weights": "w"}),
    ("y ~ x + cat + bs(z, df=4) + (1 + features | g)", "gaussian", {"network": True}),
    ("y ~ x + half(z) + (1 | g)", "gaussian", {"namespace": {"half": lambda v: v / 2}}),
    ("y ~ x + cat + (1 | g)", "gaussian", {"dtype": torch.float32}),
    ("y ~ x + z + (x | g)", "gaussian", {"within_between": ["x"]}),
]


@pytest.mark.parametrize(("formula", "family", "options"), CASES)
def test_training_rows_again_single_rows_and_files(
    formula: Any, family: str, options: dict[str, Any]
) -> None:
    made = design(formula, family=family, **options)
    again = stored(made, namespace=options.get("namespace"))
    assert again.spec == made.spec
    assert (
        again.describe() == made.describe() == "; ".join([formula] if isinstance(formula, str) else formula)
    )
    for one in (made, again):
        assert_same(one.encode(FRAME, response=True), made.training)
    rows = torch.tensor([11, 3, 3])
    part = FRAME.iloc[rows.numpy()].set_axis([9, 9, "a"])
    for one in (made, again):
        encoded = one.encode(part, response=True)
        assert encoded.index.tolist() == [0, 1, 2]
        whole = made.training.batch.select(rows)
        for name in ("columns", "slopes", "codes", "offsets"):
            for key, values in getattr(whole, name).items():
                assert torch.equal(getattr(encoded.batch, name)[key], values)
        for name in ("inputs", "response", "trials", "weights"):
            value = getattr(whole, name)
            assert value is None or torch.equal(getattr(encoded.batch, name), value)
        assert one.encode(part).batch.response is None


@pytest.mark.parametrize(("formula", "family", "options"), CASES)
def test_rows_in_another_order(formula: Any, family: str, options: dict[str, Any]) -> None:
    order = np.random.default_rng(2).permutation(N)
    made, turned = (
        design(formula, family=family, **options),
        design(formula, FRAME.iloc[order], family, **options),
    )
    assert made.spec.groups == turned.spec.groups
    assert made.spec.levels == turned.spec.levels
    one, two = made.training.batch.select(torch.tensor(order)), turned.training.batch
    tolerance = 1e-5 if made.dtype == torch.float32 else 1e-9
    for name in ("inputs", "columns", "slopes", "codes", "offsets", "response", "trials", "weights"):
        torch.testing.assert_close(getattr(one, name), getattr(two, name), rtol=tolerance, atol=tolerance)


def test_terms_and_blocks() -> None:
    made = design("y ~ x + cat + (1 + x | g) + (0 + z | h) + (cat || g:h)")
    mu = made.spec.mu
    assert [(term.name, term.labels) for term in mu.terms] == [("x", ()), ("cat", ("b", "c"))]
    assert mu.intercept
    assert [(block.key, block.correlated) for block in mu.blocks] == [
        ("1+x|g", True),
        ("z|h", False),
        ("1+cat|g:h", False),
    ]
    batch = made.training.batch
    np.testing.assert_allclose(
        batch.columns["mu"][:, 0], (FRAME["x"] - FRAME["x"].mean()) / FRAME["x"].std(ddof=0)
    )
    np.testing.assert_array_equal(batch.slopes["1+x|g"], np.c_[np.ones(N), FRAME["x"]])
    np.testing.assert_array_equal(batch.slopes["z|h"], FRAME[["z"]])
    np.testing.assert_array_equal(batch.codes["g"], FRAME["g"])
    labels = made.spec.group("g:h").labels
    found = [labels[code] for code in batch.codes["g:h"]]
    assert found == [f"{g}:{h}" for g, h in zip(FRAME["g"], FRAME["h"], strict=True)]
    counts = FRAME.groupby("g").size()
    assert (
        dict(zip(made.spec.group("g").labels, made.spec.group("g").counts, strict=True)) == counts.to_dict()
    )
    assert made.spec.response_scale == pytest.approx(FRAME["y"].std(ddof=0))
    assert made.spec.response_center == pytest.approx(FRAME["y"].mean())


def test_without_an_intercept_columns_are_not_centred() -> None:
    made = design("y ~ 0 + x + (1 | g)")
    assert not made.spec.mu.intercept
    np.testing.assert_allclose(made.training.batch.columns["mu"][:, 0], FRAME["x"] / FRAME["x"].std(ddof=0))
    assert design("y ~ 0 + one + (1 | g)", FRAME.assign(one=1.0)).spec.mu.terms[0].scale == (1.0,)


def test_responses() -> None:
    def response(formula: str, family: str) -> np.ndarray:
        values = design(formula, family=family).training.batch.response
        assert values is not None
        return values.numpy()

    np.testing.assert_array_equal(response("use ~ x", "bernoulli"), FRAME["use"] == "Y")
    np.testing.assert_array_equal(response("use['N'] ~ x", "bernoulli"), FRAME["use"] == "N")
    np.testing.assert_array_equal(response("use[N] ~ x", "bernoulli"), FRAME["use"] == "N")
    np.testing.assert_array_equal(response("n[6] ~ x", "bernoulli"), FRAME["n"] == 6)
    np.testing.assert_array_equal(response("{y > 5} ~ x", "bernoulli"), FRAME["y"] > 5)
    np.testing.assert_allclose(response("np.log(z) ~ x", "gaussian"), np.log(FRAME["z"]))
    binomial = design("proportion(k, `n`) ~ x", family="binomial").training.batch
    np.testing.assert_array_equal(binomial.response, FRAME["k"])
    np.testing.assert_array_equal(binomial.trials, FRAME["n"])


def test_trials_of_rows_without_a_response() -> None:
    made = design("p(k, n) ~ x + (1 | g)", family="binomial")
    assert made.encode(FRAME[["x", "g", "n"]]).batch.trials.tolist() == FRAME["n"].tolist()
    assert made.encode(FRAME[["x", "g"]]).batch.trials is None
    constant = design("p(k, 10) ~ x + (1 | g)", family="binomial").encode(FRAME[["x", "g"]].iloc[:2])
    assert constant.batch.trials.tolist() == [10.0, 10.0]
    with pytest.raises(DataError, match="trials of response"):
        made.encode(FRAME.assign(n=0))


def test_a_response_of_new_rows_may_be_constant() -> None:
    for formula, family in (("y ~ x", "gaussian"), ("use ~ x", "bernoulli"), ("use['Y'] ~ x", "bernoulli")):
        made = design(formula, family=family)
        assert made.encode(FRAME.iloc[:1], response=True).batch.response.shape == (1,)


def test_new_groups_are_numbered_after_the_known() -> None:
    made = design("y ~ x + (1 | g) + (1 | h)")
    new = pd.DataFrame({"x": [0.0, 1.0, 2.0], "g": [99, 3, 98], "h": ["u", "q", "q"]})
    encoded = made.encode(new)
    assert encoded.new_groups == {"g": [99, 98], "h": ["q"]}
    assert encoded.batch.codes["g"].tolist() == [7, 3, 8]
    assert encoded.batch.codes["h"].tolist() == [0, 3, 3]


@pytest.mark.parametrize("missing", ["error", "drop", "indicator"])
def test_missing_group_labels_of_new_rows_are_an_error(missing: str) -> None:
    made = design("y ~ x + (1 | g) + (1 | g:h)", missing=missing)
    for change in ({"g": [None, 1]}, {"h": ["u", None]}):
        new = pd.DataFrame({"x": [0.0, 1.0], "g": [1, 2], "h": ["u", "v"], **change})
        with pytest.raises(DataError, match=r"has 1 missing label\. A missing label is not a new group"):
            made.encode(new)


def test_missing_values() -> None:
    frame = FRAME.copy()
    frame["y"] = frame["y"].mask(frame.index == 0)
    frame["x"] = frame["x"].mask(frame.index.isin([1, 2]))
    frame["h"] = frame["h"].mask(frame.index == 3)
    frame["cat"] = frame["cat"].mask(frame.index == 4)
    formula = "y ~ x + cat + (1 | h)"
    message = (
        r"'cat' has 1 .*; 'x' has 2 missing values \(rows 1, 2\); 'h' has 1 .*; 'y' has 1 .* missing='drop'"
    )
    with pytest.raises(DataError, match=message):
        design(formula, frame)
    dropped = design(formula, frame, missing="drop")
    assert dropped.training.index.tolist() == list(range(5, N))
    assert dropped.spec.n_rows == dropped.training.batch.n_rows == N - 5
    filled = design(formula, frame.drop(index=[0, 3]), missing="indicator")
    assert [term.name for term in filled.spec.mu.terms] == ["x", "cat", "cat_missing", "x_missing"]
    assert_same(stored(filled).encode(frame.drop(index=[0, 3]), response=True), filled.training)
    with pytest.raises(
        DataError, match=r"'y' has 1 missing value .* Pass missing='drop' to leave these rows out\.$"
    ):
        design(formula, frame.drop(index=3), missing="indicator")
    with pytest.raises(DataError, match=r"'x' has 1 missing value .* Fill them in or leave"):
        design("y ~ x").encode(pd.DataFrame({"x": [None, 1.0]}))
    with pytest.raises(DataError, match="'z' has 1 missing value"):
        design("y ~ x + z", frame.drop(index=0), missing="indicator").encode(
            pd.DataFrame({"x": [None, 1.0], "z": [1.0, None]})
        )
    with pytest.raises(DataError, match="Every row has a missing value"):
        design("y ~ x", frame.assign(x=np.nan), missing="drop")


def test_unseen_levels() -> None:
    made = design("y ~ cat * x + C(n) + (1 | g)")
    new = FRAME.iloc[:2].assign(cat=["q", "b"])
    with pytest.raises(DataError, match="Column 'cat' has levels that training did not have: 'q'"):
        made.encode(new)
    base = made.encode(new, unseen_levels="baseline").batch
    assert torch.equal(base.columns["mu"][0], made.encode(new.assign(cat="a")).batch.columns["mu"][0])
    with pytest.raises(DataError, match=r"'C\(n\)' has levels"):
        made.encode(FRAME.iloc[:2].assign(n=[99, 5]))
    with pytest.raises(ArgumentError, match="unseen_levels='x'"):
        made.encode(FRAME, unseen_levels="x")


def test_frames_with_odd_indices_and_columns() -> None:
    reference = design("y ~ x + (1 | g)").training
    repeated = FRAME.set_axis(np.zeros(N, dtype=int))
    assert_same(design("y ~ x + (1 | g)", repeated).training, reference)
    assert_same(design("y ~ x + (1 | g)", FRAME.set_index(["g", "h"], drop=False)).training, reference)
    numbered = FRAME[["y", "x", "g"]].set_axis([0, 1, ("g", 2)], axis=1)
    assert torch.equal(
        design("`0` ~ `1` + (1 | `('g', 2)`)", numbered).training.batch.columns["mu"],
        reference.batch.columns["mu"],
    )
    assert_same(design("y ~ x + (1 | g)", FRAME.to_dict("list")).training, reference)


@pytest.mark.parametrize(
    "dtype",
    ["Int64", "int64[pyarrow]", "category", "string", "string[pyarrow]", object, "float32", "Float64"],
)
def test_group_labels_of_any_dtype(dtype: Any) -> None:
    made = design("y ~ x + (1 | g)", FRAME.assign(g=FRAME["g"].astype(dtype)))
    assert made.training.batch.codes["g"].tolist() == FRAME["g"].tolist()
    assert [str(label).removesuffix(".0") for label in made.spec.groups[0].labels] == list("0123456")
    assert_same(stored(made).encode(FRAME.assign(g=FRAME["g"].astype(dtype)), response=True), made.training)


@pytest.mark.parametrize(
    "labels",
    [
        [("a", 1), ("b", 2)],
        [True, False],
        [1.5, 2.5],
        [b"a", b"b"],
        [pd.Timestamp("2020-01-01"), pd.Timestamp("2021-01-01", tz="UTC")],
    ],
)
def test_labels_survive_a_file(labels: list[Any]) -> None:
    column = pd.Series([labels[i % 2] for i in range(N)], dtype=object)
    made = design("y ~ x + (1 | g)", FRAME.assign(g=column))
    again = stored(made)
    assert again.spec.groups == made.spec.groups
    assert_same(again.encode(FRAME.assign(g=column), response=True), made.training)
    assert set(made.spec.groups[0].labels) == set(labels)


def test_labels_that_a_file_cannot_keep() -> None:
    column = pd.Series([frozenset([i % 3]) for i in range(N)])
    made = design("y ~ x + (1 | g)", FRAME.assign(g=column))
    with pytest.raises(DataError, match="Group 'g' has labels of type frozenset, which a file cannot keep"):
        made.to_config()


def test_the_order_of_a_categorical_is_that_of_the_groups() -> None:
    column = pd.Categorical(FRAME["h"], categories=["w", "none", "u", "v"])
    assert design("y ~ x + (1 | h)", FRAME.assign(h=column)).spec.groups[0].labels == ("w", "u", "v")


@pytest.mark.parametrize(
    ("formula", "changes", "options", "kind", "message"),
    [
        ("x + (1 | g)", {}, {}, FormulaError, "has no response"),
        (["y ~ x", "x + z"], {}, {}, FormulaError, "has no response"),
        (["y ~ x", "nu ~ z"], {}, {}, FormulaError, r"models 'nu', .* \(it has: sigma\)"),
        (["y ~ x", "sigma ~ z", "sigma ~ x"], {}, {}, FormulaError, "two formulas for 'sigma'"),
        ("y ~ nope", {}, {}, DataError, "Column 'nope' of the formula 'y ~ nope' is not in the data"),
        ("y ~ x + (1 | gg)", {}, {}, DataError, r"'gg' .* Did you mean 'g'\?"),
        ("yy ~ x", {}, {}, DataError, r"Column 'yy' .* Did you mean 'y'\?"),
        ("y ~ x", {}, {"weights": "ww"}, DataError, "Column 'ww'"),
        ("y ~ f(x)", {}, {}, FormulaError, "namespace="),
        ("y ~ x + (1 | g)", {"g": 1}, {}, DataError, "only one group"),
        ("y ~ x + (1 | g)", {"g": range(N)}, {}, DataError, "noise sd cannot be told apart"),
        ("y ~ x + (1 | g:x)", {}, {}, DataError, "'g:x' has one row"),
        ("y ~ x", {"y": 3.0}, {}, DataError, "constant"),
        ("y ~ x", {"x": 3.0}, {}, DataError, "'x' has the same value in every row"),
        ("y ~ cat", {"cat": "a"}, {}, DataError, "only one level"),
        ("y ~ 0 + x", {"x": 0.0}, {}, DataError, "'x' has the same value"),
        ("y ~ z + (x | g)", {"x": 3.0}, {}, DataError, "slope on 'x' has the same value"),
        ("y ~ x", {"x": [np.inf] + [1.0] * (N - 1)}, {}, DataError, "'x' has 1 infinite value"),
        ("y ~ x", {"y": [np.inf] + [1.0] * (N - 1)}, {}, DataError, "1 infinite value"),
        ("y ~ x + (1 | g) + (x | g)", {}, {}, FormulaError, r"effect 1\|g stands twice"),
        ("y ~ x + (1 | g) + (1 | g/h)", {}, {}, FormulaError, r"effect 1\|g stands twice"),
        ("y ~ x + (0 | g)", {}, {}, FormulaError, r"write \(1 \| g\)"),
        ("y ~ x + (offset(z) | g)", {}, {}, FormulaError, "cannot vary between groups"),
        ("y ~ x + (1 | g:h) + (1 | `g:h`)", {"g:h": FRAME["h"]}, {}, FormulaError, "rename the column"),
        ("y ~ y", {}, {}, DataError, "would both be called 'y'"),
        ("y ~ sigma", {"sigma": FRAME["z"]}, {}, DataError, "would both be called 'sigma'"),
        ("y ~ x + x_raw", {"x_raw": FRAME["z"]}, {}, DataError, "would both be called 'x_raw'"),
        ("y ~ sigma_x", {"sigma_x": FRAME["z"]}, {}, None, ""),
        (["y ~ sigma_x", "sigma ~ x"], {"sigma_x": FRAME["z"]}, {}, DataError, "both be called 'sigma_x'"),
        ("y ~ features + (1 | g)", {}, {}, FormulaError, "'features' needs a network"),
        (
            "y ~ x + features",
            {"features": 1},
            {"network": True},
            FormulaError,
            "rename the column of that name",
        ),
        ("y ~ (1 | g)", {}, {"network": True}, FormulaError, "at least one predictor"),
        ("y + x ~ z", {}, {}, FormulaError, "more than one column"),
        ("np.log(2) ~ z", {}, {}, FormulaError, "names no column"),
        ("y ~ x", {}, {"missing": "ignore"}, ArgumentError, "missing='ignore' is not one of"),
        (
            "y ~ x",
            {"w": -1.0},
            {"weights": "w"},
            DataError,
            "in column 'w' must be finite numbers, zero or more",
        ),
        ("y ~ x", {"w": 0.0}, {"weights": "w"}, DataError, "in column 'w' are all zero"),
        ("y ~ x", {"w": "a"}, {"weights": "w"}, DataError, "in column 'w' must be finite numbers"),
        ("y ~ x", {"x": 1e300 * FRAME["x"]}, {}, DataError, "'x' has numbers too large"),
        ("y ~ x", {"y": 1e300 * FRAME["x"]}, {}, DataError, "response 'y' has numbers too large"),
        (
            "y ~ z + (x | g)",
            {"x": 1e39 * FRAME["x"]},
            {"dtype": torch.float32},
            DataError,
            "for torch.float32",
        ),
        ("cat ~ x", {}, {}, DataError, "not numbers"),
        ("y ~ x", {"x": 1j}, {}, DataError, "complex"),
        ("y ~ x", {"x": pd.Timestamp("2020-01-01")}, {}, DataError, "dates"),
        ("y ~ x + (1 | g)", {"g": [[1]] * N}, {}, DataError, "label of type list"),
    ],
)
def test_bad_input(formula: Any, changes: Any, options: Any, kind: Any, message: str) -> None:
    if kind is None:
        design(formula, FRAME.assign(**changes), **options)
        return
    with pytest.raises(kind, match=message):
        design(formula, FRAME.assign(**changes), **options)


@pytest.mark.parametrize(
    ("formula", "family", "message"),
    [
        ("use['Q'] ~ x", "bernoulli", "names a level that column 'use' does not have"),
        ("cat ~ x", "bernoulli", "has 3 labels"),
        ("k ~ x", "binomial", "has no trials"),
        ("p(k) ~ x", "binomial", "needs successes and trials"),
        ("p(k, n, 2) ~ x", "binomial", "needs successes and trials"),
        ("p(k, 1.2.3) ~ x", "binomial", "is not a number of trials"),
        ("p(k, n + 1) ~ x", "binomial", r"Column 'n \+ 1'"),
        ("p(k, 3) ~ x", "binomial", "not integers from 0 to their trials"),
        ("p(k, n) ~ x", "gaussian", "trials are for family 'binomial'"),
        ("y ~ x", "poisson", "not counts"),
    ],
)
def test_bad_responses(formula: str, family: str, message: str) -> None:
    with pytest.raises((DataError, FormulaError, ArgumentError), match=message):
        design(formula, family=family)


def test_bad_frames() -> None:
    with pytest.raises(DataError, match="has no rows"):
        design("y ~ x", FRAME.iloc[:0])
    with pytest.raises(DataError, match="must be a pandas DataFrame"):
        design("y ~ x", 3)
    with pytest.raises(DataError, match="'x' stands 2 times"):
        design("y ~ x", pd.concat([FRAME, FRAME[["x"]]], axis=1))
    with pytest.raises(DataError, match="columns of 2 levels"):
        design("y ~ x", pd.concat({"a": FRAME}, axis=1))
    with pytest.raises(DataError, match="Column 'g'"):
        design("y ~ x + (1 | g)").encode(FRAME[["x"]])
    with pytest.raises(DataError, match="Column 'y'"):
        design("y ~ x").encode(FRAME[["x"]], response=True)


@pytest.mark.parametrize(
    ("formula", "changes", "options"),
    [
        ("y ~ x + (1 | g)", {"g": range(N)}, {"weights": "w"}),
        ("y ~ x + (0 + x | g)", {"g": range(N)}, {}),
        (["y ~ x + (1 | g)", "sigma ~ z"], {"g": range(N)}, {}),
    ],
)
def test_groups_of_one_row_that_can_be_told_from_noise(formula: Any, changes: Any, options: Any) -> None:
    assert design(formula, FRAME.assign(**changes), **options).spec.groups[0].size == N


def test_groups_of_one_row_with_counts() -> None:
    assert design("k ~ x + (1 | g)", FRAME.assign(g=range(N)), "poisson").spec.groups[0].size == N


def test_combinations_without_rows_do_not_stop_an_interaction() -> None:
    frame = FRAME.assign(a=FRAME["cat"], b=FRAME["cat"].map({"a": "p", "b": "p", "c": "q"}))
    assert design("y ~ a:b + (1 | g)", frame).training.batch.columns["mu"].isfinite().all()


def test_functions_from_a_file_are_not_called() -> None:
    made = design("y ~ x + (1 | g)")
    for formula in (
        "y ~ np.fromfile(x) + (1 | g)",
        "np.load(y) ~ x + (1 | g)",
        "y ~ x + (np.save(x, x) | g)",
    ):
        config = json.loads(json.dumps(made.to_config()))
        config["formulas"] = [formula]
        with pytest.raises(FileFormatError, match=r"calls np\.(fromfile|load|save); pass namespace="):
            FormulaDesign.from_config(config)
    own = design("y ~ half(x)", namespace={"half": lambda v: v / 2})
    with pytest.raises(FileFormatError, match="calls half; pass namespace="):
        stored(own)


@pytest.mark.parametrize("key", ["formulas", "spec", "common", "effects", "predictors", "dtype", "response"])
def test_files_with_something_missing(key: str) -> None:
    config = design("y ~ scale(x) + (1 + cat | g)").to_config()
    del config[key]
    with pytest.raises(FileFormatError, match="cannot be read"):
        FormulaDesign.from_config(config)


def test_files_whose_parts_do_not_belong_together() -> None:
    config = design("y ~ scale(x) + (1 | g)").to_config()
    other = design("y ~ bs(z, df=4) + (1 | g)").to_config()
    with pytest.raises(FileFormatError):
        FormulaDesign.from_config({**config, "common": other["common"]})
    with pytest.raises(FileFormatError):
        FormulaDesign.from_config({**config, "effects": []})


def test_nothing_warns_prints_or_shares_memory(capfd: pytest.CaptureFixture[str]) -> None:
    frame = FRAME.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = design("y ~ x + np.log(z) + (1 + x | g)", frame, weights="w")
        with pytest.raises(DataError):
            design("y ~ np.log(x - 10)", frame)
    before = made.training.batch.response.clone()
    made.training.batch.response.add_(1)
    assert frame["y"].tolist() == FRAME["y"].tolist()
    assert not torch.equal(before, made.training.batch.response)
    assert capfd.readouterr() == ("", "")


def test_specification_goes_through_json() -> None:
    made = design(["y ~ x * cat + (1 + x | g) + (1 | h)", "sigma ~ z"])
    config = json.loads(json.dumps(made.spec.to_config()))
    assert ModelSpec.from_config(config) == made.spec


def test_a_hundred_thousand_groups() -> None:
    """A dense rows x groups matrix would need 160 GB."""
    rng = np.random.default_rng(0)
    groups = rng.permutation(np.arange(200_000) % 100_000)
    frame = pd.DataFrame({"y": rng.normal(size=200_000), "x": rng.normal(size=200_000), "g": groups})
    made = design("y ~ x + (1 + x | g)", frame)
    assert made.spec.groups[0].size == 100_000
    assert made.training.batch.codes["g"].tolist() == groups.tolist()


def test_a_weight_of_two_is_the_row_twice_in_means_sds_and_priors() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "y": rng.normal(size=30),
            "x": rng.normal(size=30),
            "g": np.arange(30) % 5,
            "w": np.arange(30) % 3 + 1.0,
        }
    )
    doubled = frame.loc[frame.index.repeat(frame["w"].astype(int))]
    formula = ["y ~ x + (1 + x | g)"]
    weighted = FormulaDesign(formula, frame, families.get("gaussian"), weights="w").spec
    repeated = FormulaDesign(formula, doubled, families.get("gaussian")).spec
    assert weighted.response_scale == pytest.approx(repeated.response_scale, rel=1e-12)
    assert weighted.response_center == pytest.approx(repeated.response_center, rel=1e-12)
    for ours, theirs in zip(weighted.mu.terms, repeated.mu.terms, strict=True):
        assert ours.center == pytest.approx(theirs.center, rel=1e-12)
        assert ours.scale == pytest.approx(theirs.scale, rel=1e-12)
    slope, same = weighted.blocks[0].terms[1], repeated.blocks[0].terms[1]
    assert slope.scale == pytest.approx(same.scale, rel=1e-12)
