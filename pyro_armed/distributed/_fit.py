"""Training under ``torchrun``, with DistributedDataParallel."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from tqdm.auto import tqdm

from pyro_armed.distributed._checkpoints import restore_checkpoint, write_checkpoint
from pyro_armed.distributed._shards import Shard
from pyro_armed.distributed._task import WINDOW, Task, mean_records
from pyro_armed.errors import ArgumentError, DistributedError
from pyro_armed.training import TrainingSettings

__all__ = ["fit", "fit_from"]

_PRECISIONS = ("64", "bf16")
_LOST = re.compile(r"gloo|nccl|peer|connection|socket|timed? ?out|store", re.IGNORECASE)


class _Terminated(Exception):
    """SIGTERM, which ``torchrun`` sends to the others when one process has failed."""


def fit(
    model: Any,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    early_stopping: bool = True,
    schedule: str = "plateau",
    draws: int = 500,
    precision: str = "64",
    checkpoint: str | os.PathLike[str] | None = None,
    every: int = 200,
    resume: bool = False,
    timeout: float = 300.0,
    seed: int = 0,
    progressbar: bool = True,
) -> Any:
    """Fit a model with the mean-field guide in all processes that ``torchrun`` has started.

    In a script ``fit.py`` that makes the model, ``torchrun --nproc-per-node 2 fit.py`` trains it in two
    processes, each on its own half of the rows. Without ``torchrun`` it trains in this process alone.

    Parameters
    ----------
    model : ARMED
        A model of a data frame, arrays or Parquet files; the same in all processes.
    epochs : int, optional
        Most passes over the data; None: at most 6000 steps.
    batch_size : int, optional
        Rows of a step of one process; None: 512, of rows in Parquet 4096.
    learning_rate : float, optional
        Adam's first learning rate; None: 0.02, with a network 0.01.
    early_stopping : bool
        Whether to stop when the smoothed ELBO stops rising.
    schedule : {"plateau", "cosine"}
        How the learning rate falls; see `ARMED.fit`.
    draws : int
        Posterior draws.
    precision : {"64", "bf16"}
        ``"bf16"`` runs the network under autocast to bfloat16; everything else stays in double precision.
    checkpoint : path-like, optional
        A file that the first process writes every ``every`` steps, and when another process is lost.
    every : int
        Steps between checkpoints.
    resume : bool
        Whether to go on from ``checkpoint``, if it is there.
    timeout : float
        Seconds to wait for the other processes.
    seed : int
        The same seed and number of processes give the same numbers.
    progressbar : bool
        Whether the first process shows progress.

    Returns
    -------
    arviz.InferenceData or xarray.DataTree
        In every process, where the model is then an ordinary fitted one; save it in the first.

    Raises
    ------
    DistributedError
        Where another process has ended or does not answer; the message names the checkpoint.
    ArgumentError
        For values that cannot be used.

    Examples
    --------
    >>> import warnings
    >>> import pyro_armed as pa
    >>> warnings.simplefilter("ignore")  # two epochs are for show, and the verdict says so
    >>> model = pa.ARMED("y ~ x1 + (1 | group)", pa.simulate.mixed_model(8, 20, seed=0).frame)
    >>> idata = fit(model, epochs=2, batch_size=32, draws=10, early_stopping=False, progressbar=False)
    >>> idata["posterior"].sizes["draw"]
    10
    """
    if precision not in _PRECISIONS:
        raise ArgumentError(f"precision={precision!r} is not '64' or 'bf16'.")
    if resume and checkpoint is None:
        raise ArgumentError("resume=True needs checkpoint=..., the file to go on from.")
    settings = TrainingSettings(
        epochs=epochs, batch_size=batch_size, early_stopping=early_stopping, schedule=schedule
    )
    with _processes(timeout) as (rank, world, device):
        shard = Shard(model, batch_size, seed=seed, rank=rank, world=world)
        task = Task(
            model,
            seed=seed,
            size=shard.size,
            learning_rate=learning_rate,
            early_stopping=early_stopping,
            schedule=schedule,
        )
        steps = int(settings.max_steps) if epochs is None else int(epochs) * shard.steps
        loop = _Loop(task.to(device), shard, steps, device, precision)
        if checkpoint is not None and resume and Path(checkpoint).exists():
            restore_checkpoint(task, loop.optimizer, checkpoint)
        bar = tqdm(
            total=steps, initial=task.step, disable=not progressbar or rank > 0, desc="SVI", leave=False
        )
        with bar:
            converged = _run(loop, checkpoint, every, bar)
        return task.finish(draws=draws, converged=converged, processes=world)


def fit_from(model: Any, checkpoint: str | os.PathLike[str], *, draws: int = 500, seed: int = 0) -> Any:
    """Make a model a fitted one from a checkpoint, without training it further.

    Parameters
    ----------
    model : ARMED
        The model that was being trained, made anew.
    checkpoint : path-like
        The file.
    draws : int
        Posterior draws.
    seed : int
        Seed of the draws.

    Returns
    -------
    arviz.InferenceData or xarray.DataTree
        Its attribute ``converged`` is 0.

    Raises
    ------
    FileNotFoundError, FileFormatError
        For a file that is not there, or not of this model.

    Examples
    --------
    >>> import warnings
    >>> import pyro_armed as pa
    >>> warnings.simplefilter("ignore")
    >>> frame = pa.simulate.mixed_model(8, 20, seed=0).frame
    >>> how = {"batch_size": 32, "early_stopping": False, "progressbar": False, "checkpoint": "run.ckpt"}
    >>> _ = fit(pa.ARMED("y ~ x1 + (1 | group)", frame), epochs=2, draws=10, **how)
    >>> idata = fit_from(pa.ARMED("y ~ x1 + (1 | group)", frame), "run.ckpt", draws=20)
    >>> idata["posterior"].sizes["draw"]
    20
    """
    task = Task(model, seed=seed)
    restore_checkpoint(task, None, checkpoint)
    return task.finish(draws=draws)


class _Loop:
    """Steps of one process."""

    def __init__(self, task: Task, shard: Shard, steps: int, device: torch.device, precision: str):
        self.task, self.shard, self.steps, self.device = task, shard, steps, device
        self.half = precision == "bf16"
        self.optimizer = task.optimizer()
        self.wrapped: nn.Module = task
        if shard.world > 1:
            ids = [device] if device.type == "cuda" else None
            self.wrapped = nn.parallel.DistributedDataParallel(task, device_ids=ids)

    def take(self) -> Iterator[int]:
        """Train; yields the number of steps done after each."""
        task = self.task
        task.train()
        while task.step < self.steps:
            # A checkpoint may stand within an epoch: its remaining rows come first.
            done = task.step % self.shard.steps
            for number, batch in enumerate(self.shard.epoch(task.step // self.shard.steps)):
                if number < done:
                    continue
                self._step(batch.to(self.device))
                yield task.step
                if task.step >= self.steps:
                    return

    def _step(self, batch: Any) -> None:
        task = self.task
        weight = task.weight_at(task.step / self.steps)
        half = torch.autocast(self.device.type, torch.bfloat16) if self.half else nullcontext()
        with half:
            loss, record = self.wrapped(batch, rank=self.shard.rank, step=task.step, adversary_weight=weight)
        self.optimizer.zero_grad()
        loss.backward()
        task.collect()
        task.clip()
        task.anneal(self.optimizer, task.step / self.steps)
        self.optimizer.step()
        task.records.append(record)
        task.step += 1


def _run(loop: _Loop, checkpoint: str | os.PathLike[str] | None, every: int, bar: tqdm) -> bool:
    """Train to the end; whether the ELBO had stopped rising."""
    task, rank, world = loop.task, loop.shard.rank, loop.shard.world
    averaged = len(task.records)
    try:
        with _interruptible(world):
            for number in loop.take():
                bar.update()
                last = number == loop.steps
                if number % WINDOW == 0 or last:
                    task.records[averaged:] = list(mean_records(task.records[averaged:]))
                    window = torch.stack(task.records[averaged:])[:, 0]
                    averaged = len(task.records)
                    bar.set_postfix_str(f"ELBO per row {window.mean():.4f}", refresh=False)
                    if number % WINDOW == 0 and task.decide(window, loop.optimizer, number / loop.steps):
                        return bool(window.isfinite().all())
                if checkpoint is not None and rank == 0 and (number % every == 0 or last):
                    write_checkpoint(task, loop.optimizer, checkpoint)
    except (RuntimeError, _Terminated) as error:
        if world == 1 or not (isinstance(error, _Terminated) or is_lost(error)):
            raise
        raise _lost(loop, checkpoint, error) from error
    return False


def is_lost(error: BaseException) -> bool:
    """Whether an error says that another process has ended or does not answer."""
    return isinstance(error, RuntimeError) and _LOST.search(str(error)) is not None


def _lost(loop: _Loop, checkpoint: str | os.PathLike[str] | None, error: Exception) -> DistributedError:
    """What is to be said when another process has ended, after the last complete step is written."""
    task, rank = loop.task, loop.shard.rank
    reason = " ".join(str(error).split())[:200] or "this process was asked to end"
    mend = "pass checkpoint=... to be able to go on next time"
    if checkpoint is not None:
        if rank == 0:
            write_checkpoint(task, loop.optimizer, checkpoint)
        what = f"the state after step {task.step}" if rank == 0 else "the first process's last state"
        mend = f"{what} is in '{checkpoint}': start again with resume=True, or use fit_from()"
    return DistributedError(
        f"Process {rank} of {loop.shard.world} lost another one in step {task.step + 1} ({reason}); {mend}."
    )


@contextmanager
def _processes(timeout: float) -> Iterator[tuple[int, int, torch.device]]:
    """Rank, number of processes and device; the process group, where there is none yet."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    own = not distributed.is_initialized() and world > 1
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if own:
        backend = "nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=timedelta(seconds=timeout))
    try:
        if distributed.is_initialized():
            yield distributed.get_rank(), distributed.get_world_size(), device
        else:
            yield 0, 1, device
    finally:
        if own:
            distributed.destroy_process_group()


@contextmanager
def _interruptible(world: int) -> Iterator[None]:
    """SIGTERM as an exception, so that the first process can write its state."""
    if world == 1 or threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: Any) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
