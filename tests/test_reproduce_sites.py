"""The applications with sites: their rows, their further measures, and the user's own data."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import pyro_armed as pa
from pyro_armed.baselines import Rows, Task
from pyro_armed.errors import ArgumentError, DataError
from pyro_armed.reproduce import APPLICATIONS, run
from pyro_armed.reproduce._conversion import predictors
from pyro_armed.reproduce._diagnosis import binary, largest_groups
from pyro_armed.reproduce._sites import pictured, split, standardised

NAMES = ["conversion", "diagnosis", "cells", "letters"]


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_split_and_new_groups_are_new(name):
    task = APPLICATIONS[name].problem(0, True, ()).task
    parts = [task.train, task.seen, task.unseen]
    together = np.concatenate([np.asarray(part.x).reshape(len(part), -1) for part in parts])
    assert len(np.unique(together, axis=0)) == len(together)
    assert set(task.seen.groups[task.group]) == set(task.train.groups[task.group])
    assert 1.5 < len(task.train) / len(task.seen) < 2.5


@pytest.mark.parametrize("name", ["diagnosis", "cells"])
def test_where_the_network_predicts_alone_the_loss_asks_it_to(name):
    task = APPLICATIONS[name].problem(0, True, ()).task
    assert task.new_groups == "population"
    assert task.fixed_effects_weight > 0.0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["conversion", "cells"])
def test_a_quick_run_measures_and_draws(name, tmp_path):
    app = replace(APPLICATIONS[name], baselines=("conventional", "ARMED"))
    result = run(app, tmp_path, quick=True, progressbar=False)
    found = result.table.set_index(["baseline", "split", "metric"])["value"]
    for baseline in ("conventional", "ARMED"):
        assert 0.0 <= found[baseline, "features", "leakage"] <= 1.0
        assert 0.0 <= found[baseline, "unseen", "auroc"] <= 1.0
        assert found[baseline, "features", "Davies-Bouldin"] > 0.0
        assert found[baseline, "features", "Calinski-Harabasz"] >= 0.0
    assert -1.0 <= found["ARMED", "effects", "r(logit)"] <= 1.0
    if name == "cells":
        for effect in ("gain", "offset", "gain, parameter", "offset, parameter"):
            assert -1.0 <= found["ARMED", "effects", f"r({effect})"] <= 1.0
    written = {path.name for path in tmp_path.iterdir()}
    assert {f"{name}.csv", f"{name}.nc", "latents.png", "counterfactual_groups.png"} <= written
    assert ("saliency.png" in written) == (name == "cells")
    assert str(result).startswith("Simulated data.")


class Painter:
    """Stands for a model that reconstructs each image with its group's contrast and brightness."""

    def __init__(self, gain, offset):
        self.gain, self.offset = gain, offset

    def reconstruct(self, x, *, groups, draws, seed):
        (label,) = set(groups["site"])
        return {"mixed": self.gain[label] * x + self.offset[label]}


def test_contrast_and_brightness_of_pictures_as_if_from_each_group():
    gain, offset = {"a": 0.5, "b": 1.0, "c": 2.1}, {"a": 0.3, "b": -0.2, "c": 0.0}
    rng = np.random.default_rng(0)
    x, y, site = rng.random((12, 4, 4)), np.tile([0, 1], 6), np.repeat(["a", "b", "c"], 4)
    rows = Rows(x, y, {"site": site})
    task = Task(rows, rows, "site", lambda: pa.networks.MLP((4,)))
    found = pictured(Painter(gain, offset), task, 0)
    mean = np.mean(list(gain.values())), np.mean(list(offset.values()))
    # Of gain m + offset on the groups' mean picture: what is left once the mean is taken out.
    for label in "abc":
        slope = gain[label] / mean[0]
        assert found.loc[label, "gain"] == pytest.approx(slope)
        assert found.loc[label, "offset"] == pytest.approx(offset[label] - slope * mean[1])


def test_letters_are_not_called_simulated():
    assert not APPLICATIONS["letters"].problem(0, True, ()).simulated


def test_the_split_takes_two_thirds_of_each_seen_group():
    groups = np.repeat(["a", "b", "c"], [30, 60, 9])
    train, test = split(3, groups, groups != "c")
    assert [(train & (groups == g)).sum() for g in "abc"] == [20, 40, 0]
    assert ((train ^ test) == (groups != "c")).all()


def test_standardised_images_know_no_gain_and_offset():
    x = np.random.default_rng(0).random((3, 5, 5))
    np.testing.assert_allclose(standardised(x), standardised(3 * x + 2), atol=1e-5)
    assert np.isfinite(standardised(np.ones((1, 5, 5)))).all()


def test_the_largest_groups_and_the_two_labels():
    assert largest_groups(np.array(list("abbccd")), 2).tolist() == [False, True, True, True, True, False]
    assert binary(["well", "ill"]).tolist() == [1, 0]
    with pytest.raises(DataError, match="3 different values"):
        binary([1, 2, 3])


def test_missing_predictors_get_the_training_rows_mean_and_a_column():
    table = pa.datasets.conversion(pa.simulate.cohort(300, 4, seed=0).frame)
    table.loc[0, "AGE"], table["APOE4"], table["MMSE"] = np.nan, 1.0, 25.0
    train = np.arange(len(table)) < 50
    x, names = predictors(table, train)
    assert x[0, names.index("AGE")] == pytest.approx(table["AGE"][1:50].mean())
    assert x[0, names.index("AGE_missing")] == 1.0
    assert "MMSE_missing" not in names
    assert np.isfinite(x).all()


def test_own_images_and_own_cohort(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for i in range(60):
        Image.fromarray(rng.integers(0, 255, (20, 20), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        rows.append((f"{i}.png", ("ill", "well")[i % 2], f"s{i % 15}"))
    pd.DataFrame(rows, columns=["image", "label", "site"]).to_csv(tmp_path / "list.csv", index=False)
    for name, seen in (("diagnosis", 12), ("cells", 10)):
        problem = APPLICATIONS[name].problem(0, True, [tmp_path / "list.csv"])
        assert len(problem.task.labels) == seen
        assert isinstance(problem.task.unseen, Rows)
        assert not problem.simulated
    with pytest.raises(ArgumentError, match="one CSV file"):
        APPLICATIONS["diagnosis"].problem(0, True, [tmp_path])
    pa.simulate.cohort(300, 30, seed=1).frame.to_csv(tmp_path / "ADNIMERGE.csv")
    problem = APPLICATIONS["conversion"].problem(0, True, [tmp_path / "ADNIMERGE.csv"])
    assert len(problem.task.labels) == 20
    assert not problem.simulated
    with pytest.raises(ArgumentError, match="one file"):
        APPLICATIONS["conversion"].problem(0, True, [tmp_path, tmp_path])
