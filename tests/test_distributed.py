"""Training in several processes: shards, the loss's scale, draws, checkpoints, and a process that dies."""

import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pyro_armed as pa
from pyro_armed.distributed import Shard, Task, fit, fit_from
from pyro_armed.distributed._shards import training_rows
from pyro_armed.distributed._tables import LazyAdam, exchanged, sparse_gradients
from pyro_armed.errors import ArgumentError, ConvergenceWarning, FileFormatError, NotFittedError
from pyro_armed.training import cosine
from pyro_armed.updates import BETAS, RARE, adam

FORMULA = "y ~ x1 + (1 | group)"
QUICK: dict[str, Any] = {"batch_size": 60, "draws": 20, "early_stopping": False, "progressbar": False}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def small(formula: str = FORMULA, **options: Any) -> pa.ARMED:
    frame = pa.simulate.mixed_model(30, 10, seed=0).frame
    return pa.ARMED(formula, frame.assign(b=frame["y"] > 0), **options)


def networked() -> pa.ARMED:
    return small(
        "b ~ x1 + (1 + features | group)",
        family="bernoulli",
        network=pa.networks.MLP(hidden=(4,)),
        adversary=pa.Adversary(0.5),
    )


@pytest.mark.parametrize("parquet", [False, True])
def test_shards_share_the_rows(parquet: bool, tmp_path: Path) -> None:
    frame = pa.simulate.mixed_model(30, 10, seed=0).frame
    frame["y"] = np.arange(300.0)
    frame.to_parquet(tmp_path / "rows.parquet", row_group_size=40)
    model = pa.ARMED(FORMULA, tmp_path / "rows.parquet" if parquet else frame)
    shards = [Shard(model, 25, seed=1, rank=rank, world=3) for rank in range(3)]
    batches = [list(shard.epoch(2)) for shard in shards]
    assert len({len(some) for some in batches}) == 1
    assert {batch.n_rows for some in batches for batch in some} == {300}
    seen = torch.cat([batch.response for some in batches for batch in some])  # type: ignore[misc]
    assert len(seen) == len(seen.unique()) >= 225
    again = next(shards[1].epoch(2)).response
    assert torch.equal(again, batches[1][0].response)  # type: ignore[arg-type]
    assert not torch.equal(again, next(shards[1].epoch(3)).response)  # type: ignore[arg-type]


def test_the_mean_loss_of_two_shards_is_that_of_their_rows() -> None:
    """At the same draws: DDP averages gradients, so the loss must be per row of all data in each process."""
    task = Task(small())
    rows = training_rows(task.model[0])
    parts = [rows.select(torch.arange(0, 60)), rows.select(torch.arange(60, 120))]
    losses = [task(part)[0] for part in parts]
    joint = task(rows.select(torch.arange(120)))[0]
    torch.testing.assert_close((losses[0] + losses[1]) / 2, joint)


def test_draws_differ_between_processes_and_steps(unmoved_rng: Any) -> None:
    task = Task(small())
    rows = training_rows(task.model[0])
    with unmoved_rng():
        found = [float(task(rows, rank=r, step=s)[0].detach()) for r, s in ((0, 0), (1, 0), (0, 1), (0, 0))]
    assert len(set(found)) == 3
    assert found[0] == found[3]


def test_effects_of_groups_outside_a_batch_have_no_gradient() -> None:
    frame = pa.simulate.mixed_model(100, 3, seed=0).frame
    task = Task(pa.ARMED(FORMULA, frame))
    batch = training_rows(task.model[0]).select(torch.arange(30))
    task(batch)[0].backward()
    (table,) = (p for p in task.guide.locations if p.shape == (100,))
    assert table.grad is not None
    assert (table.grad[:10] != 0).all()
    assert (table.grad[10:] == 0).all()


def many_groups() -> pa.ARMED:
    return pa.ARMED("y ~ x1 + (1 + x1 | group)", pa.simulate.mixed_model(100, 3, seed=0).frame)


def test_the_gradient_of_a_batchs_rows_is_that_of_the_whole_tables() -> None:
    dense, sparse = Task(many_groups()), Task(many_groups(), size=30)
    batches = [training_rows(dense.model[0]).select(torch.arange(start, start + 30)) for start in (0, 60)]
    for task in (dense, sparse):
        for step, batch in enumerate(batches):
            task(batch, step=step)[0].backward()
    sparse.collect()
    for known, found in zip(dense.guide.parameters(), sparse.guide.parameters(), strict=True):
        gradient: torch.Tensor = found.grad  # type: ignore[assignment]
        assert gradient.is_sparse == (found.shape[:1] == (100,))
        torch.testing.assert_close(gradient.to_dense() if gradient.is_sparse else gradient, known.grad)
    assert not any(p.requires_grad for p in sparse.guide.parameters() if p.shape[:1] == (100,))
    sparse.spare(299)
    assert all(p.requires_grad for p in sparse.guide.parameters())


def test_lazy_steps_are_those_of_one_process() -> None:
    """The same rows and gradients move tables as `pyro_armed.updates` moves them."""
    random = torch.Generator().manual_seed(0)
    table, mean, square = torch.zeros(3, 7, 2, dtype=torch.float64)
    count, mine = torch.zeros(7, dtype=torch.float64), torch.zeros(7, 2, dtype=torch.float64)
    optimizer = LazyAdam([mine], lr=0.1, betas=BETAS)
    for _ in range(20):
        codes = torch.randperm(7, generator=random)[:3]
        rows = torch.randn(3, 2, generator=random, dtype=torch.float64)
        count[codes] += 1
        moments = mean[codes], square[codes]
        table[codes] = adam(
            table[codes], *moments, rows, count[codes], torch.tensor(0.1, dtype=torch.float64)
        )
        mean[codes], square[codes] = moments
        (mine.grad,) = sparse_gradients([mine], *exchanged(codes, rows))
        optimizer.step()
        torch.testing.assert_close(mine, table, rtol=1e-9, atol=1e-12)


def test_a_lazy_optimiser_is_adam_for_everything_else() -> None:
    values = [torch.ones(3, requires_grad=True) for _ in range(2)]
    optimizers = [LazyAdam([values[0]], lr=0.1), torch.optim.Adam([values[1]], lr=0.1)]
    for _ in range(5):
        for value, optimizer in zip(values, optimizers, strict=True):
            optimizer.zero_grad()
            value.pow(4).sum().backward()
            optimizer.step()
    assert torch.equal(*values)


def test_many_groups_in_one_process_and_from_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    how = {**QUICK, "batch_size": 30}
    whole = fit(many_groups(), epochs=4, **how)
    fit(many_groups(), epochs=2, checkpoint=path, every=7, **how)
    resumed = fit(many_groups(), epochs=4, checkpoint=path, resume=True, **how)
    np.testing.assert_array_equal(resumed["sample_stats"]["elbo"], whole["sample_stats"]["elbo"])
    np.testing.assert_array_equal(resumed["posterior"]["1|group"], whole["posterior"]["1|group"])
    with pytest.raises(FileFormatError, match="another batch size"):
        fit(many_groups(), epochs=4, checkpoint=path, resume=True, **{**how, "batch_size": 60})
    model = many_groups()
    fit_from(model, path, draws=10)
    assert all(p.requires_grad for p in model.guide.parameters())


def test_parameters_that_nothing_depends_on_are_frozen() -> None:
    task = Task(networked())
    task.train()
    loss, record = task(training_rows(task.model[0]), adversary_weight=0.5)
    assert record.shape == (2,)
    loss.backward()
    frozen = [name for name, p in task.named_parameters() if not p.requires_grad]
    assert len(frozen) == 2  # weights and biases of the last layer, which the coefficients replace
    assert all(p.grad is not None for p in task.parameters() if p.requires_grad)


def test_one_process_gives_a_fitted_model(tmp_path: Path) -> None:
    model = networked()
    idata = fit(model, epochs=4, seed=3, **QUICK)
    assert idata is model.idata
    assert idata.attrs["processes"] == 1
    assert idata["sample_stats"]["elbo"].sizes["step"] == 20
    assert "adversary_accuracy|group" in idata["sample_stats"]
    model.save(tmp_path / "model.armed")
    frame = pa.simulate.mixed_model(30, 10, seed=0).frame
    expected = model.predict(frame.head(3))["predictions"]["b"].to_numpy()
    assert np.array_equal(
        pa.load(tmp_path / "model.armed").predict(frame.head(3))["predictions"]["b"], expected
    )
    again = fit(networked(), epochs=4, seed=3, **QUICK)
    assert np.array_equal(again["posterior"]["features|group"], idata["posterior"]["features|group"])


def test_training_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    whole = fit(small(), epochs=6, **QUICK)
    fit(small(), epochs=3, checkpoint=path, every=7, **QUICK)
    resumed = fit(small(), epochs=6, checkpoint=path, resume=True, **QUICK)
    np.testing.assert_array_equal(resumed["sample_stats"]["elbo"], whole["sample_stats"]["elbo"])
    np.testing.assert_array_equal(resumed["posterior"]["1|group"], whole["posterior"]["1|group"])
    from_file = fit_from(small(), path, draws=20)
    np.testing.assert_array_equal(from_file["posterior"]["1|group"], whole["posterior"]["1|group"])
    assert from_file.attrs["converged"] == 0


def test_learning_rates_fall_to_zero_and_go_on_falling_after_a_break(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[list[float]] = []
    step = LazyAdam.step
    broken = [False]

    def watched(self: Any, closure: Any = None) -> Any:
        if len(rates) == 17 and not broken[0]:
            broken[0] = True
            raise KeyboardInterrupt
        rates.append([group["lr"] for group in self.param_groups])
        return step(self, closure)

    how = {**QUICK, "batch_size": 14, "epochs": 1, "schedule": "cosine"}  # 14 rows for 30 groups: tables
    del how["early_stopping"]
    whole = fit(small(), **how)
    monkeypatch.setattr(LazyAdam, "step", watched)
    path = tmp_path / "run.ckpt"
    with pytest.raises(KeyboardInterrupt):
        fit(small(), checkpoint=path, every=10, **how)
    resumed = fit(small(), checkpoint=path, resume=True, **how)
    np.testing.assert_array_equal(resumed["posterior"]["1|group"], whole["posterior"]["1|group"])
    expected = [0.02 * cosine(k / 21) for k in [*range(17), *range(10, 21)]]
    np.testing.assert_allclose([first for first, _ in rates], expected, rtol=1e-9)
    np.testing.assert_allclose([tables for _, tables in rates], RARE * np.array(expected), rtol=1e-9)


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    model = small()
    with pytest.raises(ArgumentError, match="schedule='linear' is not 'plateau' or 'cosine'"):
        fit(model, schedule="linear")
    with pytest.raises(ArgumentError, match="precision='32' is not"):
        fit(model, precision="32")
    with pytest.raises(ArgumentError, match="needs checkpoint="):
        fit(model, resume=True)
    with pytest.raises(FileNotFoundError):
        fit_from(model, tmp_path / "nothing.ckpt")
    fit(model, epochs=1, checkpoint=tmp_path / "run.ckpt", **QUICK)
    with pytest.raises(FileFormatError, match="of another model"):
        fit_from(small("y ~ (1 | group)"), tmp_path / "run.ckpt")
    model.save(tmp_path / "model.armed")
    with pytest.raises(FileFormatError, match=r"pa\.load"):
        fit_from(model, tmp_path / "model.armed")
    with pytest.raises(NotFittedError):
        fit(pa.load(tmp_path / "model.armed"))
    with pytest.raises(ArgumentError, match="start fewer"):
        Shard(model, world=301)


def test_mixed_precision_leaves_everything_in_its_own(tmp_path: Path) -> None:
    model = networked()
    fit(model, epochs=2, precision="bf16", **QUICK)
    assert {p.dtype for p in model.module.network.parameters()} == {torch.float32}  # type: ignore[union-attr]
    assert {p.dtype for p in model.guide.parameters()} == {torch.float64}
    assert np.isfinite(model.idata["posterior"]["Intercept"]).all()
    model.save(tmp_path / "model.armed")
    loaded = pa.load(tmp_path / "model.armed")
    assert {p.device.type for p in loaded.module.parameters()} == {"cpu"}


def test_a_loss_that_explodes_is_left_out() -> None:
    task = Task(small())
    optimizer = task.optimizer()
    before = [p.detach().clone() for p in task.parameters()]
    task(training_rows(task.model[0]))[0].backward()
    next(iter(task.guide.locations)).grad.fill_(torch.nan)  # type: ignore[union-attr]
    task.clip()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, task.parameters(), strict=True))


# --- processes of their own --------------------------------------------------------------------------------

SCRIPT = """
    import os, signal, sys, warnings
    import pyro_armed as pa
    from pyro_armed.distributed import Task, fit

    warnings.simplefilter("ignore")
    out, killed = sys.argv[1], int(sys.argv[2])
    model = pa.ARMED("y ~ x1 + (1 | group)", pa.simulate.mixed_model(30, 60, seed=0).frame)
    world, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    if killed and rank == 1:
        clip = Task.clip
        Task.clip = lambda self: os.kill(os.getpid(), signal.SIGKILL) if self.step == killed else clip(self)
    fit(model, epochs=25, batch_size=300 // world, early_stopping=False, draws=300, progressbar=False,
        checkpoint=out + ".ckpt", every=1000, timeout=30)
    if rank == 0:
        model.save(out + ".armed")
"""


def script(folder: Path) -> Path:
    path = folder / "train.py"
    path.write_text(textwrap.dedent(SCRIPT))
    return path


@pytest.mark.slow
def test_a_killed_process_ends_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script(tmp_path)), str(tmp_path / "run"), "12"]
    processes = [
        subprocess.Popen(
            command, env={**os.environ, **place, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        first, second = (process.communicate(timeout=120)[1] for process in processes)
    finally:
        for process in processes:
            process.kill()
    assert processes[1].returncode == -signal.SIGKILL, second
    assert processes[0].returncode == 1
    assert re.search(r"DistributedError: Process 0 of 2 lost another one in step 1[34]", first), first
    assert "resume=True" in first
    assert not (tmp_path / "run.armed").exists()
    model = pa.ARMED(FORMULA, pa.simulate.mixed_model(30, 60, seed=0).frame)
    idata = fit_from(model, tmp_path / "run.ckpt", draws=20)
    assert idata["sample_stats"]["elbo"].sizes["step"] in (12, 13)
    assert np.isfinite(idata["posterior"]["x1"]).all()


def in_two_processes(*arguments: Any) -> None:
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    in_two_processes(script(tmp_path), tmp_path / "two", 0)
    two = pa.load(tmp_path / "two.armed").idata
    model = pa.ARMED(FORMULA, pa.simulate.mixed_model(30, 60, seed=0).frame)
    one = fit(model, epochs=25, batch_size=300, early_stopping=False, draws=300, progressbar=False)
    agree(one, two)


def agree(one: Any, two: Any) -> None:
    """The same course of training, and posteriors that differ by less than the structured posterior's sds."""
    traces = [idata["sample_stats"]["elbo"].to_numpy()[0] for idata in (one, two)]
    assert len(traces[0]) == len(traces[1]) == 150
    assert two.attrs["processes"] == 2
    for start in range(0, 150, 50):
        windows = [trace[start : start + 50] for trace in traces]
        error = np.hypot(*(window.std() / np.sqrt(50) for window in windows))
        assert abs(windows[0].mean() - windows[1].mean()) < 4 * error + 0.01
    sds = {"Intercept": 0.2, "x1": 0.03, "sigma": 0.02, "1|group_sigma": 0.15}
    for name, sd in sds.items():
        assert abs(float(one["posterior"][name].mean() - two["posterior"][name].mean())) < 1.5 * sd, name


MANY = """
    import sys, warnings
    import torch
    import pyro_armed as pa
    from pyro_armed.distributed import Shard, Task, fit

    warnings.simplefilter("ignore")
    make = lambda: pa.ARMED("y ~ x1 + (1 + x1 | group)", pa.simulate.mixed_model(300, 6, seed=0).frame)
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    shard = Shard(make(), 30, rank=rank, world=2)
    batch = next(shard.epoch(0))
    dense, sparse = Task(make()), Task(make(), size=30)
    sent = []
    gather = torch.distributed.all_gather
    torch.distributed.all_gather = lambda parts, own: (sent.append(own.numel()), gather(parts, own))
    for task in (dense, sparse):
        wrapped = torch.nn.parallel.DistributedDataParallel(task)
        wrapped(batch, rank=rank)[0].backward()
        task.collect()
    for known, found in zip(dense.guide.parameters(), sparse.guide.parameters()):
        assert found.grad.is_sparse == (len(found.shape) > 0 and len(found) == 300)
        torch.testing.assert_close(found.grad.to_dense() if found.grad.is_sparse else found.grad, known.grad)
    assert sum(sent) <= 1 + 5 * 30, sent  # sizes, codes, and four numbers for each group of the batch
    model = make()
    fit(model, epochs=40, batch_size=50, early_stopping=False, draws=300, progressbar=False)
    if rank == 0:
        model.save(sys.argv[1])
    torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_processes_exchange_the_rows_of_tables_in_their_batches(tmp_path: Path) -> None:
    path = tmp_path / "many.py"
    path.write_text(textwrap.dedent(MANY))
    in_two_processes(path, tmp_path / "two.armed")
    two = pa.load(tmp_path / "two.armed").idata
    model = pa.ARMED("y ~ x1 + (1 + x1 | group)", pa.simulate.mixed_model(300, 6, seed=0).frame)
    one = fit(model, epochs=40, batch_size=100, early_stopping=False, draws=300, progressbar=False)
    known, found = (idata["posterior"]["1|group"].mean(("chain", "draw")).to_numpy() for idata in (one, two))
    assert np.corrcoef(known, found)[0, 1] > 0.98
    last = [float(idata["sample_stats"]["elbo"][0, -200:].mean()) for idata in (one, two)]
    assert abs(last[0] - last[1]) < 0.05
