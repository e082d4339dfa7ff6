"""What an adversary does in a whole fit, and what is said of it."""

import numpy as np
import pytest
import torch
import xarray as xr

import pyro_armed as pa
from pyro_armed.diagnostics import adversary
from pyro_armed.diagnostics._adversary import adversary_words
from pyro_armed.errors import ArgumentError

FORMULA = "y ~ x1 + x2 + probe1 + probe2 + (1 | group)"


@pytest.fixture(scope="module")
def data():
    return pa.simulate.confounded_spirals(4, 50, seed=0).frame


def model_of(data, formula=FORMULA, linear_path=None, **settings):
    return pa.ARMED(
        formula,
        data,
        family="bernoulli",
        network=pa.networks.MLP(hidden=(6, 4)),
        adversary=pa.Adversary(**settings) if settings else None,
        linear_path=linear_path,
    )


def fitted(data, guide="mean_field", epochs=60, restarts=1, **settings):
    model = model_of(data, **settings)
    model.fit(
        guide=guide, restarts=restarts, draws=10, epochs=epochs, early_stopping=False, log_likelihood=False,
        progressbar=False,
    )  # fmt: skip
    return model


@pytest.mark.filterwarnings("ignore::pyro_armed.errors.ConvergenceWarning")
@pytest.mark.parametrize("guide", ["mean_field", "structured"])
def test_weight_zero_is_no_adversary_to_the_last_bit(data, guide):
    watched, alone = fitted(data, guide, weight=0.0), fitted(data, guide)
    for name, values in alone.idata["posterior"].data_vars.items():
        np.testing.assert_array_equal(values, watched.idata["posterior"][name])
    np.testing.assert_array_equal(alone.idata["sample_stats"]["elbo"], watched.idata["sample_stats"]["elbo"])
    one, other = alone.module.network.state_dict(), watched.module.network.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    against = fitted(data, guide, weight=1.0).module.network.state_dict()
    assert not torch.equal(one["layers.0.weight"], against["layers.0.weight"])


@pytest.mark.filterwarnings("ignore::pyro_armed.errors.ConvergenceWarning")
def test_accuracy_and_chance_are_in_the_exported_object(data):
    model = fitted(data, restarts=2, weight=1.0, groups="group")
    stats = model.idata["sample_stats"]
    assert stats["adversary_accuracy|group"].dims == ("chain", "step")
    assert stats["adversary_accuracy|group"].sizes == stats["elbo"].sizes
    # Given the class: its most frequent group.
    counts = data.groupby(["y", "group"]).size()
    chance = counts.groupby("y").max().sum() / len(data)
    np.testing.assert_allclose(stats["adversary_chance|group"], chance)
    table = adversary(model)
    assert table["chain"].tolist() == [0, 1]
    np.testing.assert_allclose(table["chance"], chance)
    words = model.idata["posterior"].attrs["adversary"]
    assert words == model.idata.attrs["adversary"]
    assert words in str(model)
    assert f"chance {chance:.2f}" in words


@pytest.mark.filterwarnings("ignore::pyro_armed.errors.ConvergenceWarning")
def test_a_group_that_nothing_hides_is_named_with_accuracy_near_one(data):
    centres = dict(zip(sorted(data["group"].unique()), [-6.0, -2.0, 2.0, 6.0], strict=True))
    told = data.assign(probe1=data["group"].map(centres))
    model = fitted(told, epochs=150, weight=0.0, learning_rate=0.1, layers="layers.0", linear_path=False)
    (row,) = adversary(model).itertuples()
    assert row.verdict == "near one"
    assert row.final > 0.95
    assert row.words in model.summary().notes
    assert "weight is too small" in row.words


@pytest.mark.filterwarnings("ignore::pyro_armed.errors.ConvergenceWarning")
def test_a_group_that_is_not_encoded_is_named_at_chance(data):
    rng = np.random.default_rng(1)
    noise = data.assign(**{name: rng.normal(size=len(data)) for name in ("x1", "x2", "probe1", "probe2")})
    model = fitted(noise, weight=5.0)
    (row,) = adversary(model).itertuples()
    assert row.verdict == "at chance"
    assert "the features do not tell the groups" in row.words
    assert row.words in model.summary().notes


def stats_of(*traces, chance=0.25):
    dataset = xr.Dataset(
        {
            "adversary_accuracy|site": (("chain", "step"), np.array(traces)),
            "adversary_chance|site": (("chain",), np.full(len(traces), chance)),
        }
    )
    tree = {"posterior": xr.Dataset(), "sample_stats": dataset}
    return xr.DataTree.from_dict(tree)


@pytest.mark.parametrize(
    ("trace", "verdict"),
    [
        (np.full(100, 0.25), "at chance"),
        (np.r_[np.full(30, 0.1), np.full(70, 0.27), np.full(10, np.nan)], "at chance"),
        (np.r_[np.full(50, 0.6), np.full(50, 0.25)], "between"),  # hidden in the course of training
        (np.linspace(0.2, 0.9, 100), "between"),
        (np.linspace(0.2, 1.0, 200), "near one"),
        (np.r_[np.full(50, 1.0), np.full(50, 0.5)], "between"),
        (np.full(7, 0.99), "near one"),
    ],
)
def test_verdicts(trace, verdict):
    table = adversary(stats_of(trace))
    assert table["verdict"].tolist() == [verdict]
    assert table["words"][0] == adversary_words(stats_of(trace))


def test_words_of_several_restarts_are_those_of_most():
    words = adversary_words(stats_of(np.full(40, 0.25), np.full(40, 0.25), np.full(40, 0.5)))
    assert words.endswith("(2 of 3 restarts)")
    assert "at chance" not in words
    assert "too large from the start" in words


def test_without_an_adversary_there_is_nothing_to_tell(data):
    tree = xr.DataTree.from_dict({"posterior": xr.Dataset(), "sample_stats": xr.Dataset()})
    assert adversary_words(tree) == ""
    with pytest.raises(ArgumentError, match="without an adversary"):
        adversary(tree)


def test_layers_and_groups_that_are_not_there_are_named_when_the_model_is_made(data):
    with pytest.raises(ArgumentError, match=r"no layer named 'body'; it has layers, layers\.0"):
        model_of(data, weight=1.0, layers="body")
    with pytest.raises(ArgumentError, match="group 'site' is not in the model"):
        model_of(data, weight=1.0, groups="site")
