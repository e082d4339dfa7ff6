"""Random effects as users declare them."""

import pytest

import pyro_armed as pa
from pyro_armed.errors import ArgumentError


def test_defaults_and_equality():
    made = pa.RandomEffects("site")
    assert (made.intercept, made.slopes, made.correlated, made.parameter) == (True, None, False, "mu")
    assert made == pa.RandomEffects("site")
    assert made != pa.RandomEffects("site", slopes=[0])
    with pytest.raises(AttributeError):
        made.group = "other"


@pytest.mark.parametrize("slopes", ["features", [0], ["age", 2], (0, 1)])
def test_slopes_without_an_intercept(slopes):
    assert pa.RandomEffects("site", intercept=False, slopes=slopes).slopes == slopes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slopes": "feature"}, r"slopes='feature' is not known: use 'features'"),
        ({"intercept": False}, r"RandomEffects\('site'\) has neither an intercept nor slopes"),
        ({"intercept": False, "slopes": []}, r"neither an intercept nor slopes; set intercept=True"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ArgumentError, match=message):
        pa.RandomEffects("site", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": []}, r"layers=\[\] of ScaleBias must name layers"),
        ({"layers": [1]}, r"must name layers of the network"),
        ({"layers": ["a", "b", "a"]}, r"names the layer 'a' twice"),
        ({"group": ""}, r"group='' of ScaleBias must name a grouping factor"),
        ({"normalize": 1}, r"normalize=1 of ScaleBias must be True or False"),
    ],
)
def test_bad_scale_bias(options, message):
    with pytest.raises(ArgumentError, match=message):
        pa.effects.ScaleBias(**{"layers": ["a"], "group": "site", **options})
