"""Stochastic variational inference: minibatches, early stopping, learning-rate decay, gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real

import pyro
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from pyro_armed.batch import Batch, minibatches
from pyro_armed.errors import ArgumentError
from pyro_armed.local import local_parameters
from pyro_armed.objective import Objective
from pyro_armed.seeds import generator_for, seeded, stream

__all__ = ["TrainingResult", "TrainingSettings", "no_validation", "single_thread", "train"]

_WINDOW = 100
_SMALL = 200_000


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
        Stop when the smoothed ELBO has stopped rising at each of three learning rates.
    max_steps : int
        Most steps where ``epochs`` is None.
    clip : float
        Largest norm of the gradient, relative to a running average of its norm.

    Raises
    ------
    ArgumentError
        For numbers that are not positive.
    """

    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float = 0.02
    early_stopping: bool = True
    max_steps: int = 6000
    clip: float = 10.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate", "max_steps", "clip"):
            value = getattr(self, name)
            if value is not None and not _positive(value):
                raise ArgumentError(f"{name}={value!r} must be a positive number.")
        for name in ("epochs", "batch_size", "max_steps"):
            value = getattr(self, name)
            if value is not None and not float(value).is_integer():
                raise ArgumentError(f"{name}={value!r} must be a whole number.")

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


class _Plateau:
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

    Returns
    -------
    TrainingResult
    """
    total = settings.steps(data.n_rows)
    optimizer, parameters = _optimizer(objective, settings)
    generator = generator_for(seed, "minibatches")
    plateau, elbo, adversary = _Plateau(), [], []
    watch = objective.adversary
    converged, norm = False, math.inf
    objective.module.train()
    bar = tqdm(total=total, desc=label, disable=not progressbar, leave=False, mininterval=0.5)
    try:
        with bar, single_thread(data), seeded(stream(seed, "training")), local_parameters(), no_validation():
            for step, batch in enumerate(_batches(data, settings, total, generator)):
                weight = watch.settings.weight_at(step / total) if watch else 0.0
                optimizer.zero_grad(set_to_none=True)
                parts = objective(batch, weight)
                parts.total.backward()
                norm = _clip(parameters, norm, settings.clip)
                optimizer.step()
                elbo.append(-parts.elbo.detach())
                adversary.append(parts.adversary_accuracy.detach())
                bar.update()
                if (step + 1) % _WINDOW == 0:
                    window = torch.stack(elbo[-_WINDOW:])
                    bar.set_postfix_str(f"ELBO per row {window.mean():.4f}", refresh=False)
                    # While the adversary's weight rises the ELBO may fall, and to stop would cut it short.
                    rising = watch is not None and step + 1 < watch.settings.warmup * total
                    action = plateau.update(window) if settings.early_stopping and not rising else "go"
                    if action == "stop":
                        converged = bool(window.isfinite().all())
                        break
                    if action == "decay":
                        _decay(optimizer)
    finally:
        objective.module.eval()
    return TrainingResult(torch.stack(elbo), converged, torch.stack(adversary))


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


def _optimizer(
    objective: Objective, settings: TrainingSettings
) -> tuple[torch.optim.Optimizer, list[nn.Parameter]]:
    guide = objective.guide
    trained = [*(guide.parameters() if isinstance(guide, nn.Module) else ())]
    trained += [p for p in objective.module.parameters() if p.requires_grad]
    groups = [{"params": trained, "lr": settings.learning_rate}]
    if objective.adversary is not None:
        classifiers = list(objective.adversary.classifiers.parameters())
        own = objective.adversary.settings
        groups.append({"params": classifiers, "lr": own.learning_rate, "weight_decay": own.weight_decay})
    return torch.optim.Adam(groups, betas=(0.9, 0.99)), trained


def _batches(
    data: Batch, settings: TrainingSettings, total: int, generator: torch.Generator
) -> Iterator[Batch]:
    size = settings.rows_per_step(data.n_rows)
    step = 0
    while step < total:
        if size == data.n_rows:
            yield data
            step += 1
            continue
        for rows in minibatches(data.n_rows, size, generator):
            yield data.select(rows.to(_device(data)))
            step += 1
            if step >= total:
                return


def _device(data: Batch) -> torch.device:
    return next(t for t in [data.response, data.inputs, *data.codes.values()] if t is not None).device


def _clip(parameters: list[nn.Parameter], typical: float, factor: float) -> float:
    """Clip the gradient to ``factor`` times its running norm; returns the new running norm."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(gradients))
    if not math.isfinite(norm):
        for gradient in gradients:
            gradient.zero_()
        return typical
    if math.isfinite(typical) and norm > factor * typical:
        for gradient in gradients:
            gradient.mul_(factor * typical / norm)
        norm = factor * typical
    return norm if not math.isfinite(typical) else 0.95 * typical + 0.05 * norm


def _decay(optimizer: torch.optim.Optimizer, factor: float = 0.3) -> None:
    for group in optimizer.param_groups:
        group["lr"] *= factor
