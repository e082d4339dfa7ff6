"""The specification: names, sizes, features, and the way through JSON."""

import json

import pytest
from hand_made import design, frame

from pyro_armed.errors import ArgumentError
from pyro_armed.spec import FEATURES, EffectBlock, ModelSpec, Reconstruction, Term, feature_term, prefix


def spec(formulas, family="gaussian", **options):
    return design(formulas, frame(), family, **options).spec


MIXED = ["y ~ x + c + offset(z) + (1 + x | g) + (1 | h)", "sigma ~ z + (1 | g)"]


def test_names_follow_bambi():
    made = spec(MIXED)
    names = [block.effect_name(term) for block in made.blocks for term in block.terms]
    assert names == ["1|g", "x|g", "1|h", "sigma_1|g"]
    assert [block.key for block in made.blocks] == ["1+x|g", "1|h", "sigma_1|g"]
    assert made.predictor("sigma").common_name("z") == "sigma_z"
    assert made.mu.common_name("z") == "z"
    assert (prefix("mu"), prefix("sigma")) == ("", "sigma_")


def test_sizes_and_lookups():
    made = spec(MIXED)
    assert [block.size for block in made.blocks] == [2, 1, 1]
    assert made.group("h").size == 3
    assert made.group("h").counts == (7, 7, 6)
    assert made.mu.terms[1].is_vector
    assert made.mu.terms[1].size == 2
    assert not made.mu.terms[0].is_vector
    assert made.mu.offset
    with pytest.raises(KeyError):
        made.predictor("nu")
    with pytest.raises(KeyError):
        made.group("x")


def test_linear_predictors_of_the_mean():
    assert spec("y ~ x + (1 | g)").n_predictors == 1
    assert spec("c ~ x + (1 | g)", "categorical").n_predictors == 2
    assert spec("o ~ x + (1 | g)", "ordinal").n_predictors == 1


def test_features_get_their_width():
    made = spec("y ~ x + z + features + (1 + features | g)", network=True)
    assert made.uses_features
    block = made.blocks[0]
    assert [term.name for term in block.terms] == ["1", FEATURES]
    wide = made.with_features(5)
    assert wide.n_features == 5
    assert wide.blocks[0].terms[1] == feature_term(5)
    assert wide.blocks[0].size == 6
    assert wide.blocks[0].uses_features
    assert wide.mu.features
    point = made.with_features(5, coefficients=False)
    assert not point.mu.features
    assert point.blocks[0].size == 6
    assert made.n_features == 0  # the original is as it was
    assert not spec("y ~ x + (1 | g)").uses_features


def test_width_of_a_block():
    block = EffectBlock("g", (Term("1", (0.0,), (1.0,)), feature_term(3)), correlated=False)
    assert block.size == 4
    assert feature_term(2).labels == ("0", "1")


@pytest.mark.parametrize(
    ("formulas", "family", "options", "features"),
    [
        (MIXED, "gaussian", {}, 0),
        ("c ~ x + z + (1 + features | g)", "categorical", {"network": True}, 3),
        ("o ~ x + (0 + c | g) + (1 | h)", "ordinal", {}, 0),
    ],
)
def test_json_and_back(formulas, family, options, features):
    made = spec(formulas, family, **options).with_features(features)
    assert ModelSpec.from_config(json.loads(json.dumps(made.to_config()))) == made


@pytest.mark.parametrize("weight", [0.0, -1.0, "1", True, float("inf")])
def test_weight_of_a_reconstruction(weight):
    with pytest.raises(ArgumentError, match="of Reconstruction must be a number above 0"):
        Reconstruction(weight=weight)
