"""Applications: tables, files, and what is said of them."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from pyro_armed.baselines import fits
from pyro_armed.cli import main
from pyro_armed.errors import ArgumentError, DataError
from pyro_armed.plots import new_figure
from pyro_armed.reproduce import APPLICATIONS, Problem, find, run
from pyro_armed.reproduce._run import summarised

SMALL = replace(
    APPLICATIONS["spirals"],
    baselines=("conventional", "ARMED"),
    pictures=lambda problem, fitted, number: {"empty": new_figure()},
)


def test_a_run_writes_table_pictures_and_posterior(tmp_path):
    result = run(SMALL, tmp_path / "new" / "folder", seeds=2, quick=True, progressbar=False)
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        "empty.png",
        "spirals.csv",
        "spirals.nc",
        "spirals_summary.csv",
    ]
    table = pd.read_csv(tmp_path / "new" / "folder" / "spirals.csv")
    assert table.columns.tolist() == ["baseline", "split", "metric", "value", "se", "fold"]
    pd.testing.assert_frame_equal(table, result.table, check_dtype=False)
    assert set(table["fold"]) == {0, 1}
    assert {"conventional", "ARMED", "limit, radii known"} <= set(table["baseline"])
    with xr.open_dataset(tmp_path / "new" / "folder" / "spirals.nc", engine="h5netcdf") as whole:
        assert whole.attrs["guide"] == "mean_field"
    text = str(result)
    assert text.startswith("Simulated data.")
    assert "figures that mean nothing" in text
    assert "Each fold:" in text
    assert "spirals_summary.csv" in text


def test_the_same_seeds_give_the_same_table():
    one, two = (run(SMALL, seeds=1, quick=True, progressbar=False) for _ in range(2))
    assert one.table.equals(two.table)
    assert one.files == ()


def test_nothing_is_written_where_a_picture_fails(tmp_path):
    def fail(problem, fitted, number):
        raise DataError("no picture")

    with pytest.raises(DataError, match="no picture"):
        run(replace(SMALL, pictures=fail), tmp_path, quick=True, progressbar=False)
    assert list(tmp_path.iterdir()) == []


def test_the_summary_is_the_mean_and_its_standard_error():
    table = pd.DataFrame(
        {
            "baseline": ["a", "b", "a", "b"],
            "split": "seen",
            "metric": "accuracy",
            "value": [0.5, 0.6, 0.7, 0.6],
            "seed": [0, 0, 1, 1],
        }
    )
    summary = summarised(table).set_index("baseline")
    assert summary.loc["a", "mean"] == pytest.approx(0.6)
    assert summary.loc["a", "se"] == pytest.approx(np.std([0.5, 0.7], ddof=1) / np.sqrt(2))
    assert summary.loc["b", "se"] == pytest.approx(0.0, abs=1e-12)
    assert summary["replicates"].tolist() == [2, 2]


def test_errors_name_the_mend(tmp_path):
    with pytest.raises(ArgumentError, match="no application 'spiral'; use one of spirals"):
        find("spiral")
    with pytest.raises(ArgumentError, match="spirals has 10 folds; 11 are too many"):
        run("spirals", seeds=11)
    with pytest.raises(ArgumentError, match="seeds=0 must be a whole number"):
        run("spirals", seeds=0)
    with pytest.raises(ArgumentError, match="spirals reads no files"):
        run("spirals", data=["rows.csv"])
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is a file; name a folder"):
        run("spirals", tmp_path / "file")


# --- spirals -----------------------------------------------------------------------------------------------


def test_folds_share_the_rows_out_and_nothing_is_trained_and_tested():
    problems = [SMALL.problem(fold, True, ()) for fold in range(10)]
    tested = np.concatenate([problem.truth.test.index for problem in problems])
    np.testing.assert_array_equal(np.sort(tested), np.arange(400))
    task = problems[3].task
    whole = np.concatenate([task.train.x, task.seen.x])
    assert len(np.unique(whole, axis=0)) == 400


def test_limits_are_the_best_that_is_possible():
    problem: Problem = SMALL.problem(0, False, ())
    known = problem.limits["limit, radii known"]
    unknown = problem.limits["limit, radii's distribution known"]
    assert known["seen", "accuracy"] == pytest.approx(0.908, abs=0.03)
    assert unknown["seen", "accuracy"] < known["seen", "accuracy"]
    assert len(problem.task.train) == 9000
    assert problem.simulated


def test_every_first_weight_of_the_network_is_as_published():
    network = SMALL.problem(0, True, ()).task.network()
    assert [tuple(p.shape) for p in network.parameters() if p.ndim == 2] == [(4, 2), (4, 4), (4, 4), (1, 4)]
    assert all((p == 0).all() for p in network.parameters() if p.ndim == 1)
    assert network[2].weight.abs().max() <= np.sqrt(6 / 8)


def test_the_probes_share_is_measured_of_models_that_see_them():
    app = APPLICATIONS["spirals-confounded"]
    problem = app.problem(0, True, ())
    ((name, fitted),) = fits(problem.task, baselines=["conventional"], progressbar=False)
    (row,) = app.measures(problem, name, fitted, 0).itertuples()
    assert row.metric == "probes' share"
    assert 0.0 < row.value < 1.0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spirals", "spirals-confounded"])
def test_quick_runs_have_every_baseline(name, tmp_path, capsys):
    assert main(["reproduce", name, "--quick", "--quiet", "--out", str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert "Simulated data." in told.out
    names = [one if isinstance(one, str) else one.name for one in find(name).baselines]
    table = pd.read_csv(tmp_path / f"{name}.csv")
    assert [one for one in table["baseline"].unique() if "limit" not in one] == names
    assert (tmp_path / f"{name}.nc").is_file()
    assert list(tmp_path.glob("*.png"))
