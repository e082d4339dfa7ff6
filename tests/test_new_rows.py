"""Rows given after training: what is for which kind of model, and what is wrong with it."""

import numpy as np
import pandas as pd
import pytest
from hand_made import design, frame

from pyro_armed import families
from pyro_armed.arrays import ArrayDesign
from pyro_armed.effects import RandomEffects
from pyro_armed.errors import ArgumentError, DataError
from pyro_armed.new_rows import encode_rows, encode_support, weights_column


def arrays(**options):
    data = frame()
    return ArrayDesign(
        data[["x", "z"]].to_numpy(),
        data["b"],
        {"g": data["g"]},
        families.get("bernoulli"),
        [RandomEffects("g")],
        network=False,
        **options,
    )


def test_a_frame_has_everything_in_it():
    one = design("y ~ x + (1 | g)", frame(), weights="w")
    encoded = encode_rows(one, frame(), response=True)
    np.testing.assert_array_equal(encoded.batch.response, frame()["y"])
    np.testing.assert_array_equal(encoded.batch.weights, frame()["w"])
    for name in ("y", "groups", "offset", "trials", "weights"):
        with pytest.raises(ArgumentError, match=f"such as {name}= are for models from arrays"):
            encode_rows(one, frame(), **{name: [1.0] * 20})


def test_weights_given_as_numbers_are_one_in_new_rows():
    data, column = weights_column(frame(), np.arange(20.0))
    one = design("y ~ x + (1 | g)", data, weights=column)
    np.testing.assert_array_equal(one.training.batch.weights, np.arange(20.0))
    np.testing.assert_array_equal(encode_rows(one, frame(), response=True).batch.weights, np.ones(20))


@pytest.mark.parametrize("weights", [[1.0, 2.0], ["a"] * 20, [-1.0] * 20, [np.inf] * 20])
def test_weights_that_cannot_be(weights):
    with pytest.raises(ArgumentError, match="weights"):
        weights_column(frame(), weights)


def test_arrays_and_what_stands_beside_them():
    one = arrays(offset=frame()["w"])
    x, beside = frame()[["x", "z"]].to_numpy()[:3], {"groups": {"g": ["g0", "a", "a"]}, "offset": [1.0, 2, 3]}
    encoded = encode_rows(one, x, [0, 1, 1], response=True, weights=[1.0, 0.5, 2], **beside)
    assert encoded.new_groups == {"g": ["a"]}
    assert encoded.batch.offsets["mu"].tolist() == [1.0, 2.0, 3.0]
    assert encoded.batch.weights.tolist() == [1.0, 0.5, 2.0]
    with pytest.raises(ArgumentError, match="needs the responses y"):
        encode_rows(one, x, response=True, **beside)


def test_support_is_a_frame_or_arrays():
    one = design("y ~ x + (1 | g)", frame())
    assert encode_support(one, frame().assign(g="a")).new_groups == {"g": ["a"]}
    with pytest.raises(ArgumentError, match="support has type dict; give a data frame"):
        encode_support(one, {"x": [1.0]})
    with pytest.raises(DataError, match="'y'"):
        encode_support(one, frame().drop(columns="y"))
    x = frame()[["x", "z"]].to_numpy()[:2]
    triple = encode_support(arrays(), (x, [0, 1], {"g": ["a", "b"]}))
    mapping = encode_support(
        arrays(), {"x": x, "y": [0, 1], "groups": {"g": ["a", "b"]}, "weights": [1, 2.0]}
    )
    assert triple.new_groups == mapping.new_groups == {"g": ["a", "b"]}
    assert mapping.batch.weights.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    "support",
    [pd.DataFrame({"x": [1.0]}), (1, 2), {"x": [[1.0, 2.0]]}, {"x": 1, "y": 2, "group": 3}, None, "adapt"],
)
def test_support_of_arrays_that_is_something_else(support):
    with pytest.raises(ArgumentError, match=r"support must be \(x, y, groups\)"):
        encode_support(arrays(), support)
