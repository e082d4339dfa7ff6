"""A model, its guide and its loss as one module, for optimisers and wrappers such as DDP."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pyro
import torch
from torch import Tensor, nn
from torch.func import functional_call

from pyro_armed.batch import Batch
from pyro_armed.compiled import unchecked_priors
from pyro_armed.design import StreamedDesign
from pyro_armed.distributed._shards import training_rows
from pyro_armed.distributed._tables import LazyAdam, exchanged, sparse_gradients, world_size
from pyro_armed.guides import MeanFieldGuide
from pyro_armed.inference import Trained, assembled, mean_field_chain
from pyro_armed.inference_settings import InferenceSettings
from pyro_armed.local import local_parameters
from pyro_armed.seeds import seeded, stream
from pyro_armed.streamed_fit import chain_from, start
from pyro_armed.training import Plateau, TrainingResult, TrainingSettings, cosine
from pyro_armed.training_state import Parts, sparse_groups
from pyro_armed.updates import BETAS, RARE

__all__ = ["WINDOW", "Task"]

WINDOW = 100
_DECAY = 0.3


class Task(nn.Module):
    """The objective of a model with the mean-field guide, as a module that returns the loss.

    Parameters
    ----------
    model : ARMED
        A model with training rows.
    seed : int
        Seed of the first weights and of all draws; the same in all processes.
    learning_rate : float, optional
        Adam's learning rate; None: 0.02, with a network 0.01.
    early_stopping : bool
        Whether to lower the learning rate, and to stop, when the smoothed ELBO stops rising.
    schedule : {"plateau", "cosine"}
        See `ARMED.fit`.
    size : int, optional
        Rows of a minibatch of one process, where `spare` is to go by them.

    Notes
    -----
    Where groups are many more than the rows of a minibatch, the guide's tables get no gradient from
    ``backward()``: `collect` exchanges that of the rows in the processes' batches, and the optimiser moves
    these rows alone, as in one process.

    Examples
    --------
    >>> import pyro_armed as pa
    >>> model = pa.ARMED("y ~ x1 + (1 | group)", pa.simulate.mixed_model(8, 20, seed=0).frame)
    >>> task = Task(model)
    >>> loss, record = task(training_rows(model), rank=0, step=0)
    >>> loss.shape, record.shape
    (torch.Size([]), torch.Size([1]))
    """

    def __init__(
        self,
        model: Any,
        *,
        seed: int = 0,
        learning_rate: float | None = None,
        early_stopping: bool = True,
        schedule: str = "plateau",
        size: int | None = None,
    ):
        super().__init__()
        self.settings = InferenceSettings(
            guide="mean_field",
            restarts=1,
            learning_rate=learning_rate,
            early_stopping=early_stopping,
            schedule=schedule,
            seed=seed,
        )
        self.model = (model,)  # a tuple, for the user's model is no part of this module
        self.chain_seed = self.settings.chain_seed(0)
        rows = training_rows(model)
        self._ingredients = model._ingredients(rows)
        objective = start(self._ingredients, self.chain_seed)
        self._objective, self._parts = (objective,), (Parts(objective),)
        self.module, self.guide = objective.module, cast(MeanFieldGuide, objective.guide)
        self.classifiers = None if objective.adversary is None else objective.adversary.classifiers
        # No buffers: DDP would send them to all processes in every step.
        self._counts = {g.name: torch.tensor(np.asarray(g.counts)) for g in self.module.spec.groups}
        self._tables: dict[str, list[str]] = {}
        self._pending: list[tuple[str, Tensor, list[Tensor]]] = []
        self.records: list[Tensor] = []
        self.step = 0
        self._usual = float("inf")
        self._plateau = Plateau()
        self._first_rates: list[float] = []
        self._freeze_unused(rows.select(torch.arange(min(rows.size, 8))))
        if size is not None:
            self.spare(size)

    @property
    def rate(self) -> float:
        """The first learning rate."""
        return self._training.learning_rate

    @property
    def _training(self) -> TrainingSettings:
        return self.settings.training(self._ingredients.plan is not None)

    # --- the loss ----------------------------------------------------------------------------------------

    def forward(
        self, batch: Batch, *, rank: int = 0, step: int = 0, adversary_weight: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """The loss per row of the whole data, estimated on a minibatch.

        Parameters
        ----------
        batch : Batch
            Rows of this process.
        rank, step : int
            Draws differ between processes and steps.
        adversary_weight : float
            Weight of the adversary.

        Returns
        -------
        loss : Tensor
            0-dim.
        record : Tensor, shape (1 + G,)
            ELBO per row; accuracy of the adversary for each of its grouping factors.
        """
        (objective,), (whole,) = self._objective, self._parts
        own = stream(self.chain_seed, "training", rank, step)
        with (
            seeded(own, [batch.device]),
            local_parameters(),
            pyro.validation_enabled(False),
            unchecked_priors([objective]),
        ):
            batch, leaves = self._present(batch)
            parts = functional_call(whole, leaves, (batch, adversary_weight))
        accuracy = parts.adversary_accuracy.detach().double()
        return parts.total, torch.cat([-parts.elbo.detach().reshape(1).double(), accuracy])

    def _present(self, batch: Batch) -> tuple[Batch, dict[str, Tensor]]:
        """The batch with the effects of its groups alone, where there are many more, and rows of tables."""
        watched = () if self._objective[0].adversary is None else self._objective[0].adversary.groups
        codes, present, scale = dict(batch.codes), {}, {}
        leaves: dict[str, Tensor] = {}
        for group in self.module.spec.groups:
            few = group.size <= 2 * batch.size or batch.size == batch.n_rows or group.name in watched
            if few and group.name not in self._tables:
                continue
            found, codes[group.name], rows = batch.codes[group.name].unique(
                return_inverse=True, return_counts=True
            )
            counts = self._counts[group.name][found.cpu()].to(found.device)
            present[group.name] = found
            scale[group.name] = rows.double() / counts * (batch.n_rows / batch.size)
            if group.name in self._tables:
                present[group.name] = torch.arange(len(found), device=found.device)
                leaves |= self._leaves(group.name, found)
        return replace(batch, codes=codes, present=present, group_scale=scale), leaves

    def _leaves(self, group: str, found: Tensor) -> dict[str, Tensor]:
        """Rows of a factor's tables, whose gradient `collect` takes."""
        tables = [self.guide.get_parameter(name) for name in self._tables[group]]
        rows = [table.detach()[found].requires_grad_(torch.is_grad_enabled()) for table in tables]
        if torch.is_grad_enabled():
            self._pending.append((group, found, rows))
        return {f"guide.{name}": part for name, part in zip(self._tables[group], rows, strict=True)}

    def weight_at(self, progress: float) -> float:
        """The adversary's weight after a fraction of training."""
        head = self._objective[0].adversary
        return 0.0 if head is None else head.settings.weight_at(progress)

    def _freeze_unused(self, rows: Batch) -> None:
        """Freeze parameters that the loss does not depend on, for which DDP would wait for ever."""
        buffers = {name: buffer.clone() for name, buffer in self.named_buffers()}
        self.train()
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        loss, _ = self(rows, adversary_weight=1.0)
        found = torch.autograd.grad(loss, trained, allow_unused=True)
        for parameter, gradient in zip(trained, found, strict=True):
            parameter.requires_grad_(gradient is not None)
        for name, buffer in self.named_buffers():
            buffer.copy_(buffers[name])

    # --- tables of many groups ---------------------------------------------------------------------------

    def spare(self, size: int) -> None:
        """Train the effects of factors with many more groups than a minibatch has rows as tables.

        To be called before the task is wrapped for several processes, and before `optimizer`.

        Parameters
        ----------
        size : int
            Rows of a minibatch of one process.
        """
        for name in itertools.chain(*self._tables.values()):
            self.guide.get_parameter(name).requires_grad_(True)
        found = sparse_groups(self._objective[0], training_rows(self.model[0]), size)
        owners = self.guide.tables()
        self._tables = {group: [name for name in owners if owners[name] == group] for group in found}
        for name in itertools.chain(*self._tables.values()):
            # DDP neither waits for their gradient nor sends it.
            self.guide.get_parameter(name).requires_grad_(False)

    def collect(self) -> None:
        """Average the gradients of the tables' rows over the processes; after each ``backward()``."""
        for group, names in self._tables.items():
            own = [(found, rows) for one, found, rows in self._pending if one == group]
            own = [(found, rows) for found, rows in own if rows[0].grad is not None]
            tables = [self.guide.get_parameter(name) for name in names]
            gradients = [
                torch.cat([row.grad.reshape(len(found), -1) for row in rows], dim=1)  # type: ignore[union-attr]
                for found, rows in own
            ]
            codes, averaged = exchanged(torch.cat([found for found, _ in own]), torch.cat(gradients))
            for table, gradient in zip(tables, sparse_gradients(tables, codes, averaged), strict=True):
                table.grad = gradient
        self._pending.clear()

    # --- the optimiser -----------------------------------------------------------------------------------

    def optimizer(self) -> LazyAdam:
        """Adam as in `ARMED.fit`, the adversary's classifiers with settings of their own."""
        head = self._objective[0].adversary
        own = [] if self.classifiers is None else list(self.classifiers.parameters())
        others = [p for part in (self.module, self.guide) for p in part.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [{"params": others, "lr": self.rate}]
        if self._tables:
            tables = [self.guide.get_parameter(name) for name in itertools.chain(*self._tables.values())]
            groups.append({"params": tables, "lr": RARE * self.rate})
        if head is not None:
            decay, rate = head.settings.weight_decay, head.settings.learning_rate
            groups.append({"params": own, "lr": rate, "weight_decay": decay})
        self._first_rates = [group["lr"] for group in groups]
        return LazyAdam(groups, betas=BETAS)

    def anneal(self, optimizer: torch.optim.Optimizer, progress: float) -> None:
        """Set the learning rates where they go by the time: to be called before each step.

        Parameters
        ----------
        optimizer : Optimizer
            From `optimizer`, a wrapper's or restored.
        progress : float
            Fraction of training done.
        """
        if self.settings.schedule == "cosine":
            for group, first in zip(optimizer.param_groups, self._first_rates, strict=True):
                group["lr"] = first * cosine(progress)

    @torch.no_grad()
    def clip(self) -> None:
        """Shorten the gradient to ten times its usual norm; leave out one that is not finite."""
        gradients = [p.grad for part in (self.module, self.guide) for p in part.parameters()]
        known = [g._values() if g.is_sparse else g for g in gradients if g is not None]
        norm = float(torch.stack([g.double().square().sum() for g in known]).sum().sqrt())
        finite = norm < float("inf")  # false for NaN
        shortened = min(norm, 10.0 * self._usual)
        for gradient in known:
            if not finite:
                gradient.zero_()
            elif shortened < norm:
                gradient.mul_(shortened / norm)
        if finite:
            first = self._usual == float("inf")
            self._usual = shortened if first else 0.95 * self._usual + 0.05 * shortened

    def decide(self, window: Tensor, optimizer: torch.optim.Optimizer, progress: float) -> bool:
        """Lower the learning rate, or say that it is enough, after a window of steps.

        Parameters
        ----------
        window : Tensor, shape (steps,)
            ELBO per row, averaged over the processes.
        optimizer : Optimizer
            Whose rates to lower.
        progress : float
            Fraction of training done.

        Returns
        -------
        bool
            Whether to stop.
        """
        head = self._objective[0].adversary
        rising = head is not None and progress < head.settings.warmup
        if not self._training.watched or rising:
            return False
        action = self._plateau.update(window)
        if action == "decay":
            for group in optimizer.param_groups:
                group["lr"] *= _DECAY
        return action == "stop"

    def progress(self) -> dict[str, float | None]:
        """What `clip` and `decide` remember, JSON-able."""
        plateau = self._plateau
        numbers = {
            "usual": self._usual,
            "best": plateau.best,
            "stale": plateau.stale,
            "decays": plateau.decays,
        }
        return {name: value if abs(value) < float("inf") else None for name, value in numbers.items()}

    def restore_progress(self, progress: Mapping[str, float | None]) -> None:
        """Put back what `progress` returned."""
        usual, best = progress["usual"], progress["best"]
        self._usual = float("inf") if usual is None else usual
        self._plateau.best = -float("inf") if best is None else best
        self._plateau.stale, self._plateau.decays = int(progress["stale"] or 0), int(progress["decays"] or 0)

    # --- afterwards --------------------------------------------------------------------------------------

    def finish(self, *, draws: int = 500, converged: bool = False, processes: int = 1) -> Any:
        """Make the user's model a fitted one.

        Parameters
        ----------
        draws : int
            Posterior draws.
        converged : bool
            Whether the ELBO had stopped rising.
        processes : int
            How many have trained; noted in the attributes.

        Returns
        -------
        arviz.InferenceData or xarray.DataTree
            Also the model's ``.idata``.
        """
        (model,) = self.model
        self.cpu()
        self.eval()
        for parameter in self.guide.parameters():
            parameter.requires_grad_(True)
        settings = replace(self.settings, draws=draws)
        head = self._objective[0].adversary
        width = 1 + (0 if head is None else len(head.groups))
        records = torch.stack(self.records) if self.records else torch.full((1, width), torch.nan)
        result = TrainingResult(records[:, 0], converged, records[:, 1:])
        trained = Trained(self.guide, result, head)
        streamed = isinstance(model._design, StreamedDesign)
        chain = chain_from if streamed else mean_field_chain
        with local_parameters(), pyro.validation_enabled(False):
            fitted = chain(self._ingredients, settings, self.module, self.chain_seed, trained)
        found = assembled(self._ingredients, settings, [fitted])
        found.posterior.attributes["processes"] = processes
        rows = model._sample if streamed else model._training
        return model._adopt(found, rows, self.settings.seed)


def mean_records(records: Sequence[Tensor]) -> Tensor:
    """Records of some steps, averaged over the processes, shape (steps, 1 + G)."""
    window = torch.stack(list(records))
    if world_size() > 1:
        torch.distributed.all_reduce(window)
        window /= world_size()
    return window.cpu()
