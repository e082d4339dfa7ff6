"""Training with Lightning: a module and a data module around the same objective (extra ``lightning``).

::

    model = pa.ARMED("y ~ x + (1 + x | site)", data)
    module = pa_lightning.ARMEDModule(model, seed=0)
    trainer = lightning.Trainer(strategy="ddp", accelerator="cpu", devices=2, max_epochs=50)
    trainer.fit(module, datamodule=pa_lightning.ARMEDDataModule(model, batch_size=512))
    idata = module.finish()  # model is an ordinary fitted model now
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_armed.batch import Batch
from pyro_armed.distributed import Shard, Task
from pyro_armed.distributed._checkpoints import restore_checkpoint, write_checkpoint
from pyro_armed.distributed._fit import is_lost
from pyro_armed.distributed._shards import rows_per_step
from pyro_armed.distributed._task import WINDOW, mean_records
from pyro_armed.errors import ArgumentError, MissingDependencyError

try:
    import lightning
except ImportError as error:
    raise MissingDependencyError(
        "pyro_armed.lightning needs the package 'lightning': pip install 'pyro_armed[lightning]'."
    ) from error

__all__ = ["ARMEDDataModule", "ARMEDModule"]


class ARMEDModule(lightning.LightningModule):
    """A model with the mean-field guide as a LightningModule.

    Parameters
    ----------
    model : ARMED
        A model with training rows, in memory or in Parquet; the same in all processes.
    learning_rate : float, optional
        Adam's first learning rate; None: 0.02, with a network 0.01.
    early_stopping : bool
        Whether to lower the learning rate, and to stop, when the smoothed ELBO stops rising.
    schedule : {"plateau", "cosine"}
        How the learning rate falls; see `ARMED.fit`. "cosine" goes by the trainer's ``max_epochs`` or
        ``max_steps``.
    checkpoint : path-like, optional
        A file that the first process writes every ``every`` steps and when training fails, for
        `pyro_armed.distributed.fit_from`. Lightning's own checkpoints hold the parameters too.
    every : int
        Steps between checkpoints.
    seed : int
        Seed of first weights and draws.

    Notes
    -----
    The loss is per row of the whole data, so that DDP's average over processes is right. Parameters that the
    loss does not depend on are frozen: ``strategy="ddp"`` needs no search for unused ones.

    Examples
    --------
    >>> import warnings
    >>> import lightning
    >>> import pyro_armed as pa
    >>> from pyro_armed.lightning import ARMEDDataModule, ARMEDModule
    >>> model = pa.ARMED("y ~ x1 + (1 | group)", pa.simulate.mixed_model(8, 20, seed=0).frame)
    >>> warnings.simplefilter("ignore")  # two epochs are for show, and the verdict says so
    >>> module = ARMEDModule(model, early_stopping=False)
    >>> quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    >>> trainer = lightning.Trainer(
    ...     accelerator="cpu", max_epochs=2, enable_checkpointing=False, **quiet
    ... )
    >>> trainer.fit(module, datamodule=ARMEDDataModule(model, batch_size=32))
    >>> module.finish(draws=10)["posterior"].sizes["draw"]
    10
    """

    def __init__(
        self,
        model: Any,
        *,
        learning_rate: float | None = None,
        early_stopping: bool = True,
        schedule: str = "plateau",
        checkpoint: str | os.PathLike[str] | None = None,
        every: int = 200,
        seed: int = 0,
    ):
        super().__init__()
        how: dict[str, Any] = {"early_stopping": early_stopping, "schedule": schedule}
        self.task = Task(model, seed=seed, learning_rate=learning_rate, **how)
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.every = every
        self._averaged = 0
        self._converged = False
        self._processes = 1

    def setup(self, stage: str) -> None:
        """Learn how many rows a minibatch has, before the strategy wraps this module."""
        data = getattr(self.trainer, "datamodule", None)
        if stage == "fit" and isinstance(data, ARMEDDataModule):
            self.task.spare(rows_per_step(data.model, data.batch_size, self.trainer.world_size))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam as in `ARMED.fit`."""
        return self.task.optimizer()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one minibatch."""
        task = self.task
        loss, record = task(
            batch,
            rank=self.global_rank,
            step=task.step,
            adversary_weight=task.weight_at(self._progress()),
        )
        self._record = record
        self.log("elbo", record[0].float(), prog_bar=True)
        return loss

    def on_train_start(self) -> None:
        """Refuse a learning rate that falls to the end of a training without one."""
        if self.task.settings.schedule == "cosine" and not math.isfinite(self._steps()):
            raise ArgumentError(
                "schedule='cosine' goes by the end of training: pass max_epochs or max_steps to the Trainer."
            )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Average the gradients of many groups' effects, clip the whole, and set the learning rate."""
        self.task.collect()
        self.task.clip()
        self.task.anneal(optimizer, self._progress())

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Note the step; decide on the learning rate after a window of steps."""
        task, optimizer = self.task, self.optimizers()
        task.records.append(self._record)
        task.step += 1
        if task.step % WINDOW == 0:
            window = self._average()
            if task.decide(window, optimizer, self._progress()):  # type: ignore[arg-type]
                self._converged = bool(window.isfinite().all())
                self.trainer.should_stop = True
        if task.step % self.every == 0:
            self._write()

    def on_train_end(self) -> None:
        """Average the last records, and write the last state."""
        if len(self.task.records) > self._averaged:
            self._average()
        self._processes = self.trainer.world_size
        self._write()

    def on_exception(self, exception: BaseException) -> None:
        """Write the state after the last complete step, and say so beside the error."""
        step = self.task.step
        note = f"Process {self.global_rank} failed in step {step + 1}"
        if is_lost(exception):
            note += ": another process has ended or does not answer"
        if self.checkpoint is not None:
            self._write()
            note += (
                f"; the state after step {step} is in '{self.checkpoint}': go on with ARMEDModule.restore(), "
                "or use pyro_armed.distributed.fit_from()"
            )
        exception.add_note(f"{note}.")

    def configure_callbacks(self) -> list[Any]:
        """What tells this module of failures."""
        return [_OnException(self)]

    def restore(self, checkpoint: str | os.PathLike[str]) -> None:
        """Go on from a checkpoint of this module: call it before ``trainer.fit``.

        Parameters
        ----------
        checkpoint : path-like
            The file. Adam's moments start anew.
        """
        restore_checkpoint(self.task, None, checkpoint)
        self._averaged = len(self.task.records)

    def finish(self, *, draws: int = 500) -> Any:
        """Make the user's model a fitted one, after ``trainer.fit``; in every process.

        Parameters
        ----------
        draws : int
            Posterior draws.

        Returns
        -------
        arviz.InferenceData or xarray.DataTree
            Also the model's ``.idata``.
        """
        return self.task.finish(draws=draws, converged=self._converged, processes=self._processes)

    def _steps(self) -> float:
        """Steps of the whole training; infinite where the trainer has no limit."""
        return float(self.trainer.estimated_stepping_batches)

    def _progress(self) -> float:
        return self.task.step / max(1.0, self._steps())

    def _average(self) -> Tensor:
        records = self.task.records
        records[self._averaged :] = list(mean_records(records[self._averaged :]))
        window = torch.stack(records[self._averaged :])[:, 0]
        self._averaged = len(records)
        return window

    def _write(self) -> None:
        if self.checkpoint is not None and self.global_rank == 0 and self._trainer is not None:
            optimizer: Any = self.trainer.optimizers[0]
            write_checkpoint(self.task, optimizer, self.checkpoint)


class _OnException(lightning.Callback):
    """Passes failures of the trainer on to the module, which has no hook for them."""

    def __init__(self, module: ARMEDModule):
        self._module = (module,)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Tell the module."""
        self._module[0].on_exception(exception)


class ARMEDDataModule(lightning.LightningDataModule):
    """The training rows of a model: each process gets a shard of its own.

    Parameters
    ----------
    model : ARMED
        The model of the `ARMEDModule`.
    batch_size : int, optional
        Rows of a step of one process; None: 512, of rows in Parquet 4096.
    seed : int
        Seed of the shuffles.

    Examples
    --------
    See `ARMEDModule`.
    """

    def __init__(self, model: Any, batch_size: int | None = None, *, seed: int = 0):
        super().__init__()
        self.model, self.batch_size, self.seed = model, batch_size, seed

    def train_dataloader(self) -> _Epochs:
        """Minibatches of this process, shuffled anew in each epoch."""
        rank, world = self.trainer.global_rank, self.trainer.world_size  # type: ignore[union-attr]
        shard = Shard(self.model, self.batch_size, seed=self.seed, rank=rank, world=world)
        return _Epochs(shard, self)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """The minibatch on the trainer's device."""
        return batch.to(device)


class _Epochs:
    """A shard as Lightning iterates over it, the epoch's number taken from the trainer."""

    def __init__(self, shard: Shard, data: ARMEDDataModule):
        self.shard, self._data = shard, data

    def __len__(self) -> int:
        return self.shard.steps

    def __iter__(self) -> Iterator[Batch]:
        return self.shard.epoch(self._data.trainer.current_epoch)  # type: ignore[union-attr]
