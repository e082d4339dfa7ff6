"""Meta-learning domain generalisation: groups play at being new in each step."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call
from tqdm.auto import tqdm

from pyro_armed import metrics
from pyro_armed.armed import ARMED
from pyro_armed.baselines._task import Rows, Task
from pyro_armed.batch import Batch, minibatches
from pyro_armed.errors import ArgumentError
from pyro_armed.families import Family
from pyro_armed.inference_settings import InferenceSettings
from pyro_armed.passes import network_inputs, run_rows
from pyro_armed.scores import kind_of
from pyro_armed.seeds import generator_for, seeded, stream
from pyro_armed.training import TrainingSettings, cosine, single_thread

__all__ = ["MetaLearning", "train_mldg"]


@dataclass(frozen=True)
class MetaLearning:
    """Settings of MLDG (Li, Yang, Song, Hospedales, AAAI 2018).

    Parameters
    ----------
    share : float
        Share of the groups that play at being new in a step; at least one, and not all.
    inner_rate : float
        Size of the gradient step on the other groups (alpha).
    weight : float
        Weight of the loss on the virtual new groups after that step (beta).

    Raises
    ------
    ArgumentError
        For a share outside (0, 1) and other numbers below 0.
    """

    share: float = 0.3
    inner_rate: float = 0.1
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.share < 1.0:
            raise ArgumentError(f"share={self.share!r} of MetaLearning must be within (0, 1).")
        for name in ("inner_rate", "weight"):
            if not getattr(self, name) >= 0.0:
                raise ArgumentError(f"{name}={getattr(self, name)!r} of MetaLearning must be at least 0.")


@dataclass(frozen=True, eq=False)
class MetaLearnt:
    """A network that MLDG has trained.

    Attributes
    ----------
    network : nn.Module
        In evaluation mode.
    design : ARMED
        An unfitted model of the same rows, which encodes others.
    """

    network: nn.Module
    design: ARMED

    @property
    def model(self) -> None:
        """It is no `ARMED`."""

    def inputs(self, rows: Rows) -> Any:
        """The rows' own inputs."""
        return rows.x

    def pointwise(self, rows: Rows, *, seed: int = 0) -> pd.DataFrame:
        """Scores of each row; nothing is random."""
        spec, family = self.design.spec, self.design.spec.family
        batch = self.design._encode(rows.x, rows.groups, rows.y, response=True).batch
        with torch.no_grad():
            eta = _predictor(run_rows(self.network, spec, batch).output)
            log_prob = family.log_prob(batch.response, eta)  # type: ignore[arg-type]
            mean = family.mean(eta).double().numpy()
        y = batch.response.double().numpy()  # type: ignore[union-attr]
        columns = {"nlpd": -log_prob.double().numpy(), "squared_error": metrics.squared_errors(mean, y)}
        levels = kind_of(family) == "levels"
        columns |= {"correct": metrics.correct(mean, y)} if levels else {"expected": mean}
        return pd.DataFrame(columns)


def train_mldg(
    task: Task, settings: MetaLearning | None = None, *, seed: int = 0, progressbar: bool = True
) -> MetaLearnt:
    """Train the task's network by MLDG, with as many steps as its ``fit`` gives the other baselines.

    In each step some groups play at being new. With F the loss on the rows of the others and G that on the
    virtual new groups, Adam takes its step along the gradient of F(w) + beta G(w - alpha F'(w)).

    Parameters
    ----------
    task : Task
        Rows, network and budget.
    settings : MetaLearning, optional
        Its settings.
    seed : int
        Seed of weights, shuffles and virtual groups.
    progressbar : bool
        Whether to show progress.

    Returns
    -------
    MetaLearnt

    Raises
    ------
    ArgumentError
        For a family with parameters besides the mean.
    """
    settings = settings or MetaLearning()
    options = {**task.options, "reconstruction": task.reconstruction}
    design = ARMED.from_arrays(
        task.train.x,
        task.train.y,
        task.train.groups,
        random_effects=[],
        family=task.family,
        network=task.network,
        **options,
    )
    spec, data = design.spec, design._training.batch  # type: ignore[union-attr]
    if spec.family.auxiliaries:
        raise ArgumentError(
            f"Meta-learning is for families without auxiliary parameters, not for {spec.family.name!r}; "
            "leave it out of baselines."
        )
    first = InferenceSettings(seed=seed).chain_seed(0)  # the first weights of the other baselines
    network = design._plan.instance(spec, data, first)  # type: ignore[union-attr]
    budget = {n: task.fit[n] for n in ("epochs", "batch_size", "learning_rate", "schedule") if n in task.fit}
    steps = TrainingSettings(**{"learning_rate": 0.01, **budget})
    run = _Run(
        network, spec.family, data, torch.as_tensor(task.codes(task.train)), len(task.labels), settings
    )
    with single_thread(data), seeded(stream(seed, "meta-learning") % 2**31):
        run.train(steps, seed, progressbar)
    return MetaLearnt(network.eval(), design)


class _Run:
    """One training."""

    def __init__(
        self,
        network: nn.Module,
        family: Family,
        data: Batch,
        codes: Tensor,
        n_groups: int,
        settings: MetaLearning,
    ):
        self.network, self.family, self.data, self.codes = network, family, data, codes
        self.n_groups, self.settings = n_groups, settings
        self.virtual = min(n_groups - 1, max(1, round(settings.share * n_groups)))
        self.inputs = network_inputs(network, data)
        self.weights = {name: p for name, p in network.named_parameters() if p.requires_grad}

    def train(self, budget: TrainingSettings, seed: int, progressbar: bool) -> None:
        """Take all steps."""
        size, n_rows = budget.rows_per_step(self.data.n_rows), self.data.n_rows
        shuffles, roles = generator_for(seed, "minibatches"), generator_for(seed, "virtual groups")
        epochs = (minibatches(n_rows, size, shuffles) for _ in itertools.count())
        total = budget.steps(n_rows)
        batches = itertools.islice(itertools.chain.from_iterable(epochs), total)
        optimiser = torch.optim.Adam(self.weights.values(), lr=budget.learning_rate)
        self.network.train()
        bar = tqdm(batches, total=total, desc="MLDG", disable=not progressbar, leave=False)
        for number, rows in enumerate(bar):
            if budget.schedule == "cosine":
                optimiser.param_groups[0]["lr"] = budget.learning_rate * cosine(number / total)
            order = torch.randperm(self.n_groups, generator=roles)
            held = torch.isin(self.codes[rows], order[: self.virtual])
            optimiser.zero_grad()
            self.loss(rows[~held], rows[held]).backward()
            optimiser.step()

    def loss(self, trained: Tensor, held: Tensor) -> Tensor:
        """F(w) + beta G(w - alpha F'(w)) on a minibatch; either part may be without rows."""
        beta, alpha = self.settings.weight, self.settings.inner_rate
        if not len(held):
            return self._loss(self.weights, trained)
        if not len(trained):
            return beta * self._loss(self.weights, held)
        first = self._loss(self.weights, trained)
        slopes = torch.autograd.grad(first, list(self.weights.values()), create_graph=True, allow_unused=True)
        stepped = {
            name: p if slope is None else p - alpha * slope
            for (name, p), slope in zip(self.weights.items(), slopes, strict=True)
        }
        return first + beta * self._loss(stepped, held)

    def _loss(self, weights: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        raw: Any = functional_call(self.network, dict(weights), (self.inputs[rows],))
        eta = _predictor(raw[0] if isinstance(raw, tuple | list) else raw)
        y: Tensor = self.data.response[rows]  # type: ignore[index]
        return -self.family.log_prob(y, eta).mean()


def _predictor(output: Tensor) -> Tensor:
    """A network's output as a family takes it: (B,), or (B, R) of a categorical response."""
    return output.squeeze(-1) if output.ndim > 1 and output.shape[-1] == 1 else output
