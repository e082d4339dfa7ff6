"""Stochastic variational inference: minibatches, early stopping, learning-rate decay, gradient clipping."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real

import pyro
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_armed.batch import Batch, minibatches
from pyro_armed.compiled import COMPILE, unchecked_priors
from pyro_armed.errors import ArgumentError
from pyro_armed.local import local_parameters
from pyro_armed.objective import Objective
from pyro_armed.seeds import generator_for, seeded, stream
from pyro_armed.steps import StepPlan, first_controls, plan_steps
from pyro_armed.streaming import RowStream
from pyro_armed.training_state import initial_state, write_back

__all__ = [
    "Plateau",
    "TrainingResult",
    "TrainingSettings",
    "cosine",
    "no_validation",
    "single_thread",
    "train",
    "train_restarts",
]

SCHEDULES = ("plateau", "cosine")
_WINDOW = 100
_SMALL = 200_000
_DECAY = 0.3


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Parameters
    ----------
    epochs : int, optional
        Most passes over the data; None: as many as ``max_steps`` allows.
    batch_size : int, optional
        Rows per step; None: all rows up to 2048, else 512.
    learning_rate : float
        Adam's first learning rate.
    early_stopping : bool
        Stop when the smoothed ELBO has stopped rising at each of three learning rates; only with the
        schedule "plateau".
    schedule : {"plateau", "cosine"}
        How learning rates fall: where the ELBO has stopped rising, if ``early_stopping``; or along half a
        cosine from the first step to the last (SGDR, Loshchilov and Hutter 2017, equation 5, one period).
    max_steps : int
        Most steps where ``epochs`` is None.
    clip : float
        Largest norm of the gradient, relative to a running average of its norm.
    compile : {"auto", "inductor", "trace", "off"}
        How steps are run; see `ARMED.fit`.

    Raises
    ------
    ArgumentError
        For numbers that are not positive, and unknown words.
    """

    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float = 0.02
    early_stopping: bool = True
    max_steps: int = 6000
    clip: float = 10.0
    compile: str = "auto"
    schedule: str = "plateau"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate", "max_steps", "clip"):
            value = getattr(self, name)
            if value is not None and not _positive(value):
                raise ArgumentError(f"{name}={value!r} must be a positive number.")
        for name in ("epochs", "batch_size", "max_steps"):
            value = getattr(self, name)
            if value is not None and not float(value).is_integer():
                raise ArgumentError(f"{name}={value!r} must be a whole number.")
        if self.compile not in COMPILE:
            raise ArgumentError(f"compile={self.compile!r} is not one of {', '.join(map(repr, COMPILE))}.")
        if self.schedule not in SCHEDULES:
            raise ArgumentError(f"schedule={self.schedule!r} is not 'plateau' or 'cosine'.")

    @property
    def watched(self) -> bool:
        """Whether the ELBO decides on the end of training."""
        return self.early_stopping and self.schedule == "plateau"

    def rows_per_step(self, n_rows: int) -> int:
        """Rows per step for a data set of N rows."""
        if self.batch_size is not None:
            return min(int(self.batch_size), n_rows)
        return n_rows if n_rows <= 2048 else 512

    def steps(self, n_rows: int) -> int:
        """Most steps for a data set of N rows."""
        if self.epochs is None:
            return int(self.max_steps)
        return max(1, int(self.epochs) * (n_rows // self.rows_per_step(n_rows)))

    def likely_steps(self, n_rows: int) -> int:
        """Steps to expect: early stopping takes at least ten windows, and often half of the most."""
        most = self.steps(n_rows)
        return min(most, max(10 * _WINDOW, most // 2)) if self.watched else most


@dataclass(frozen=True)
class TrainingResult:
    """What happened.

    Attributes
    ----------
    elbo : Tensor, shape (steps,)
        One-draw estimates of the ELBO per row.
    converged : bool
        Whether the smoothed ELBO stopped rising before the steps ran out.
    adversary : Tensor, shape (steps, G)
        The adversary's accuracy on each step's rows, for each of its grouping factors; none without one.
    """

    elbo: Tensor
    converged: bool
    adversary: Tensor

    @property
    def final(self) -> float:
        """Mean ELBO per row over the last window."""
        return float(self.elbo[-_WINDOW:].mean())


def _positive(value: object) -> bool:
    number = isinstance(value, Real) and not isinstance(value, bool)
    return number and value > 0 and math.isfinite(value)  # type: ignore[operator, arg-type]


def cosine(progress: float) -> float:
    """Share of the first learning rate after a fraction of the steps: half a cosine from 1 to 0.

    Examples
    --------
    >>> [round(cosine(part), 2) for part in (0.0, 0.25, 0.5, 1.0)]
    [1.0, 0.85, 0.5, 0.0]
    """
    return 0.5 * (1.0 + math.cos(math.pi * progress))


class Plateau:
    """Decides on decay and stopping from means over windows of steps."""

    def __init__(self, decays: int = 2, patience: int = 2):
        self.decays, self.patience = decays, patience
        self.best, self.stale = -math.inf, 0

    def update(self, window: Tensor) -> str:
        """'go', 'decay' or 'stop' after a window of ELBO estimates."""
        mean = float(window.mean())
        noise = float(window.std()) / math.sqrt(len(window))
        if mean > self.best + noise:
            self.best, self.stale = mean, 0
            return "go"
        self.stale += 1
        if self.stale <= self.patience:
            return "go"
        self.stale = 0
        self.decays -= 1
        return "stop" if self.decays < 0 else "decay"


def train(
    objective: Objective,
    data: Batch,
    settings: TrainingSettings,
    *,
    seed: int,
    progressbar: bool = True,
    label: str = "SVI",
    feed: RowStream | None = None,
) -> TrainingResult:
    """Maximise the ELBO with Adam.

    Parameters
    ----------
    objective : Objective
        Model, guide and auxiliary terms; the parameters are changed in place.
    data : Batch
        All training rows.
    settings : TrainingSettings
        How.
    seed : int
        Seed of shuffles and draws; the global random state is put back.
    progressbar : bool
        Whether to show progress.
    label : str
        Text beside the bar.
    feed : RowStream, optional
        Where rows come from files; ``data`` is then the minibatch that it fills.

    Returns
    -------
    TrainingResult
    """
    (result,) = train_restarts(
        [objective], data, settings, [seed], progressbar=progressbar, label=label, feed=feed
    )
    return result


def train_restarts(
    objectives: Sequence[Objective],
    data: Batch,
    settings: TrainingSettings,
    seeds: Sequence[int],
    *,
    progressbar: bool = True,
    label: str = "SVI",
    feed: RowStream | None = None,
) -> list[TrainingResult]:
    """Train restarts of one model, in one graph where that pays.

    Parameters
    ----------
    objectives : sequence of Objective
        One for each restart; the parameters are changed in place.
    data, settings, progressbar, label
        As for `train`.
    feed : RowStream, optional
        As for `train`; for a single restart.
    seeds : sequence of int
        One for each restart.

    Returns
    -------
    list of TrainingResult
        What `train` gives for each of them, but for rounding.

    Warns
    -----
    CompilationWarning
        Where the steps cannot be compiled as asked for.
    """
    total = settings.steps(data.n_rows)
    for objective in objectives:
        objective.module.train()
    try:
        with single_thread(data), local_parameters(), no_validation(), unchecked_priors(objectives):
            with seeded(seeds[0], [data.device]):  # tracing draws
                plan = plan_steps(
                    objectives,
                    data,
                    size=settings.rows_per_step(data.n_rows),
                    clip=settings.clip,
                    mode=settings.compile,
                    steps=settings.likely_steps(data.n_rows),
                )
            width = plan.side_by_side
            results: list[TrainingResult] = []
            for first in range(0, len(objectives), width):
                text = f"{label} {first + 1}/{len(objectives)}" if len(objectives) > width else label
                with tqdm(
                    total=total, desc=text, disable=not progressbar, leave=False, mininterval=0.5
                ) as bar:
                    chosen = slice(first, first + width)
                    results += _Run(
                        objectives[chosen], data, settings, seeds[chosen], plan, bar, feed
                    ).results()
    finally:
        for objective in objectives:
            objective.module.eval()
    return results


class _Run:
    """Restarts that take their steps together."""

    def __init__(
        self,
        objectives: Sequence[Objective],
        data: Batch,
        settings: TrainingSettings,
        seeds: Sequence[int],
        plan: StepPlan,
        bar: tqdm,
        feed: RowStream | None = None,
    ):
        self.objectives, self.data, self.settings, self.seeds = objectives, data, settings, seeds
        self.plan, self.bar, self.feed = plan, bar, feed
        self.watch = objectives[0].adversary
        self.total = settings.steps(data.n_rows)
        self.records: list[Tensor] = []
        self.plateaus = [Plateau() for _ in objectives]
        self.stopped: list[int | None] = [None for _ in objectives]

    def results(self) -> list[TrainingResult]:
        """Train to the end."""
        objectives, data = self.objectives, self.data
        state = initial_state(self.plan.layout, objectives)
        controls = first_controls(objectives, self.settings.learning_rate, data.device)
        first, weight = controls.clone(), 0.0
        try:
            with seeded(stream(self.seeds[0], "training"), [data.device]):
                step = self.plan.step(objectives, self.seeds)
                for number, rows in enumerate(itertools.islice(self._rows(), self.total)):
                    if self.watch and (now := self.watch.settings.weight_at(number / self.total)) != weight:
                        weight = now
                        controls[..., 0] = weight
                    if self.settings.schedule == "cosine":
                        controls[..., 1:] = first[..., 1:] * cosine(number / self.total)
                    self.records.append(step(state, rows, controls))
                    self.bar.update()
                    if (number + 1) % _WINDOW == 0 and self._all_stopped(number + 1, controls):
                        break
        finally:
            write_back(self.plan.layout, state, objectives)
        records = torch.stack(self.records, dim=-2).reshape(len(objectives), len(self.records), -1).cpu()
        return [self._result(*pair) for pair in zip(records, self.stopped, strict=True)]

    def _result(self, record: Tensor, stopped: int | None) -> TrainingResult:
        record = record[:stopped].clone()
        converged = stopped is not None and bool(record[-_WINDOW:, 0].isfinite().all())
        return TrainingResult(record[:, 0], converged, record[:, 1:])

    def _rows(self) -> Iterator[Tensor | None]:
        """Rows of each step, shape (B,), or (R, B) where several restarts are side by side; None: all."""
        size = self.settings.rows_per_step(self.data.n_rows)
        if size == self.data.n_rows:
            yield from itertools.repeat(None)
        if self.feed is not None:
            yield from self.feed.rows(self.seeds[0])
        generators = [generator_for(seed, "minibatches") for seed in self.seeds]
        device = self.data.device
        while True:
            epochs = [minibatches(self.data.n_rows, size, generator) for generator in generators]
            for rows in zip(*epochs, strict=True):
                yield (rows[0] if len(rows) == 1 else torch.stack(rows)).to(device)

    def _all_stopped(self, steps: int, controls: Tensor) -> bool:
        """Decide on each restart after a window of steps; whether none goes on."""
        windows = torch.stack(self.records[-_WINDOW:])[..., 0].reshape(_WINDOW, -1).T
        self.bar.set_postfix_str(f"ELBO per row {windows.mean():.4f}", refresh=False)
        # While the adversary's weight rises the ELBO may fall, and to stop would cut it short.
        rising = self.watch is not None and steps < self.watch.settings.warmup * self.total
        if not self.settings.watched or rising:
            return False
        rates = controls.view(len(self.objectives), -1)[:, 1:]
        for restart, (plateau, window) in enumerate(zip(self.plateaus, windows, strict=True)):
            action = plateau.update(window) if self.stopped[restart] is None else "go"
            if action == "stop":
                self.stopped[restart] = steps
            rates[restart] *= {"go": 1.0, "decay": _DECAY, "stop": 0.0}[action]
        return all(stopped is not None for stopped in self.stopped)


@contextmanager
def single_thread(data: Batch) -> Iterator[None]:
    """One thread for small tensors: splitting them costs more than it saves."""
    threads = torch.get_num_threads()
    small = sum(t.numel() for t in data.columns.values()) + (
        data.inputs.numel() if data.inputs is not None else 0
    )
    if small < _SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def no_validation() -> Iterator[None]:
    """Skip Pyro's checks of every draw; the model was checked once when it was built."""
    with pyro.validation_enabled(False):
        yield
