"""The adversary's weight by density on left-out groups and leakage."""

import numpy as np
import pandas as pd
import pytest

import pyro_armed as pa
from pyro_armed.adversary_choice import AdversaryChoice, _choice, _table
from pyro_armed.diagnostics import leakage
from pyro_armed.errors import ArgumentError
from pyro_armed.evaluation import pointwise
from pyro_armed.plots import adversary_choice, new_figure
from pyro_armed.seeds import stream

QUICK = {"guide": "mean_field", "restarts": 1, "draws": 20, "epochs": 20, "progressbar": False}


@pytest.fixture(scope="module")
def frame():
    return pa.simulate.confounded_spirals(6, 30, seed=0).frame


def model_of(frame, **options):
    network = options.pop("network", pa.networks.MLP(hidden=(4,)))
    return pa.ARMED(
        "y ~ x1 + x2 + probe1 + (1 | group)", frame, family="bernoulli", network=network, **options
    )


@pytest.fixture(scope="module")
def choice(frame):
    return pa.choose_adversary(model_of(frame), frame, [1.0], folds=3, seed=1, **QUICK)


def test_off_is_a_candidate_and_every_group_is_left_out_once(choice, frame):
    assert choice.table["weight"].tolist() == [0.0, 1.0]
    for _, part in choice.groups.groupby("weight"):
        assert sorted(part["group"]) == sorted(frame["group"].unique())
        assert part.groupby("fold").size().tolist() == [2, 2, 2]
    assert choice.table["chosen"].sum() == 1
    assert choice.words in str(choice)
    weight = choice.table.loc[choice.table["chosen"], "weight"].item()
    assert (choice.adversary is None) == (weight == 0.0)


def test_densities_and_leakage_are_those_of_the_folds_models(choice, frame):
    """The first fold again by hand, with the seeds that it has."""
    left_out = choice.groups.query("fold == 1 and weight == 1")
    outside = frame["group"].isin(left_out["group"])
    model = model_of(frame[~outside], adversary=pa.Adversary(1.0, groups="group"))
    fit = {**QUICK, "log_likelihood": False}
    with pytest.warns(pa.errors.ConvergenceWarning):
        model.fit(seed=stream(1, "fold", 1) % 2**31, **fit)
    encoded = model._encode(frame[outside], None, response=True)
    scores = pointwise(model._fitted(), encoded, "marginal", seed=stream(1, "density", 1))
    expected = scores.groupby(frame.loc[outside, "group"].to_numpy())["nlpd"].mean()
    np.testing.assert_allclose(left_out.set_index("group")["nlpd"].sort_index(), expected.sort_index())
    found = leakage(model, given_response=True, seed=stream(1, "leakage", 1))
    assert found["n_groups"].tolist() == [4]


def wide_of(**columns):
    table = pd.DataFrame({float(name[1:]) / 10: values for name, values in columns.items()})
    return table.rename_axis(columns="weight")


def choose(wide, leakages, target=None):
    leaks = pd.DataFrame({"weight": wide.columns, "leakage": leakages, "leaks": [False] * len(leakages)})
    table = _table(wide, leaks)
    return table, *_choice(table, wide, target)


NOISE = np.array([0.0, 0.2, -0.2, 0.1, -0.1])


def test_the_smallest_weight_within_a_standard_error_is_chosen():
    clear = wide_of(w0=NOISE + 1.0, w5=NOISE + 0.5, w20=NOISE + 0.5 + 0.01 * NOISE)
    table, weight, words = choose(clear, [0.5, 0.3, 0.1])
    assert weight == 0.5
    assert table["worse"].tolist() == pytest.approx([0.5, 0.0, 0.0], abs=1e-12)
    assert words.startswith("Weight 0.5: the smallest weight within one")
    tie = wide_of(w0=1.0 + NOISE, w5=0.95 - NOISE)
    assert choose(tie, [0.5, 0.3])[1] == 0.0
    assert "No adversary" in choose(tie, [0.5, 0.3])[2]


def test_a_target_rules_weights_out():
    wide = wide_of(w0=NOISE, w5=NOISE + 0.2, w20=NOISE + 0.4)
    assert choose(wide, [0.5, 0.3, 0.1])[1] == 0.0
    assert choose(wide, [0.5, 0.3, 0.1], target=0.3)[1] == 0.5
    assert choose(wide, [0.5, 0.3, 0.1], target=0.2)[1] == 2.0
    _, weight, words = choose(wide, [0.5, 0.3, 0.1], target=0.05)
    assert weight == 2.0
    assert "No weight keeps leakage at 0.05" in words


def test_standard_errors_are_of_differences_group_by_group():
    wide = wide_of(w0=10 * NOISE, w5=10 * NOISE + 0.1 * np.array([1, 2, 1, 2, 1]))
    table = choose(wide, [0.1, 0.1])[0]
    difference = 0.1 * np.array([1, 2, 1, 2, 1])
    assert table["worse_se"].tolist() == pytest.approx([0.0, difference.std(ddof=1) / np.sqrt(5)])
    assert table["se"][0] == pytest.approx((10 * NOISE).std(ddof=1) / np.sqrt(5))


def test_the_picture_has_a_point_for_each_weight():
    wide = wide_of(w0=NOISE, w5=NOISE + 0.2, w20=NOISE + 0.4)
    table, weight, words = choose(wide, [0.5, 0.3, 0.1])
    table["chosen"] = table["weight"] == weight
    made = AdversaryChoice(table, pd.DataFrame(), None, words)
    figure = adversary_choice(made, target=0.2, figure=new_figure())
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["off", "0.5", "2"]
    assert [tuple(text.xy) for text in axes.texts] == [
        pytest.approx((leak, worse)) for leak, worse in zip(table["leakage"], table["worse"], strict=True)
    ]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert sorted(labels) == ["chosen", "others", "target"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": [-1.0]}, "weight of the adversary must be a number of at least 0"),
        ({"weights": 0.5}, "weights=0.5 must be numbers"),
        ({"folds": 7}, "folds=7 is more than the 6 groups"),
        ({"target": 2.0}, "target=2.0"),
        ({"group": "site"}, "'site'"),
        ({"epoch": 3}, "epoch= is no argument of fit"),
        ({"data": "rows"}, "data frame"),
        ({"model": "y ~ x"}, "a function that takes rows"),
    ],
)
def test_unusable_arguments_are_named(frame, arguments, message):
    with pytest.raises(ArgumentError, match=message):
        pa.choose_adversary(**{"model": model_of(frame), "data": frame, **arguments}, **QUICK)


def test_a_linear_predictor_has_nothing_to_hide(frame):
    with pytest.raises(ArgumentError, match="needs a network"):
        pa.choose_adversary(model_of(frame, network=None), frame, **QUICK)


def test_too_few_groups_are_named(frame):
    two = frame[frame["group"].isin(frame["group"].unique()[:2])]
    with pytest.raises(ArgumentError, match="too few to leave whole groups out"):
        pa.choose_adversary(model_of(two), two, folds=2, **QUICK)
