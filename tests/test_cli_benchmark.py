"""``pyro-armed benchmark``: it writes what the library measured; errors are one sentence and no file."""

import numpy as np
import pandas as pd
import pytest

from pyro_armed import benchmark
from pyro_armed.benchmark._measure import Summary, row, table
from pyro_armed.cli import main


@pytest.fixture
def measured(monkeypatch):
    """Two benchmarks that take no time."""
    lines = [
        row("steps", "step time", "a", Summary(2.0, 1.0, 3.0), to="b", target="<= 1.5"),
        row("steps", "step time", "c", to="b", note="not installed: c"),
    ]
    sized = [row("rows", "step time", "a", 1.0, to="10 rows", size=size) for size in (10, 1000)]
    for name, rows in (("steps", lines), ("rows", sized)):
        monkeypatch.setitem(benchmark.BENCHMARKS, name, lambda quick, seed, rows=rows: table(rows))
    return table([*lines, *sized])


def test_table_machine_and_pictures(measured, tmp_path, capsys):
    out = tmp_path / "new" / "folder"
    assert main(["benchmark", "--only", "rows", "steps", "--out", str(out), "--quiet"]) == 0
    text, err = capsys.readouterr()
    assert err == ""
    assert sorted(path.name for path in out.iterdir()) == [
        "benchmark.csv",
        "machine.csv",
        "rows.png",
        "steps.png",
    ]
    written = pd.read_csv(out / "benchmark.csv", keep_default_na=False, na_values=["", "nan"])
    assert tuple(written.columns) == benchmark.COLUMNS
    text_columns = ["target", "met", "note"]
    pd.testing.assert_frame_equal(
        written.fillna(dict.fromkeys(text_columns, "")), measured, check_dtype=False
    )
    assert pd.read_csv(out / "machine.csv").equals(benchmark.machine()) or "load" in text
    assert (out / "steps.png").read_bytes().startswith(b"\x89PNG")
    for word in ("processor: ", "torch: ", "steps", "not installed: c", "<= 1.5", "1,000"):
        assert word in text
    assert text.index("\nsteps\n") < text.index("\nrows\n")


def test_the_real_thing(tmp_path, capsys):
    arguments = ["benchmark", "--only", "restarts", "--quick", "--out", str(tmp_path), "--seed", "1"]
    assert main(arguments) == 0
    assert "restarts" in capsys.readouterr().err  # the progress bar
    written = pd.read_csv(tmp_path / "benchmark.csv")
    assert np.isfinite(written["ratio"]).all()
    assert written["size"].tolist() == [1.0, 2.0]
    assert written["ratio"].iloc[1] > 0.8


def test_list(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["benchmark", "--list"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert names == list(benchmark.BENCHMARKS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "steps", "nonsense"], "There is no benchmark 'nonsense'; there are steps, structured, "),
        (["--only", "steps", "--out", "file"], "'file' is a file; name a folder with --out."),
    ],
)
def test_errors_come_before_any_work(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setitem(benchmark.BENCHMARKS, "steps", lambda quick, seed: 1 / 0)
    assert main(["benchmark", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"pyro-armed: error: {message}")
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["benchmark", "--help"])
    assert exit_.value.code == 0
    assert "example:\n  pyro-armed benchmark --only" in capsys.readouterr().out
