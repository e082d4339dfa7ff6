"""Posteriors of some groups, and those of all in a file."""

import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import pyro_armed as pa
from pyro_armed import inference, streamed_fit
from pyro_armed.errors import (
    ArgumentError,
    ConvergenceWarning,
    MissingDependencyError,
    NotFittedError,
    UnseenGroupError,
)
from pyro_armed.export import _written

FORMULA = "y ~ x1 + (1 + x1 | group) + (1 | site)"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[pa.ARMED, pa.ARMED]:
    """The same fit twice: with draws of all effects, and without."""
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    frame = pa.simulate.mixed_model(60, 5, sds=(1.0, 0.5), seed=0).frame
    frame.assign(site=np.arange(300) % 7).to_parquet(path, row_group_size=100)
    how = {"guide": "mean_field", "restarts": 2, "draws": 30, "epochs": 3, "batch_size": 20}
    made = []
    for held in (True, False):
        with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
            warnings.simplefilter("ignore", ConvergenceWarning)
            if not held:
                patch.setattr(streamed_fit, "HELD", 100)
            model = pa.ARMED(FORMULA, path)
            model.fit(**how, compile="off", early_stopping=False, progressbar=False)  # type: ignore[arg-type]
        made.append(model)
    return made[0], made[1]


def test_some_groups_have_the_effects_of_all(models: tuple[pa.ARMED, pa.ARMED]) -> None:
    held, loose = models
    labels = list(held.spec.group("group").labels)[5:2:-2]
    expected = held.idata["posterior"]["x1|group"].sel(group__factor_dim=sorted(labels))
    for model in models:
        some = model.of_groups({"group": labels})
        posterior = some.idata["posterior"]
        np.testing.assert_array_equal(posterior["x1|group"], expected)
        assert posterior["x1|group"]["group__factor_dim"].values.tolist() == sorted(labels)
        assert posterior["1|site"].shape == (2, 30, 7)
        assert some.spec.group("group").size == 2
        with pytest.raises(NotFittedError):
            some.fit()
    assert loose._posterior is not None
    assert not loose._posterior.is_held


def test_labels_and_factors_that_are_not_there_are_refused(models: tuple[pa.ARMED, pa.ARMED]) -> None:
    held, _ = models
    with pytest.raises(UnseenGroupError, match="'group'"):
        held.of_groups({"group": ["nobody"]})
    with pytest.raises(ArgumentError, match="no grouping factor"):
        held.of_groups({"ward": [1]})
    arrays = pa.ARMED.from_arrays(
        np.arange(4.0)[:, None], np.arange(4.0), groups={"g": [0, 0, 1, 1]}, columns=["x"]
    )
    with pytest.raises(NotFittedError):
        arrays.of_groups({"g": [0]})


@pytest.fixture(scope="module")
def arrays() -> tuple[pa.ARMED, pa.ARMED]:
    """The same fit to arrays with a network: with draws of all effects, and without."""
    random = np.random.default_rng(0)
    x, g = random.normal(size=(2500, 2)), np.arange(2500) % 60 + 100
    y = x[:, 0] + g % 3 + random.normal(size=2500)
    made = []
    for held in (True, False):
        model = pa.ARMED.from_arrays(
            x,
            y,
            groups={"g": g},
            network=pa.networks.MLP(hidden=(3,)),
            random_effects=[pa.RandomEffects("g", slopes="features")],
        )
        with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
            warnings.simplefilter("ignore", ConvergenceWarning)
            if not held:
                patch.setattr(inference, "HELD", 100)
            how = {"guide": "mean_field", "restarts": 1, "draws": 200, "epochs": 2, "batch_size": 100}
            model.fit(**how, early_stopping=False, progressbar=False)  # type: ignore[arg-type]
        made.append(model)
    return made[0], made[1]


def test_arrays_of_many_groups(arrays: tuple[pa.ARMED, pa.ARMED], tmp_path: Path) -> None:
    held, loose = arrays
    assert loose._posterior is not None
    assert held._posterior is not None
    assert held._posterior.is_held
    assert not loose._posterior.is_held
    assert loose.idata["posterior"]["features|g"].sizes["draw"] == 200
    assert loose.idata["observed_data"]["y"].sizes["__obs__"] == loose.idata.attrs["sampled_rows"] == 2000
    some = loose.of_groups({"g": [101, 150]})
    assert some.idata["posterior"]["1|g"]["g__factor_dim"].values.tolist() == [101, 150]
    x, labels = np.ones((3, 2)), [101, 150, 7]
    with pytest.raises(UnseenGroupError, match="7"):
        loose.predict(x, groups={"g": labels})
    predicted = loose.predict(x, groups={"g": labels}, new_groups="marginal")["predictions"]["y"]
    loose.save(tmp_path / "model.armed")
    loaded = pa.load(tmp_path / "model.armed")
    again = loaded.predict(x, groups=pd.DataFrame({"g": labels}), new_groups="marginal")
    np.testing.assert_array_equal(again["predictions"]["y"], predicted)
    np.testing.assert_array_equal(
        loaded.of_groups({"g": [150]}).idata["posterior"]["1|g"],
        some.idata["posterior"]["1|g"].sel(g__factor_dim=[150]),
    )
    scores = [
        dict(
            m.evaluate(x, np.ones(3), groups={"g": labels}, new_groups="population").set_index("metric")[
                "value"
            ]
        )
        for m in arrays
    ]
    assert abs(scores[0]["nlpd"] - scores[1]["nlpd"]) < 0.1
    adapted = loose.predict(x, groups={"g": labels}, new_groups="adapt", support=(x[2:], [0.5], {"g": [7]}))
    assert adapted["predictions"]["new_groups"].values.tolist() == ["seen", "seen", "adapt"]


def test_draws_of_single_groups_are_those_of_their_gaussians(arrays: tuple[pa.ARMED, pa.ARMED]) -> None:
    chosen = {"g": range(100, 160)}
    first, second = (m.of_groups(chosen).idata["posterior"]["1|g"][0] for m in arrays)
    error = np.hypot(first.std("draw"), second.std("draw")) / np.sqrt(200)
    assert (abs(first.mean("draw") - second.mean("draw")) < 5 * error).all()


def test_a_file_has_the_draws_of_all_groups(
    models: tuple[pa.ARMED, pa.ARMED], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, _ = models
    monkeypatch.setattr(_written, "_NUMBERS", 2 * 30 * 2 * 25)  # blocks of 25 groups
    for model in models:
        path = tmp_path / f"{model is held}.nc"
        model.write_posterior(path, dtype="float64", progressbar=False)
        with xr.open_dataset(path, group="posterior", engine="h5netcdf") as found:
            expected = held.idata["posterior"]
            assert set(found.data_vars) == set(expected.data_vars)
            for name, values in expected.data_vars.items():
                assert found[name].dims == values.dims
                np.testing.assert_allclose(found[name], values, rtol=1e-12)
            for dim in ("group__factor_dim", "site__factor_dim"):
                assert found[dim].values.tolist() == expected[dim].values.tolist()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["False.nc", "True.nc"]


def test_a_zarr_folder_has_the_same_draws(
    models: tuple[pa.ARMED, pa.ARMED], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("zarr", reason="the extra 'zarr' is not installed")
    held, loose = models
    monkeypatch.setattr(_written, "_NUMBERS", 2 * 30 * 2 * 25)  # blocks of 25 groups
    path = tmp_path / "posterior.zarr"
    for _ in range(2):  # the second replaces the first
        loose.write_posterior(path, dtype="float64", progressbar=False)
    expected = held.idata["posterior"]
    with xr.open_zarr(path, group="posterior") as found:
        assert set(found.data_vars) == set(expected.data_vars)
        for name, values in expected.data_vars.items():
            assert found[name].dims == values.dims
            np.testing.assert_allclose(found[name], values, rtol=1e-12)
        for dim in ("group__factor_dim", "site__factor_dim", "chain"):
            assert found[dim].values.tolist() == expected[dim].values.tolist()
        assert found["x1|group"].encoding["chunks"] == (1, 30, 60)
    assert xr.open_zarr(path).attrs["guide"] == "mean_field"
    assert [one.name for one in tmp_path.iterdir()] == ["posterior.zarr"]
    other = tmp_path / "other.zarr"
    other.mkdir()
    with pytest.raises(FileExistsError, match="no Zarr folder"):
        held.write_posterior(other, progressbar=False)

    def broken(*_: object) -> object:
        raise RuntimeError("broken")

    monkeypatch.setattr(_written, "posterior_of", broken)
    with pytest.raises(RuntimeError, match="broken"):
        held.write_posterior(path, progressbar=False)
    with xr.open_zarr(path, group="posterior") as found:
        assert found.sizes["group__factor_dim"] == 60
    assert len(list(tmp_path.iterdir())) == 2


def test_zarr_without_its_package(
    models: tuple[pa.ARMED, pa.ARMED], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(MissingDependencyError, match=r"pyro_armed\[zarr\]"):
        models[0].write_posterior(tmp_path / "posterior.zarr", progressbar=False)
    assert not list(tmp_path.iterdir())


def test_files_are_whole_or_not_there(
    models: tuple[pa.ARMED, pa.ARMED], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, _ = models
    with pytest.raises(ArgumentError, match="dtype='float16'"):
        held.write_posterior(tmp_path / "x.nc", dtype="float16")
    with pytest.raises(FileNotFoundError):
        held.write_posterior(tmp_path / "nowhere" / "x.nc")

    def broken(*_: object) -> object:
        raise RuntimeError("broken")

    monkeypatch.setattr(_written, "posterior_of", broken)
    with pytest.raises(RuntimeError, match="broken"):
        held.write_posterior(tmp_path / "x.nc", progressbar=False)
    assert not list(tmp_path.iterdir())


def test_the_network_is_shared(tmp_path: Path) -> None:
    frame = pa.simulate.mixed_model(20, 5, seed=0).frame
    model = pa.ARMED("y ~ x1 + (1 | group)", frame, network=pa.networks.MLP(hidden=(3,)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(guide="mean_field", restarts=1, draws=20, epochs=2, progressbar=False)
    label = frame["group"].iloc[0]
    some, rows = model.of_groups({"group": [label]}), frame[frame["group"] == label]
    assert some.module.network is model.module.network
    whole = model.predict(rows, kind="linear")["predictions"]["y"]
    np.testing.assert_allclose(some.predict(rows, kind="linear")["predictions"]["y"], whole)
    assert torch.equal(
        some._fitted().chains[0].values["1|group"][:, 0], model._fitted().chains[0].values["1|group"][:, 0]
    )
