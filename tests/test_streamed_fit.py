"""Fits to rows in files: the posterior of the same rows in memory, with effects held or not."""

import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hand_made import design as whole_design
from hand_made import module_of

import pyro_armed as pa
from pyro_armed import streamed_fit
from pyro_armed.errors import ArgumentError, ConvergenceWarning, NotFittedError
from pyro_armed.guides import MeanFieldGuide
from pyro_armed.objective import Objective
from pyro_armed.streaming import RowStream
from pyro_armed.updates import Update

FORMULA = "y ~ x1 + (1 + x1 | group)"
QUICK: dict[str, Any] = {
    "guide": "mean_field",
    "restarts": 1,
    "draws": 40,
    "epochs": 3,
    "batch_size": 50,
    "early_stopping": False,
    "progressbar": False,
}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield
    assert not [one for one in threading.enumerate() if one.name == "pyro_armed rows"]


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return pa.simulate.mixed_model(120, 6, sds=(1.0, 0.5), seed=0).frame


@pytest.fixture(scope="module")
def path(frame: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "rows.parquet"
    frame.to_parquet(file, row_group_size=100)
    return file


def test_a_fit_predicts_scores_and_goes_to_a_file(frame: pd.DataFrame, path: Path, tmp_path: Path) -> None:
    model = pa.ARMED(FORMULA, path)
    idata = model.fit(**QUICK, seed=1)
    assert idata["posterior"]["1|group"].shape == (1, 40, 120)
    assert idata.attrs["sampled_rows"] == idata["observed_data"].sizes["__obs__"] == 720
    rows = idata["observed_data"]["y"]
    np.testing.assert_allclose(rows, frame["y"].to_numpy()[rows["__obs__"]])
    assert len(model.evaluate(frame)) > 3
    expected = model.predict(frame.head(5), seed=0)["predictions"]["y"]
    model.save(tmp_path / "model.armed")
    loaded = pa.load(tmp_path / "model.armed")
    assert np.array_equal(loaded.predict(frame.head(5), seed=0)["predictions"]["y"], expected)
    again = pa.ARMED(FORMULA, path).fit(**QUICK, seed=1)
    assert np.array_equal(again["posterior"]["1|group"], idata["posterior"]["1|group"])


def test_effects_that_are_not_held_are_the_same(
    frame: pd.DataFrame, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, loose = pa.ARMED(FORMULA, path), pa.ARMED(FORMULA, path)
    expected = held.fit(**QUICK)
    monkeypatch.setattr(streamed_fit, "HELD", 100)
    idata = loose.fit(**QUICK)
    assert idata.attrs["shown_groups"] == "group: 120 of 120"
    np.testing.assert_array_equal(idata["posterior"]["x1|group"], expected["posterior"]["x1|group"])
    loose.save(tmp_path / "model.armed")
    new = frame.tail(12).assign(group=["a"] * 6 + ["b"] * 6)
    for model in (loose, pa.load(tmp_path / "model.armed")):
        for rows, how in (
            (frame[20:30], {}),
            (new, {"new_groups": "marginal"}),
            (new[3:], {"new_groups": "adapt", "support": new[:3]}),
        ):
            found = model.predict(rows, seed=2, **how)["predictions"]["y"]
            of_all = held.predict(rows, seed=2, **how)["predictions"]["y"]
            np.testing.assert_allclose(found, of_all, rtol=1e-9)
        pd.testing.assert_frame_equal(model.evaluate(frame[:60]), held.evaluate(frame[:60]))
        with pytest.raises(ArgumentError, match="of_groups"):
            model._fitted()


def test_what_needs_all_rows_is_refused(frame: pd.DataFrame, path: Path) -> None:
    model = pa.ARMED(FORMULA, str(path))
    with pytest.raises(ArgumentError, match="guide='mean_field'"):
        model.fit()
    with pytest.raises(ArgumentError, match="inference='nuts' needs all rows"):
        model.fit(inference="nuts")
    with pytest.raises(ArgumentError, match="name of a column"):
        pa.ARMED(FORMULA, path, weights=np.ones(720))
    model.fit(**QUICK)
    with pytest.raises(NotFittedError, match="Parquet"):
        model.update(frame.head())
    with pytest.raises(NotFittedError, match="Parquet"):
        model.fit_membership()
    assert model.prior_predictive(5, seed=0).prior_predictive["y"].sizes["__obs__"] == 720


@pytest.mark.parametrize(
    ("formula", "family", "network", "options"),
    [
        ("b ~ x1 + (1 + features | group)", "bernoulli", True, {"adversary": pa.Adversary(0.5)}),
        ("t ~ x1 + (1 | group)", "categorical", False, {"weights": "w"}),
        ("y ~ x1 + (1 | group) + (1 | t)", "gaussian", True, {"missing": "drop"}),
    ],
)
def test_families_networks_and_weights(
    frame: pd.DataFrame, tmp_path: Path, formula: str, family: str, network: bool, options: dict[str, Any]
) -> None:
    random = np.random.default_rng(0)
    rows = frame.assign(b=frame["y"] > 0, t=random.choice(list("uvw"), 720), w=random.random(720))
    rows.loc[5, "x1"] = np.nan if "missing" in options else 0.0
    rows.to_parquet(tmp_path / "rows.parquet", row_group_size=100)
    net = pa.networks.MLP(hidden=(4,)) if network else None
    model = pa.ARMED(formula, tmp_path / "rows.parquet", family=family, network=net, **options)
    model.fit(**{**QUICK, "restarts": 2, "compile": "off"})
    assert np.isfinite(model.evaluate(rows.drop(index=5))["value"]).all()


def test_divergences_of_groups_add_up_over_an_epoch(path: Path, frame: pd.DataFrame) -> None:
    """Each group's divergence counts once for each step of an epoch, sorted rows and small buffers or not."""
    design = pa.ARMED(FORMULA, path)._design
    feed = RowStream(design, size=20, buffer=20)  # type: ignore[arg-type]
    module = module_of(whole_design(FORMULA, frame))
    guide = MeanFieldGuide(module, feed.data, torch.Generator())
    update = Update(Objective(module, guide), feed.data, 20, 10.0, sparse=("group",))
    total = torch.zeros(121, dtype=torch.float64)
    for rows in feed.epoch(seed=0):
        batch, present = update.select(rows, torch.arange(20))
        total.index_add_(0, present["group"], batch["group_scale.group"])
    torch.testing.assert_close(total[:120], torch.full((120,), 36.0, dtype=torch.float64))
    assert total[120] == 0.0


@pytest.mark.slow
def test_steps_as_graphs_are_those_that_run_eagerly(path: Path) -> None:
    found = []
    for compile in ("off", "trace"):
        idata = pa.ARMED(FORMULA, path).fit(**{**QUICK, "epochs": 1}, compile=compile)
        found.append(idata["sample_stats"]["elbo"].to_numpy())
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)


@pytest.mark.slow
def test_the_posterior_is_that_of_rows_in_memory(path: Path, frame: pd.DataFrame) -> None:
    whole = pa.ARMED(FORMULA, frame).fit(restarts=1, draws=400, progressbar=False)["posterior"]
    how = {**QUICK, "draws": 400, "epochs": 60}
    found = pa.ARMED(FORMULA, path).fit(**how)["posterior"]
    for name in ("Intercept", "x1", "sigma", "1|group_sigma", "x1|group_sigma"):
        # The mean-field optimum and its noise: within two and a half sds of the structured posterior.
        distance = float(found[name].mean() - whole[name].mean()) / float(whole[name].std())
        assert abs(distance) < 2.5, (name, distance)
    for name in ("1|group", "x1|group"):
        pair = np.corrcoef(found[name].mean(("chain", "draw")), whole[name].mean(("chain", "draw")))
        assert pair[0, 1] > 0.97
