"""The command line: what it writes is what the library returns; errors are one sentence and no file."""

import argparse
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import pyro_armed as pa
from pyro_armed import cli
from pyro_armed.cli import _tables, main
from pyro_armed.spec import Group

# Fits as short as these have not converged.
pytestmark = pytest.mark.filterwarnings("ignore::pyro_armed.errors.ConvergenceWarning")

SMALL = ["--guide", "mean_field", "--restarts", "2", "--epochs", "30", "--draws", "40", "--quiet"]
FORMULA = "y ~ x1 + (1 | group)"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with training rows, rows of a new group, and a fitted model."""
    folder = tmp_path_factory.mktemp("cli")
    data = pa.simulate.mixed_model(8, 20, seed=0)
    data.frame.to_csv(folder / "train.csv", index=False)
    data.frame.to_parquet(folder / "train.parquet", index=False)
    rows = data.frame.head(6).copy()
    rows.loc[rows.index[-2:], "group"] = "new"
    rows.to_csv(folder / "rows.csv", index=False)
    outputs = ["--out", str(folder / "m.armed"), "--netcdf", str(folder / "post.nc")]
    code = main(["fit", FORMULA, str(folder / "train.csv"), *outputs, "--seed", "3", *SMALL])
    assert code == 0
    return folder


def run(capsys, *arguments):
    """Exit code, stdout and stderr."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def refused(capsys, folder, *arguments):
    """The one line that an error prints, after checks that there is nothing else."""
    before = sorted(folder.iterdir())
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("pyro-armed: error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert sorted(folder.iterdir()) == before, "a file was left behind"
    return err


# --- fit ---------------------------------------------------------------------------------------------------


def test_fit_is_what_the_library_fits(files):
    model = pa.ARMED(FORMULA, pd.read_csv(files / "train.csv"))
    idata = model.fit(guide="mean_field", restarts=2, epochs=30, draws=40, seed=3, progressbar=False)
    stored = pa.load(files / "m.armed")
    written = xr.open_datatree(files / "post.nc", engine="h5netcdf")["posterior"]
    for name in ("x1", "1|group", "1|group_sigma", "sigma"):
        np.testing.assert_array_equal(written[name], idata["posterior"][name])
        np.testing.assert_array_equal(stored.idata["posterior"][name], idata["posterior"][name])


def test_fit_prints_a_summary_without_the_groups_effects(files, capsys):
    code, out, err = run(
        capsys, "fit", FORMULA, files / "train.parquet", "--out", files / "again.armed", *SMALL
    )
    assert code == 0
    assert "160 rows, 8 groups of group" in out
    for name in ("Intercept", "x1", "1|group_sigma", "sigma"):
        assert any(line.split()[:1] == [name] for line in out.splitlines()), name
    assert "1|group[" not in out
    assert "r_hat" in out
    assert "SVI" not in err


def test_summary_has_each_correlation_once(files, capsys):
    arguments = [
        "fit",
        "y ~ x1 + (1 + x1 | group)",
        files / "train.csv",
        "--out",
        files / "slope.armed",
        *SMALL,
    ]
    code, out, _ = run(capsys, *arguments)
    assert code == 0
    (line,) = [line for line in out.splitlines() if "corr" in line]
    assert line.startswith("group_corr[1, x1]")
    correlation = pa.load(files / "slope.armed").idata["posterior"]["group_corr"].to_numpy()[..., 0, 1]
    assert float(line.split("]")[1].split()[0]) == pytest.approx(correlation.mean(), abs=6e-4)


def test_progress_is_shown_unless_quiet(files, capsys):
    arguments = ["fit", FORMULA, files / "train.csv", "--out", files / "again.armed", *SMALL[:-1]]
    assert "SVI 1/2" in run(capsys, *arguments)[2]
    assert "SVI" not in run(capsys, *arguments, "--quiet")[2]


def test_membership_is_predicted_where_fit_was_asked_for_it(files, capsys):
    predicting = ["--new-groups", "membership", "--out", files / "mem.csv"]
    code, _, err = run(capsys, "predict", files / "m.armed", files / "rows.csv", *predicting)
    assert code == 2
    assert "fit with --membership" in err
    made = ["--out", files / "mem.armed", "--membership", *SMALL]
    assert run(capsys, "fit", FORMULA, files / "train.csv", *made)[0] == 0
    assert run(capsys, "predict", files / "mem.armed", files / "rows.csv", *predicting)[0] == 0
    predicted = pa.load(files / "mem.armed").predict(pd.read_csv(files / "rows.csv"), new_groups="membership")
    mean = predicted["predictions"]["y"].mean(["chain", "draw"])
    np.testing.assert_allclose(pd.read_csv(files / "mem.csv")["mean"], mean, rtol=1e-5)


def test_fit_passes_network_adversary_and_family(files, capsys):
    frame = pd.read_csv(files / "train.csv").assign(
        z=lambda rows: (rows["y"] > rows["y"].median()).astype(int)
    )
    frame.to_csv(files / "binary.csv", index=False)
    arguments = ["fit", "z ~ x1 + (1 + features | group)", files / "binary.csv", "--out", files / "net.armed"]
    code, out, _ = run(
        capsys, *arguments, "--family", "bernoulli", "--network", "5,4", "--adversary", "0.5", *SMALL
    )
    assert code == 0
    model = pa.load(files / "net.armed")
    assert model.spec.family.name == "bernoulli"
    assert model.spec.n_features == 4
    assert "features|group_sigma" in out
    first, second = [layer.out_features for layer in model.module.network.layers if hasattr(layer, "weight")][
        :2
    ]
    assert (first, second) == (5, 4)


# --- predict and evaluate ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["population", "marginal"])
def test_predictions_are_the_librarys(files, capsys, mode):
    out = files / f"{mode}.csv"
    code, text, _ = run(
        capsys,
        "predict",
        files / "m.armed",
        files / "rows.csv",
        "--new-groups",
        mode,
        "--out",
        out,
        "--seed",
        5,
    )
    assert code == 0
    assert "6 predictions" in text
    predicted = pa.load(files / "m.armed").predict(pd.read_csv(files / "rows.csv"), new_groups=mode, seed=5)
    draws = predicted["predictions"]["y"].to_numpy().reshape(-1, 6)
    table = pd.read_csv(out)
    assert table["row"].tolist() == list(range(6))
    np.testing.assert_allclose(table["mean"], draws.mean(0), rtol=1e-6)
    np.testing.assert_allclose(table["sd"], draws.std(0), rtol=1e-6)
    quantiles = np.quantile(draws, [0.05, 0.5, 0.95], axis=0)
    np.testing.assert_allclose(table[["q05", "q50", "q95"]].to_numpy().T, quantiles, rtol=1e-6)


def test_support_adapts_new_groups(files, capsys):
    rows = pd.read_csv(files / "rows.csv")
    labelled = rows[rows["group"] == "new"]
    labelled.to_csv(files / "labelled.csv", index=False)
    how = ("--new-groups", "adapt", "--support", files / "labelled.csv")
    call = (files / "m.armed", files / "rows.csv", *how, "--out")
    assert run(capsys, "predict", *call, files / "adapted.csv")[0] == 0
    expected = pa.load(files / "m.armed").predict(rows, new_groups="adapt", support=labelled)
    table = pd.read_csv(files / "adapted.csv")
    np.testing.assert_allclose(table["mean"], expected["predictions"]["y"].mean(("chain", "draw")), rtol=1e-6)
    assert run(capsys, "evaluate", *call, files / "scores.csv")[0] == 0
    scores = pa.load(files / "m.armed").evaluate(rows, new_groups="adapt", support=labelled)
    np.testing.assert_allclose(pd.read_csv(files / "scores.csv")["value"], scores["value"], rtol=1e-6)


def test_kind_and_draws_are_passed_on(files, capsys):
    seen = files / "seen.csv"
    pd.read_csv(files / "rows.csv").head(4).to_csv(seen, index=False)

    def sd(*options):
        run(capsys, "predict", files / "m.armed", seen, "--out", files / "kind.parquet", *options)
        return pd.read_parquet(files / "kind.parquet")["sd"].mean()

    assert sd("--kind", "response") > 2 * sd("--kind", "mean")
    assert sd("--draws", "1") != sd()


@pytest.fixture(scope="module")
def spare(files):
    """Rows of groups that training did not have, and of which there are enough for conformal intervals."""
    frame = pa.simulate.mixed_model(20, 6, seed=8).frame.assign(group=lambda rows: "spare " + rows["group"])
    frame.to_csv(files / "spare.csv", index=False)
    return frame


def test_conformal_intervals_and_what_was_done_for_new_groups_are_written(files, spare, capsys):
    rows, how = pd.read_csv(files / "rows.csv").tail(2), ("--new-groups", "marginal", "--seed", 2)
    rows.to_csv(files / "new.csv", index=False)
    asked = ("--intervals", "conformal", "--calibration", files / "spare.csv", "--level", "0.8")
    call = ("predict", files / "m.armed", files / "new.csv", *how, "--out", files / "intervals.csv")
    assert run(capsys, *call, *asked)[0] == 0
    expected = pa.load(files / "m.armed").predict(
        rows, new_groups="marginal", intervals="conformal", calibration=spare, level=0.8, seed=2
    )["predictions"]
    table = pd.read_csv(files / "intervals.csv")
    assert table["new_groups"].tolist() == ["marginal", "marginal"]
    for name in ("lower", "upper"):
        np.testing.assert_allclose(table[name], expected[name], rtol=1e-6)
    widths = []
    for level in ("0.5", "0.8"):
        assert run(capsys, *call, "--intervals", "posterior", "--level", level)[0] == 0
        table = pd.read_csv(files / "intervals.csv")
        widths.append(table["upper"] - table["lower"])
    assert (widths[0] < widths[1]).all()
    assert "calibration=" in refused(capsys, files, *call, "--intervals", "conformal")


def test_sets_of_levels_have_a_column_for_each():
    members = np.array([[True, False], [True, True]])
    dataset = xr.Dataset(
        {
            "y": (("chain", "draw", "__obs__"), np.full((1, 3, 2), 0.25)),
            "in_set": (("__obs__", "y_dim"), members),
        },
        coords={"y_dim": ["no", "yes"]},
    )
    table = cli._predict.prediction_table({"predictions": dataset})
    np.testing.assert_array_equal(table[["in_set[no]", "in_set[yes]"]], members)
    assert (table["mean"] == 0.25).all()


def test_levels_of_a_response_get_columns_of_their_own():
    values = np.random.default_rng(0).dirichlet(np.ones(3), (2, 5, 4))
    dataset = xr.Dataset(
        {"y": (("chain", "draw", "__obs__", "y_dim"), values)}, coords={"y_dim": ["a", "b", "c"]}
    )
    table = cli._predict.prediction_table({"predictions": dataset})
    assert len(table) == 4
    np.testing.assert_allclose(table["mean[b]"], values[..., 1].mean((0, 1)))
    np.testing.assert_allclose(table["q95[c]"], np.quantile(values[..., 2].reshape(10, 4), 0.95, axis=0))


def test_scores_are_the_librarys(files, capsys):
    out = files / "scores.csv"
    code, text, _ = run(
        capsys, "evaluate", files / "m.armed", files / "rows.csv", "--new-groups", "marginal", "--out", out
    )
    assert code == 0
    expected = pa.load(files / "m.armed").evaluate(pd.read_csv(files / "rows.csv"), new_groups="marginal")
    pd.testing.assert_frame_equal(pd.read_csv(out), expected, check_dtype=False, rtol=1e-9)
    assert text.split()[:3] == ["metric", "value", "se"]
    shown = {line.split()[0]: line.split()[1] for line in text.splitlines()[1:]}
    for metric, value in zip(expected["metric"], expected["value"], strict=True):
        assert shown[metric] == f"{value:.4f}"


# --- labels ------------------------------------------------------------------------------------------------


def csv(tmp_path, text):
    path = tmp_path / "t.csv"
    path.write_text(text)
    return path


def test_labels_that_numbers_would_change_stay_text(tmp_path):
    path = csv(tmp_path, "y,x,site,ward\n1,2,01,7\n3,4,1,8\n")
    frame = _tables.read_table(path, "y ~ x + (1 | site) + (1 | ward)")
    assert frame["site"].tolist() == ["01", "1"]
    assert frame["ward"].tolist() == [7, 8]
    assert frame["x"].dtype == np.int64


def test_none_is_a_label_and_na_is_missing(tmp_path):
    path = csv(tmp_path, "y,x,g\n1,None,a\n2,NA,b\n,One,\n")
    frame = _tables.read_table(path, "y ~ x + (1 | g)")
    assert frame["x"][0] == "None"
    assert frame.isna().to_numpy().tolist() == [[False] * 3, [False, True, False], [True, False, True]]


@pytest.mark.parametrize("known", [(1, 2), ("1", "2"), (1.0, 2.0)])
@pytest.mark.parametrize("text", ["1\n2\n", "1\n2\nx\n", "1.0\n2.0\n"])
def test_labels_are_matched_by_their_text(tmp_path, known, text):
    path = csv(tmp_path, "g\n" + text)
    group = Group("g", known, (1, 1))
    labels = _tables.read_table(path, "y ~ 1 + (1 | g)", [group])["g"].tolist()
    assert labels[:2] == list(known)
    assert [type(label) for label in labels[:2]] == [type(label) for label in known]
    assert labels[2:] == ["x"] * (len(labels) - 2)


def test_missing_labels_stay_missing(tmp_path):
    path = csv(tmp_path, "g,x\n1,0\n,1\n")
    frame = _tables.read_table(path, "y ~ x + (1 | g)", [Group("g", (1, 2), (1, 1))])
    assert frame["g"].isna().tolist() == [False, True]
    frame.to_parquet(tmp_path / "t.parquet")
    again = _tables.read_table(tmp_path / "t.parquet", "y ~ x + (1 | g)", [Group("g", (1, 2), (1, 1))])
    assert again["g"].isna().tolist() == [False, True]


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        ("y ~ x + (1 | site)", ["site"]),
        ("y ~ x + (1 + x || site) + (x | ward)", ["site", "ward"]),
        ("y ~ x + (1 | site/ward)", ["site", "ward"]),
        ("y ~ x + (1 | site:ward)", ["site", "ward"]),
        ("y ~ site + x", []),
        ("y ~ (1 | site_2)", []),
    ],
)
def test_grouping_columns(formula, expected):
    assert _tables.grouping_columns(formula, ["y", "x", "site", "ward"]) == expected


# --- errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["fit", FORMULA, "none.csv", "--out", "o.armed"], "no file"),
        (["fit", FORMULA, "train.txt", "--out", "o.armed"], "suffix '.txt'"),
        (["fit", FORMULA, "train", "--out", "o.armed"], "no suffix"),
        (["fit", FORMULA, "train.csv", "--out", "o.pt"], "use .armed"),
        (["fit", FORMULA, "train.csv", "--out", "none/o.armed"], "no folder"),
        (["fit", FORMULA, "train.csv", "--out", "o.armed", "--netcdf", "o.zarr"], "use .nc"),
        (["fit", FORMULA, "empty.csv", "--out", "o.armed"], "is empty"),
        (["fit", FORMULA, "ragged.csv", "--out", "o.armed"], "cannot be read as CSV"),
        (["fit", FORMULA, "binary_junk.csv", "--out", "o.armed"], "cannot be read as CSV"),
        (["fit", FORMULA, "not.parquet", "--out", "o.armed"], "cannot be read as PARQUET"),
        (["fit", FORMULA, "folder.csv", "--out", "o.armed"], "not a file"),
        (["fit", "y ~ x9 + (1 | group)", "train.csv", "--out", "o.armed"], "x9"),
        (["fit", "y ~ ~", "train.csv", "--out", "o.armed"], ""),
        (["fit", FORMULA, "train.csv", "--out", "o.armed", "--family", "gauss"], "gauss"),
        (["fit", FORMULA, "train.csv", "--out", "o.armed", "--guide", "best"], "best"),
        (["fit", FORMULA, "train.csv", "--out", "o.armed", "--adversary", "0.5"], "network"),
        (["predict", "m.armed", "rows.csv", "--out", "o.csv"], "'new'"),
        (["predict", "none.armed", "rows.csv", "--out", "o.csv"], "no model file"),
        (["predict", "train.csv", "rows.csv", "--out", "o.csv"], ""),
        (["predict", "m.armed", "rows.csv", "--out", "o.xlsx"], "use .csv or .parquet"),
        (["predict", "m.armed", "rows.csv", "--out", "folder.csv"], "is a folder"),
        (["evaluate", "m.armed", "none.csv"], "no file"),
        (["evaluate", "m.armed", "rows.csv"], "'new'"),
        (["demo", "--out", "train.csv"], "is a file"),
        (["demo", "--seed", "-1", "--quiet"], "seed"),
    ],
)
def test_errors_are_one_sentence(files, capsys, monkeypatch, arguments, says):
    (files / "empty.csv").write_bytes(b"")
    (files / "ragged.csv").write_text("y,x1,group\n1,2,a\n1,2,3,4,5\n")
    (files / "binary_junk.csv").write_bytes(bytes(range(128, 256)) * 8)
    (files / "not.parquet").write_text("y,x1,group\n1,2,a\n")
    (files / "folder.csv").mkdir(exist_ok=True)
    monkeypatch.chdir(files)
    assert says in refused(capsys, files, *arguments)


@pytest.mark.parametrize("arguments", [[], ["fly"], ["predict", "m.armed", "rows.csv"], ["fit", "y ~ 1"]])
def test_wrong_usage_exits_with_2(capsys, arguments):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert "usage: pyro-armed" in capsys.readouterr().err


@pytest.mark.parametrize("units", ["", "16,x", "0", "4,-1"])
def test_network_units_are_checked(capsys, units):
    with pytest.raises(SystemExit):
        main(["fit", FORMULA, "train.csv", "--out", "o.armed", "--network", units])
    assert "such as 16,16" in capsys.readouterr().err


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")

    def half(draft):
        draft.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        _tables.write_whole(path, half)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with path.open() as reader:  # a reader sees the old file to its end
        _tables.write_whole(path, lambda draft: draft.write_text("new"))
        assert reader.read() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_written_file_is_as_readable_as_any(tmp_path):
    (tmp_path / "usual.csv").write_text("a")
    _tables.write_table(tmp_path / "ours.csv", pd.DataFrame({"a": [1]}))
    assert (tmp_path / "ours.csv").stat().st_mode == (tmp_path / "usual.csv").stat().st_mode


def test_disk_errors_are_told(files, capsys, monkeypatch):
    def fail(self, path):
        Path(path).write_text("half")
        raise OSError("No space left on device")

    monkeypatch.setattr(pa.ARMED, "save", fail)
    monkeypatch.chdir(files)
    arguments = ["fit", FORMULA, "train.csv", "--out", "never.armed", *SMALL]
    assert "No space left" in refused(capsys, files, *arguments)


def test_interruption_is_told(capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli._fitted_models, "load", interrupt)
    monkeypatch.setattr(Path, "is_file", lambda _: True)
    code, out, err = run(capsys, "predict", "m.armed", "rows.csv", "--out", "o.csv")
    assert (code, out) == (130, "")
    assert "interrupted" in err


def test_warnings_are_one_line(files, capsys, monkeypatch):
    def warn(*_, **__):
        warnings.warn("two\nlines", pa.errors.ConvergenceWarning, stacklevel=1)
        raise pa.errors.DataError("the end")

    monkeypatch.setattr(cli._fitted_models, "load", warn)
    shown = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        _, _, err = run(capsys, "predict", files / "m.armed", files / "rows.csv", "--out", files / "o.csv")
    assert err.splitlines() == ["pyro-armed: warning: two lines", "pyro-armed: error: the end"]
    assert warnings.showwarning is shown


# --- demo and help -----------------------------------------------------------------------------------------


def test_demo_writes_table_posterior_and_picture(tmp_path, capsys):
    code, out, err = run(capsys, "demo", "--quick", "--quiet", "--seed", 1, "--out", tmp_path / "demo")
    assert code == 0
    assert "SVI" not in err
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == [
        "decision_boundaries.png",
        "posterior.nc",
    ]
    tree = xr.open_datatree(tmp_path / "demo" / "posterior.nc", engine="h5netcdf")
    assert tree["posterior"]["features|group"].sizes["feature"] == 16
    assert (tmp_path / "demo" / "decision_boundaries.png").read_bytes()[:4] == b"\x89PNG"

    data = pa.simulate.spirals(rows_per_group=200, seed=1)
    _, test = cli._demo.train_test(data.frame, 1)
    limits = [data.bayes_accuracy(test), data.bayes_accuracy(test, known_radius=False)]
    table = [line.split() for line in out.splitlines() if "." in line.rsplit(" ", 1)[-1]]
    accuracy = [float(line[-2]) for line in table if line[-1][0].isdigit()]
    assert accuracy[2:] == [round(limit, 3) for limit in limits]
    assert accuracy[0] > 0.7


@pytest.mark.slow
def test_demo_reaches_the_limit():
    """Mean over five data seeds of the accuracy's share of what the Bayes-optimal classifier reaches."""
    options = argparse.Namespace(quiet=True)
    shares = {"ARMED": [], "without": []}
    for options.seed in range(5):
        data = pa.simulate.spirals(seed=options.seed)
        train, test = cli._demo.train_test(data.frame, options.seed)
        for name, formula in (("ARMED", cli._demo.FORMULA), ("without", cli._demo.WITHOUT)):
            model = cli._demo.fit(formula, train, cli._demo.Size(restarts=1), options)
            shares[name].append(cli._demo.accuracy(model, test) / data.bayes_accuracy(test))
    assert np.mean(shares["ARMED"]) >= 0.96, shares
    assert np.mean(shares["ARMED"]) > np.mean(shares["without"]) + 0.03, shares


def test_train_and_test_rows_share_nothing():
    frame = pa.simulate.spirals(3, 50, seed=0).frame
    train, test = cli._demo.train_test(frame, 0)
    assert (len(train), len(test)) == (120, 30)
    assert sorted([*train.index, *test.index]) == frame.index.tolist()


@pytest.mark.parametrize("command", ["", "demo", "fit", "predict", "evaluate"])
def test_help_has_an_example(capsys, command):
    with pytest.raises(SystemExit) as exit_:
        main([*command.split(), "--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert f"example:\n  pyro-armed {command}" in text
    assert max(map(len, text.splitlines())) <= 110


def test_runs_as_a_process(files):
    code = "import sys; from pyro_armed.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "evaluate", "nothing.armed", "rows.csv"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=files, timeout=300,
        env={**os.environ, "PYTHONPATH": str(Path(pa.__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "pyro-armed: error: There is no model file 'nothing.armed'.\n"
    assert done.stdout == ""


# --- cross-validation --------------------------------------------------------------------------------------


def test_cross_validation_is_the_librarys(files, capsys):
    out = files / "folds.parquet"
    options = ["--cross-validate", "both", "--folds", "3", "--seed", "4", "--out", out]
    code, text, err = run(capsys, "evaluate", FORMULA, files / "train.csv", *options, *SMALL)
    assert code == 0
    assert "Folds" not in err
    frame = pd.read_csv(files / "train.csv")
    expected = pa.cross_validate(
        pa.ARMED(FORMULA, frame), frame, by="both", folds=3, seed=4, progressbar=False,
        guide="mean_field", restarts=2, epochs=30, draws=40,
    )  # fmt: skip
    written = pd.read_parquet(out)
    np.testing.assert_allclose(written["value"], expected["value"], rtol=1e-9)
    assert written["fold"].tolist() == expected["fold"].astype(str).tolist()
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["split", "metric", "value", "se"]
    overall = expected.query("fold == 'all' and group == 'all'")
    assert [line[:2] for line in lines[1:]] == overall[["split", "metric"]].to_numpy().tolist()
    assert float(lines[1][2]) == pytest.approx(overall["value"].iloc[0], abs=6e-5)


def test_cross_validation_options_that_do_not_fit(files, capsys):
    data = files / "train.csv"
    message = refused(capsys, files, "evaluate", files / "m.armed", data, "--cross-validate", "row")
    assert "needs a formula" in message
    message = refused(capsys, files, "evaluate", files / "m.armed", data, "--family", "poisson")
    assert "--family is for --cross-validate" in message
    message = refused(capsys, files, "evaluate", FORMULA, data, "--cross-validate", "cluster", "--folds", "1")
    assert "folds=1" in message
    message = refused(capsys, files, "evaluate", FORMULA, data, "--cross-validate", "row", "--support", data)
    assert "--support cannot be used" in message


# --- rows that are streamed --------------------------------------------------------------------------------


def test_streamed_fits_and_predictions_are_the_librarys(files, capsys, monkeypatch):
    how = ("--guide", "mean_field", "--restarts", "1", "--epochs", "3", "--batch-size", "40", "--draws", "40")
    arguments = ["fit", FORMULA, files / "train.parquet", *how, "--seed", "3", "--quiet", "--stream", "--out"]
    assert run(capsys, *arguments, files / "streamed.armed")[0] == 0
    model = pa.ARMED(FORMULA, files / "train.parquet")
    model.fit(guide="mean_field", restarts=1, epochs=3, batch_size=40, draws=40, seed=3, progressbar=False)
    stored = pa.load(files / "streamed.armed")
    np.testing.assert_array_equal(stored.idata["posterior"]["x1"], model.idata["posterior"]["x1"])
    assert stored.idata.attrs["sampled_rows"] == 160

    call = ["predict", files / "streamed.armed", files / "train.parquet", "--out", files / "whole.parquet"]
    assert run(capsys, *call)[0] == 0
    monkeypatch.setattr("pyro_armed.streamed_evaluation._NUMBERS", 40 * 50)  # blocks of 50 rows
    for suffix in ("csv", "parquet"):
        call[-1] = files / f"blocks.{suffix}"
        code, out, _ = run(capsys, *call, "--stream")
        assert code == 0
        assert "160 predictions" in out
        blocks = pd.read_csv(call[-1]) if suffix == "csv" else pd.read_parquet(call[-1])
        pd.testing.assert_frame_equal(blocks, pd.read_parquet(files / "whole.parquet"), rtol=1e-9)


def test_streamed_scores_are_the_librarys(files, capsys, monkeypatch):
    monkeypatch.setattr("pyro_armed.streamed_evaluation._NUMBERS", 40 * 50)
    call = [
        "evaluate",
        files / "m.armed",
        files / "train.parquet",
        "--stream",
        "--out",
        files / "streamed.csv",
    ]
    code, text, _ = run(capsys, *call)
    assert code == 0
    assert "nlpd" in text
    expected = pa.load(files / "m.armed").evaluate(files / "train.parquet")
    pd.testing.assert_frame_equal(pd.read_csv(files / "streamed.csv"), expected, check_like=True)
    _, _, err = run(capsys, *call[:2], files / "train.csv", *call[3:])
    assert "--stream reads Parquet only" in err


def test_large_files_are_streamed_where_the_guide_allows(files, capsys, monkeypatch):
    monkeypatch.setattr("pyro_armed.cli._streams.LARGE", 100)
    arguments = ["fit", FORMULA, files / "train.parquet", "--out", files / "large.armed", *SMALL]
    assert run(capsys, *arguments)[0] == 0
    assert "sampled_rows" in pa.load(files / "large.armed").idata.attrs
    arguments[arguments.index("mean_field")] = "structured"
    assert run(capsys, *arguments)[0] == 0
    assert "sampled_rows" not in pa.load(files / "large.armed").idata.attrs
    code, _, err = run(capsys, *arguments, "--stream")
    assert code == 2
    assert "guide='structured' needs all rows in memory" in err


def test_what_cannot_be_streamed_is_said(files, capsys):
    out = ("--stream", "--out", files / "none.csv")
    code, _, err = run(capsys, "predict", files / "m.armed", files / "rows.csv", *out)
    assert code == 2
    assert "--stream reads Parquet only" in err
    code, _, err = run(
        capsys, "predict", files / "m.armed", files / "train.parquet", "--new-groups", "membership", *out
    )
    assert code == 2
    assert "all rows of a new group" in err
    assert not (files / "none.csv").exists()
