import json
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pyro_armed import families
from pyro_armed.arrays import ArrayDesign
from pyro_armed.batch import Batch
from pyro_armed.design import Encoded, FormulaDesign
from pyro_armed.effects import RandomEffects
from pyro_armed.errors import ArgumentError, ArmedError, DataError, FileFormatError

GAUSSIAN = families.get("gaussian")
RNG = np.random.default_rng(0)
N = 40
X = RNG.normal(2.0, 3.0, (N, 3))
Y = RNG.normal(size=N)
SITE = RNG.choice(list("abcd"), N)
IMAGES = RNG.normal(size=(N, 1, 5, 4)).astype(np.float32)
EFFECTS = [RandomEffects("site")]


def design(x: Any = X, y: Any = Y, groups: Any = None, effects: Any = EFFECTS, **options: Any) -> ArrayDesign:
    family = options.pop("family", GAUSSIAN)
    options.setdefault("network", False)
    return ArrayDesign(x, y, {"site": SITE} if groups is None else groups, family, effects, **options)


def assert_same(first: Encoded, second: Encoded) -> None:
    assert first.index.tolist() == second.index.tolist()
    assert first.new_groups == second.new_groups
    for name in Batch.__dataclass_fields__:
        one, two = getattr(first.batch, name), getattr(second.batch, name)
        for a, b in zip(
            one.values() if isinstance(one, dict) else [one],
            two.values() if isinstance(two, dict) else [two],
            strict=True,
        ):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, name


def stored(design: ArrayDesign) -> ArrayDesign:
    return ArrayDesign.from_config(json.loads(json.dumps(design.to_config())))


def test_without_a_network_it_is_the_formula() -> None:
    effects = [RandomEffects("site", slopes=[1, "x2"], correlated=True)]
    arrays = design(effects=effects)
    frame = pd.DataFrame({"y": Y, "site": SITE, "x0": X[:, 0], "x1": X[:, 1], "x2": X[:, 2]})
    formula = FormulaDesign(["y ~ x0 + x1 + x2 + (1 + x1 + x2 | site)"], frame, GAUSSIAN)
    assert arrays.spec == formula.spec
    assert_same(arrays.training, formula.training)
    assert arrays.training.batch.inputs is None


def test_columns_are_standardised_for_a_network() -> None:
    x = np.c_[X, RNG.integers(0, 2, N), np.full(N, 7.0)]
    batch = design(x, network=True, dtype=torch.float32).training.batch
    assert batch.inputs is not None
    assert batch.inputs.dtype == torch.float32
    assert batch.columns == {}
    inputs = batch.inputs.double().numpy()
    np.testing.assert_allclose(inputs[:, :3], (X - X.mean(0)) / X.std(0), atol=1e-6)
    np.testing.assert_array_equal(inputs[:, 3], x[:, 3])
    assert not inputs[:, 4].any()
    raw = design(x, network=True, standardize=False).training.batch.inputs
    np.testing.assert_array_equal(raw, x)


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, lambda x: x.tolist()])
def test_images_are_left_alone(kind: Any) -> None:
    images = design(kind(IMAGES), network=True, dtype=torch.float32)
    assert images.spec.mu.terms == ()
    assert images.spec.mu.network
    np.testing.assert_array_equal(images.training.batch.inputs, IMAGES)
    assert images.shape == (1, 5, 4)
    new = images.encode(IMAGES[:2], {"site": ["zz", SITE[1]]})
    assert new.new_groups == {"site": ["zz"]}
    np.testing.assert_array_equal(new.batch.inputs, IMAGES[:2])
    assert_same(stored(images).encode(IMAGES[:2], {"site": ["zz", SITE[1]]}), new)


@pytest.mark.parametrize(
    "x",
    [
        torch.tensor(X, requires_grad=True),
        torch.tensor(X).bfloat16(),
        X.astype(np.float16),
        (X * 10).astype(np.int8),
        pd.DataFrame(X).astype("Float64"),
        pd.DataFrame(X).astype("double[pyarrow]"),
        X.tolist(),
        [torch.tensor(row) for row in X],
        np.asfortranarray(X),
        X > 0,
    ],
)
def test_inputs_of_any_type(x: Any) -> None:
    batch = design(x, columns=["a", "b", "c"]).training.batch
    assert batch.columns["mu"].dtype == torch.float64
    np.testing.assert_allclose(batch.columns["mu"].mean(0), 0.0, atol=1e-9)


def test_no_inputs() -> None:
    empty = design(None)
    assert empty.spec.mu.terms == ()
    assert empty.training.batch.columns == {}
    assert empty.encode(None, {"site": ["a", "q"]}).batch.codes["site"].tolist() == [0, 4]
    assert empty.encode(None, {"site": ["a"]}, [1.0]).batch.response is not None


def test_slopes_are_raw_columns() -> None:
    effects = [
        RandomEffects("site", intercept=False, slopes=[2]),
        RandomEffects("site", slopes=["a"], parameter="sigma"),
        RandomEffects("lab", slopes=["c", 0], correlated=True),
    ]
    lab = np.arange(N) % 3
    made = design(groups={"site": SITE, "lab": lab}, effects=effects, columns=["a", "b", "c"])
    assert [predictor.parameter for predictor in made.spec.predictors] == ["mu", "sigma"]
    assert [block.key for block in made.spec.blocks] == ["c|site", "1+c+a|lab", "sigma_1+a|site"]
    assert [block.correlated for block in made.spec.blocks] == [False, True, False]
    slopes = made.training.batch.slopes
    np.testing.assert_array_equal(slopes["c|site"], X[:, [2]])
    np.testing.assert_array_equal(slopes["1+c+a|lab"], np.c_[np.ones(N), X[:, [2, 0]]])
    np.testing.assert_array_equal(slopes["sigma_1+a|site"], np.c_[np.ones(N), X[:, 0]])
    np.testing.assert_allclose(made.spec.blocks[0].terms[0].scale, X[:, 2].std())
    new = made.encode(X[:4], {"site": SITE[:4], "lab": lab[:4]}, Y[:4])
    assert_same(stored(made).encode(X[:4], {"site": SITE[:4], "lab": lab[:4]}, Y[:4]), new)


def test_slopes_on_features() -> None:
    block = design(IMAGES, effects=[RandomEffects("site", slopes="features", correlated=True)], network=True)
    terms = block.spec.blocks[0].terms
    assert [term.name for term in terms] == ["1", "features"]
    assert not block.spec.blocks[0].correlated
    assert block.training.batch.slopes["1+features|site"].shape == (N, 1)


def test_groups_without_effects_are_encoded_for_the_adversary() -> None:
    batch = np.arange(N) % 5
    made = design(groups={"site": SITE, "batch": batch})
    assert [group.name for group in made.spec.groups] == ["site", "batch"]
    assert made.training.batch.codes["batch"].tolist() == batch.tolist()
    assert list(made.encode(X[:2], {"site": SITE[:2]}).batch.codes) == ["site"]
    assert design(groups={"batch": batch}, effects=[]).spec.blocks == ()
    assert design(groups={}, effects=[]).spec.groups == ()


def test_groups_in_a_frame_and_in_the_order_of_a_categorical() -> None:
    made = design(groups=pd.DataFrame({"site": pd.Categorical(SITE, categories=list("dcbaz"))}))
    assert made.spec.groups[0].labels == ("d", "c", "b", "a")
    assert design(effects=RandomEffects("site")).spec == design().spec


def test_weights_offset_and_trials() -> None:
    trials = RNG.integers(3, 9, N)
    successes = RNG.integers(0, 4, N)
    made = design(
        y=successes, family=families.get("binomial"), weights=np.arange(N), offset=X[:, 0], trials=trials
    )
    batch = made.training.batch
    assert made.spec.mu.offset
    np.testing.assert_array_equal(batch.weights, np.arange(N))
    np.testing.assert_array_equal(batch.offsets["mu"], X[:, 0])
    np.testing.assert_array_equal(batch.trials, trials)
    new = made.encode(X[:2], {"site": SITE[:2]}, offset=[0, 1], trials=4)
    assert new.batch.trials.tolist() == [4, 4]
    assert new.batch.offsets["mu"].tolist() == [0, 1]
    assert new.batch.weights is None
    with pytest.raises(DataError, match="trained with an offset"):
        made.encode(X[:2], {"site": SITE[:2]})
    with pytest.raises(DataError, match="trained without an offset"):
        design().encode(X[:2], {"site": SITE[:2]}, offset=[0, 1])


def test_training_rows_are_encoded_again_exactly() -> None:
    for made, x in (
        (design(), X),
        (design(network=True), X),
        (design(IMAGES, network=True), IMAGES),
        (design(y=Y > 0, family=families.get("bernoulli")), X),
        (design(y=np.where(Y > 0, "yes", "no"), family=families.get("bernoulli")), X),
    ):
        y = Y if made.family.name == "gaussian" else (Y > 0)
        if made.spec.levels:
            y = np.where(Y > 0, "yes", "no")
        assert_same(made.encode(x, {"site": SITE}, y), made.training)
        assert_same(stored(made).encode(x, {"site": SITE}, y), made.training)


def test_one_row_and_a_constant_response_can_be_encoded() -> None:
    assert design().encode(X[:1], {"site": ["a"]}, [0.0]).batch.size == 1


def test_rows_with_missing_values() -> None:
    x, y, site = X.copy(), Y.copy(), SITE.astype(object)
    x[1, 2], x[2, 0], y[3], site[4] = np.nan, np.nan, np.nan, None
    message = r"x in 2 rows, y in 1 row, group 'site' in 1 row\. Fill them in, or pass missing='drop'"
    with pytest.raises(DataError, match=message):
        design(x, y, {"site": site})
    made = design(x, y, {"site": site}, missing="drop", weights=np.r_[np.ones(N - 1), np.nan])
    assert made.training.index.tolist() == [0, *range(5, N - 1)]
    assert made.training.batch.n_rows == made.spec.n_rows == N - 5
    with pytest.raises(DataError, match="Group 'site' has 1 missing label"):
        made.encode(X, {"site": site})
    assert made.encode(x, {"site": SITE}).index.tolist() == [0, *range(3, N)]
    with pytest.raises(DataError, match="nothing is left"):
        design(X * np.nan, missing="drop")
    masked = np.ma.masked_array(X, mask=np.isnan(x))
    assert len(design(masked, missing="drop").training.index) == N - 2


def test_the_users_array_is_not_shared() -> None:
    x = X.copy()
    inputs = design(x, network=True, standardize=False).training.batch.inputs
    assert inputs is not None
    x[:] = 0.0
    np.testing.assert_array_equal(inputs, X)


def test_frames_are_read_by_name() -> None:
    frame = pd.DataFrame(X, columns=["age", "dose", "time"])
    made = design(frame)
    assert [term.name for term in made.spec.mu.terms] == ["age", "dose", "time"]
    turned = frame[["time", "age", "dose"]]
    assert_same(made.encode(turned, {"site": SITE}, Y), made.training)
    with pytest.raises(DataError, match="x has the columns a, b, c; training had age, dose, time"):
        made.encode(pd.DataFrame(X, columns=["a", "b", "c"]), {"site": SITE})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"y": Y[:-1]}, "x has 40 rows and y has 39"),
        ({"y": Y[:, None] * [[1, 2]]}, r"y has shape \(40, 2\)"),
        ({"y": 3.0}, r"y has shape \(\)"),
        ({"y": None}, "y is None"),
        ({"y": np.r_[Y[:-1], np.inf]}, "1 infinite value"),
        ({"y": np.ones(N)}, "constant"),
        ({"y": SITE}, "not numbers"),
        ({"x": 3.0}, "x is a single number"),
        ({"x": X[:, 0]}, r"such as x\[:, None\]"),
        ({"x": X[:, 0], "network": True}, r"such as x\[:, None\]"),
        ({"x": IMAGES}, r"x has shape \(40, 1, 5, 4\); without a network it must be two-dimensional"),
        ({"x": np.empty((0, 3))}, "empty"),
        ({"x": np.empty((N, 0))}, "empty"),
        ({"x": []}, "empty"),
        ({"x": X + 1j}, "x is complex"),
        ({"x": torch.tensor(X) * 1j}, "x is complex"),
        ({"x": X.astype(object)}, "x has dtype object"),
        ({"x": X.astype(str)}, "x has dtype <U"),
        ({"x": [[1, 2], [3]]}, "x cannot be made an array"),
        ({"x": np.where(X > 5, np.inf, X)}, "x has infinite values in"),
        ({"x": pd.DataFrame({"a": SITE})}, "Column 'a' of x holds labels"),
        ({"x": torch.tensor(X).to_sparse()}, "x "),
        ({"x": np.c_[X, np.ones(N)]}, "predictor 'x3' has the same value"),
        ({"weights": np.ones(3)}, "x has 40 rows and weights has 3"),
        ({"weights": -np.ones(N)}, "weights weights= must be finite numbers, zero or more"),
        ({"weights": np.zeros(N)}, "all zero"),
        ({"weights": 2.0}, "weights is a single number"),
        ({"weights": SITE}, "weights has dtype <U"),
        ({"weights": np.ones((N, 2))}, r"weights has shape \(40, 2\)"),
        ({"offset": 2.0}, "offset is a single number"),
        ({"offset": np.full(N, np.inf)}, "offset has 40 infinite values"),
        ({"groups": {"site": SITE[:5]}}, "x has 40 rows and group 'site' has 5"),
        ({"groups": {"site": np.zeros((N, 2))}}, r"labels of group 'site' have shape \(40, 2\)"),
        ({"groups": {"site": [{}] * N}}, "Group 'site' has a label of type dict"),
        ({"groups": {"site": ["a"] * N}}, "only one group"),
        ({"groups": {"site": np.arange(N)}}, "noise sd cannot be told apart"),
        ({"columns": ["y", "b", "c"]}, "would both be called 'y'"),
        ({"columns": ["sigma", "b", "c"]}, "would both be called 'sigma'"),
    ],
)
def test_bad_data(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        design(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"x": None, "network": True}, "A network needs inputs"),
        ({"missing": "indicator"}, "missing='indicator' is for formulas"),
        ({"missing": "skip"}, "is not one of"),
        ({"columns": ["a"]}, "columns= has 1 name and x has 3 columns"),
        ({"columns": ["a", "b", "a"]}, "'a' twice"),
        ({"columns": "abc"}, "must be a list of names"),
        ({"columns": [1, 2, 3]}, "must be a list of names"),
        ({"x": IMAGES, "columns": ["a"], "network": True}, "two-dimensional x; leave it out"),
        ({"groups": [SITE]}, "groups must be a dictionary"),
        ({"groups": {3: SITE}}, "groups must be a dictionary"),
        ({"effects": ["site"]}, "random_effects must be a list"),
        ({"effects": 3}, "random_effects must be a list"),
        ({"effects": [RandomEffects("lab")]}, r"'lab'\) names no grouping factor; groups has: 'site'"),
        ({"effects": [RandomEffects("site", slopes="features")]}, "needs a network"),
        ({"effects": [RandomEffects("site", parameter="nu")]}, "'nu'; family 'gaussian' has: 'mu', 'sigma'"),
        ({"effects": [RandomEffects("site", slopes=[3])]}, "a slope on 3; x has the columns 0 to 2: x0, x1"),
        ({"effects": [RandomEffects("site", slopes=[-1])]}, "a slope on -1"),
        ({"effects": [RandomEffects("site", slopes=[True])]}, "a slope on True"),
        ({"effects": [RandomEffects("site", slopes=["q"])]}, "a slope on 'q'"),
        ({"effects": [RandomEffects("site", slopes=[0, "x0"])]}, "a slope on 'x0' twice"),
        ({"effects": [RandomEffects("site", slopes=[0])], "x": IMAGES, "network": True}, "two-dimensional x"),
        ({"effects": [RandomEffects("site")] * 2}, "gives group 'site' an intercept twice"),
        (
            {"effects": [RandomEffects("site", False, [1]), RandomEffects("site", slopes=["x1"])]},
            "gives group 'site' a slope on 'x1' twice",
        ),
        ({"trials": 3}, "trials are for family 'binomial'"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        design(**options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X[:, :2], {"site": SITE}), r"rows of shape \(2,\), in training it had rows of shape \(3,\)"),
        ((None, {"site": SITE}), "x has no inputs, in training it had rows of shape"),
        ((IMAGES, {"site": SITE}), "must be two-dimensional"),
        (
            (X, {"site": SITE, "lab": SITE}),
            r"groups has 'lab', which training did not have \(it had: 'site'\)",
        ),
        ((X, {}), "groups lacks 'site'"),
        ((X, None), "groups lacks 'site'"),
        ((X, {"site": SITE[:3]}), "x has 40 rows and group 'site' has 3"),
        ((X, {"site": [None] * N}), "40 missing labels"),
        ((X * np.nan, {"site": SITE}), "x in 40 rows. Fill them in, or leave these rows out"),
        ((X, {"site": SITE}, Y[:3]), "x has 40 rows and y has 3"),
    ],
)
def test_bad_new_rows(arguments: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        design().encode(*arguments)


def test_new_images_of_another_shape() -> None:
    with pytest.raises(DataError, match=r"shape \(1, 4, 5\), in training it had rows of shape \(1, 5, 4\)"):
        design(IMAGES, network=True).encode(IMAGES.transpose(0, 1, 3, 2), {"site": SITE})


def test_description() -> None:
    assert design().describe().startswith("y from inputs of shape (N, 3); RandomEffects(group='site'")
    assert design(None, groups={}, effects=[]).describe() == "y from no inputs; no random effects"
    assert stored(design()).describe() == design().describe()


def test_a_foreign_file() -> None:
    with pytest.raises(FileFormatError, match="cannot be read"):
        ArrayDesign.from_config({"spec": {}})
    config = design().to_config()
    with pytest.raises(FileFormatError, match="cannot be read"):
        ArrayDesign.from_config({**config, "columns": None})
    with pytest.raises(DataError, match="which a file cannot keep"):
        design(groups={"site": [frozenset([i % 3]) for i in range(N)]}).to_config()


ARRAYS = hnp.arrays(
    dtype=st.sampled_from(["f8", "f4", "f2", "i8", "u1", "?", "U2", "c8", "M8[D]", "O"]),
    shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6),
)


@given(
    x=ARRAYS,
    y=st.one_of(ARRAYS, st.just(np.arange(6.0))),
    labels=st.one_of(ARRAYS, st.just(np.arange(6) % 2)),
    network=st.booleans(),
    missing=st.sampled_from(["error", "drop"]),
)
def test_any_array_builds_or_is_refused_with_a_sentence(
    x: np.ndarray, y: np.ndarray, labels: np.ndarray, network: bool, missing: str
) -> None:
    try:
        made = design(x, y, {"site": labels}, network=network, missing=missing)
    except ArmedError:
        return
    kept = made.training.index
    again = made.encode(x[kept], {"site": labels[kept]}, y[kept])
    assert_same(again, replace(made.training, index=np.arange(len(kept))))


@given(st.permutations(range(N)))
def test_rows_in_another_order(order: list[int]) -> None:
    made, turned = design(), design(X[order], Y[order], {"site": SITE[order]})
    assert made.spec.groups == turned.spec.groups
    one, two = made.training.batch.select(torch.tensor(order)), turned.training.batch
    torch.testing.assert_close(one.columns, two.columns, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(one.slopes, two.slopes)
    assert torch.equal(one.codes["site"], two.codes["site"])
    assert torch.equal(one.response, two.response)
