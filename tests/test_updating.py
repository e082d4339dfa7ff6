"""More rows of known groups: closed forms, what moves and what does not."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hand_made import design, frame, module_of, posterior_of

import pyro_armed as pa
from pyro_armed.errors import ArgumentError, DataError, NotFittedError, UnseenGroupError
from pyro_armed.updating import update_effects

# Fits here are made to be quick; how good they are is not what is tested.
pytestmark = pytest.mark.filterwarnings("ignore::pyro_armed.errors.ConvergenceWarning")

QUICK = {"restarts": 2, "draws": 30, "guide": "mean_field", "epochs": 20, "progressbar": False}


def more(rows=3, seed=7, **columns) -> pd.DataFrame:
    return frame(n_groups=1, rows=rows, seed=seed).assign(**{"g": "g2", **columns})


def updated(one, posterior, rows, seed=0):
    return update_effects(one.spec, posterior, one.training.batch, one.encode(rows, response=True), seed=seed)


def test_gaussian_effects_are_those_of_all_rows_of_the_group():
    draws = 8000
    one = design("y ~ x + (1 | g) + (1 | h)", frame())
    posterior = posterior_of(module_of(one), draws, 1, {"1|h_sigma": 1e-6})  # h as good as absent
    rows = more(h="h1")
    (chain,) = updated(one, posterior, rows).chains
    value = {name: tensor.numpy() for name, tensor in posterior.chains[0].report().items()}
    value["1|h"] = np.where([False, True, False], 0.0, value["1|h"])  # drawn anew: nearly zero
    every = pd.concat([frame()[frame()["g"] == "g2"], rows])
    given = value["Intercept"][:, None] + value["x"][:, None] * every["x"].to_numpy()
    given = given + value["1|h"][:, every["h"].str[1:].astype(int)]
    variance = 1 / (value["1|g_sigma"] ** -2 + len(every) / value["sigma"] ** 2)
    mean = variance * (every["y"].to_numpy() - given).sum(1) / value["sigma"] ** 2
    white = (chain.values["1|g"][:, 2].numpy() - mean) / np.sqrt(variance)
    assert abs(white.mean()) < 4 / math.sqrt(draws)
    assert white.var() == pytest.approx(1, abs=4 * math.sqrt(2 / draws))


def test_only_the_groups_of_the_new_rows_move():
    one = design("b ~ x + (1 + z | g) + (1 | h)", frame(), "bernoulli")
    posterior = posterior_of(module_of(one))
    before = {name: value.clone() for name, value in posterior.chains[1].values.items()}
    found = updated(one, posterior, more(h=["h0", "h2", "h0"]))
    moved = {"1|g": [2], "z|g": [2], "1|h": [0, 2]}
    for name, value in found.chains[1].values.items():
        assert torch.equal(posterior.chains[1].values[name], before[name])
        changed = (value != before[name]).any(0) if name in moved else (value != before[name]).any()
        expected = (
            torch.isin(torch.arange(value.shape[1]), torch.tensor(moved[name])) if name in moved else False
        )
        assert torch.equal(changed, torch.as_tensor(expected)), name
    assert found.attributes["updated_rows"] == 3


def test_same_seed_same_effects(unmoved_rng):
    one = design("b ~ x + (1 | g)", frame(), "bernoulli")
    posterior = posterior_of(module_of(one))
    with unmoved_rng():
        first = updated(one, posterior, more()).chains[0].values["1|g"]
    assert torch.equal(first, updated(one, posterior, more()).chains[0].values["1|g"])
    assert not torch.equal(first, updated(one, posterior, more(), seed=1).chains[0].values["1|g"])


def test_new_groups_and_models_without_groups_are_refused():
    one = design("y ~ x + (1 | g)", frame())
    with pytest.raises(UnseenGroupError, match=r"Group 'g' .*: 'new'.*new_groups='adapt', support="):
        updated(one, posterior_of(module_of(one)), more(g="new"))
    without = design("y ~ x", frame())
    with pytest.raises(ArgumentError, match="this model has none"):
        updated(without, posterior_of(module_of(without)), more())


# --- the model's method ------------------------------------------------------------------------------------


def test_model_predicts_with_what_it_was_told_and_shows_it():
    data = frame()
    model = pa.ARMED("y ~ x + (1 | g)", data)
    model.fit(**QUICK)
    told = more(20, y=data["y"].max() + 8.0)
    before = model.predict(told)["predictions"]["y"].mean()
    assert model.update(told[:12], seed=1) is model
    once = model.predict(told)["predictions"]["y"].mean()
    assert once > before + 1
    idata = model.update(told[12:], seed=2).idata
    assert model.predict(told)["predictions"]["y"].mean() > once
    assert idata.attrs["updated_rows"] == 20
    assert idata["observed_data"]["y"].sizes == {"__obs__": 40}
    assert idata["observed_data"]["__obs__"].values.tolist() == list(range(40))
    assert idata["log_likelihood"]["y"].sizes["__obs__"] == 40
    found = idata["posterior"]["1|g"].sel(g__factor_dim="g2").values
    np.testing.assert_array_equal(
        found, np.stack([chain.values["1|g"][:, 2] for chain in model._posterior.chains])
    )


def test_two_updates_are_one_with_all_rows():
    """A Gaussian conditional is exact, so that only the rows matter, not how they came."""
    told = more(10, y=6.0)
    means = []
    for parts in ([told], [told[:4], told[4:]]):
        model = pa.ARMED("y ~ x + (1 | g)", frame())
        model.fit(**{**QUICK, "draws": 2000})
        for part in parts:
            model.update(part)
        means.append(float(model.idata["posterior"]["1|g"].sel(g__factor_dim="g2").mean()))
    sd = float(model.idata["posterior"]["1|g"].sel(g__factor_dim="g2").std())
    assert means[0] == pytest.approx(means[1], abs=4 * sd * math.sqrt(2 / 4000))


def test_fitting_again_forgets_updates_and_files_keep_them(tmp_path):
    model = pa.ARMED("b ~ x + (1 | g)", frame(), family="bernoulli")
    with pytest.raises(NotFittedError, match="fit"):
        model.update(more())
    model.fit(**QUICK, log_likelihood=False)
    fitted = model.predict(more())["predictions"]["b"].values
    model.update(more())
    assert "log_likelihood" in model.idata.attrs["omitted_groups"]
    told = model.predict(more())["predictions"]["b"].values
    assert not np.array_equal(told, fitted)
    model.save(tmp_path / "m.armed")
    loaded = pa.load(tmp_path / "m.armed")
    np.testing.assert_array_equal(loaded.predict(more())["predictions"]["b"].values, told)
    with pytest.raises(NotFittedError, match=r"no training rows in memory, which update\(\) needs"):
        loaded.update(more())
    model.fit(**QUICK, log_likelihood=False)
    np.testing.assert_array_equal(model.predict(more())["predictions"]["b"].values, fitted)
    assert "updated_rows" not in model.idata.attrs


def test_update_from_arrays_with_a_network():
    data = frame()
    x = data[["x", "z"]].to_numpy()
    options = {"offset": data["w"], "weights": data["w"], "family": "bernoulli"}
    model = pa.ARMED.from_arrays(
        x,
        data["b"],
        {"g": data["g"]},
        network=pa.networks.MLP(hidden=(3,)),
        random_effects=[pa.RandomEffects("g", slopes="features")],
        **options,
    )
    model.fit(**{**QUICK, "restarts": 1}, log_likelihood=False)
    before = model.idata["posterior"]["features|g"]
    new = {"groups": {"g": ["g1", "g1"]}, "offset": [0.0, 0.1]}
    with pytest.raises(ArgumentError, match="needs the responses"):
        model.update(x[:2], **new)
    with pytest.raises(DataError, match="offset"):
        model.update(x[:2], [1, 1], groups={"g": ["g1", "g1"]})
    after = model.update(x[:2], [1, 1], **new).idata["posterior"]["features|g"]
    moved = (before != after).any(["chain", "draw", "feature"])
    assert moved["g__factor_dim"].values[moved.values].tolist() == ["g1"]
    assert (
        model.predict(x[:2], groups={"g": ["g1", "g2"]}, offset=[0.0, 0.0])["predictions"]["y"]
        .notnull()
        .all()
    )
