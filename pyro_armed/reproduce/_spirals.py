"""Spirals whose radius differs by group, and the same with confounded probes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from torch import nn

from pyro_armed.adversary import Adversary
from pyro_armed.armed import ARMED
from pyro_armed.baselines import BASELINES, Baseline, Fitted, Rows, Task
from pyro_armed.diagnostics import Importance, importance
from pyro_armed.plots import decision_boundaries, new_figure
from pyro_armed.plots import importance as plot_importance
from pyro_armed.reproduce._application import Application, Problem
from pyro_armed.simulate import Spirals, confounded_spirals, spirals

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CONFOUNDED", "SPIRALS"]

FOLDS = 10
# Of the first ten seeds the one whose limits, .908 and .829, are nearest those of the published data.
SEED = 4
WIDE = ", 16 units"
PROBES = ["probe1", "probe2"]
# Published test accuracies: Nguyen, Treacher, Montillo, TPAMI 45(7), 2023.
PUBLISHED = {
    "conventional": 0.764,
    "group as input": 0.676,
    "domain adversarial": 0.753,
    "random effects": 0.793,
    "ARMED": 0.788,
}
# Epochs and batches as published.
BUDGET = {"epochs": 10, "batch_size": 32, "learning_rate": 1e-2}
# In batches of 32 at this rate the units of some networks with random effects all die. At a constant rate
# network and adversary circle: seeds 100 to 102, 20 epochs, ARMED's accuracy .879 and probes' share .042,
# random effects' accuracy .904. Over 30 epochs to a rate of zero .896 and .028, and .898.
CONFOUNDED_BUDGET = {"epochs": 30, "batch_size": 128, "learning_rate": 1e-2, "schedule": "cosine"}
QUICK = {"epochs": 2, "batch_size": 32, "learning_rate": 1e-2, "draws": 10}
ADVERSARY = Adversary(weight=0.5)


def network(inputs: int, units: int = 4) -> Callable[[], nn.Module]:
    """Three layers of ReLU units, as published with Glorot's first weights and no biases at first.

    With PyTorch's own first weights all units of a layer of 4 die in some folds, whatever the model.
    """

    def make() -> nn.Module:
        dense = [nn.Linear(before, after) for before, after in pairwise((inputs, units, units, units, 1))]
        for layer in dense:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        first, second, third, last = dense
        return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third, nn.ReLU(), last)

    return make


def with_wide(inputs: int) -> tuple[str | Baseline, ...]:
    """All baselines, and ours with layers of 16 units."""
    of_16 = network(inputs, 16)
    # These layers fit better by themselves, and a weight of 0.5 costs accuracy.
    changes: dict[str, dict[str, Any]] = {
        "random effects": {"network": of_16},
        "ARMED": {"network": of_16, "adversary": Adversary(weight=0.1)},
    }
    wide = [
        BASELINES[name].changed(name + WIDE, "three layers of 16 units", **change)
        for name, change in changes.items()
    ]
    return (*BASELINES, *wide)


def rows_of(frame: pd.DataFrame, columns: Sequence[str]) -> Rows:
    """Rows of a simulated frame."""
    return Rows(frame[list(columns)].to_numpy(), frame["y"].to_numpy(), {"group": frame["group"].to_numpy()})


@dataclass(frozen=True, eq=False)
class Truth:
    """What the data were simulated from, and the rows to test with."""

    data: Spirals
    test: pd.DataFrame
    columns: tuple[str, ...]


def _task(train: pd.DataFrame, truth: Truth, new: pd.DataFrame, quick: bool) -> Task:
    columns = truth.columns
    return Task(
        train=rows_of(train, columns),
        seen=rows_of(truth.test, columns),
        unseen=rows_of(new, columns),
        group="group",
        network=network(len(columns)),
        adversary=ADVERSARY,
        family="bernoulli",
        fit=QUICK if quick else BUDGET,
        options={"columns": list(columns)},
    )


def _problem(data: Spirals, fold: int, seed: int, columns: tuple[str, ...], quick: bool) -> Problem:
    """Fold of the rows at random; unseen groups are others of the same population."""
    order = np.random.default_rng([seed, 1]).permutation(len(data.frame))
    held = np.arange(len(order)) % FOLDS == fold
    truth = Truth(data, data.frame.iloc[order[held]], columns)
    new = data.new_groups(10, rows_per_group=data.rows_per_group // 2, seed=seed)
    # The best classifier of new groups' rows does not know their radii; its limit for seen ones does.
    limits = {
        "limit, radii known": {
            ("seen", "accuracy"): data.bayes_accuracy(truth.test),
            ("unseen", "accuracy"): new.bayes_accuracy(),
        },
        "limit, radii's distribution known": {
            ("seen", "accuracy"): data.bayes_accuracy(truth.test, known_radius=False),
            ("unseen", "accuracy"): new.bayes_accuracy(known_radius=False),
        },
    }
    n_groups = len(data.radii)
    words = (
        f"Two spirals in each of {n_groups} groups of {data.rows_per_group} rows; a tenth of the rows is "
        f"held out (seen), and so are {len(new.radii)} further groups (unseen)."
    )
    return Problem(_task(data.frame.iloc[order[~held]], truth, new.frame, quick), limits, truth, words)


def _spirals(fold: int, quick: bool, files: Sequence[Path]) -> Problem:
    data = spirals(10, 40 if quick else 1000, seed=SEED)
    return _problem(data, fold, SEED, ("x1", "x2"), quick)


def _published(problem: Problem, name: str, fitted: Fitted, fold: int) -> pd.DataFrame | None:
    if name not in PUBLISHED:
        return None
    return pd.DataFrame([("published", "accuracy", PUBLISHED[name])], columns=["split", "metric", "value"])


@dataclass(frozen=True, eq=False)
class _OfFrames:
    """A model from arrays that takes data frames, as `decision_boundaries` gives it."""

    model: ARMED
    columns: tuple[str, ...]

    @property
    def spec(self) -> Any:
        return self.model.spec

    def predict(self, frame: pd.DataFrame, **options: Any) -> Any:
        x = frame[list(self.columns)].to_numpy()
        return self.model.predict(x, groups={"group": frame["group"].to_numpy()}, **options)


def _boundaries(problem: Problem, fitted: Mapping[str, Fitted], number: int) -> Mapping[str, Figure]:
    """Decision boundaries by group of the full models."""
    truth: Truth = problem.truth
    figures = {}
    for name, stem in (("ARMED", ""), ("ARMED" + WIDE, "_16_units"), ("conventional", "_conventional")):
        model = fitted[name].model if name in fitted else None
        if model is not None:
            figures["decision_boundaries" + stem] = decision_boundaries(
                _OfFrames(model, truth.columns),
                truth.test,
                "x1",
                "x2",
                "group",
                truth=truth.data.bayes_probability,
                draws=None,
                figure=new_figure(),
            )
    return figures


SPIRALS = Application(
    name="spirals",
    title="Spirals: two classes in ten groups whose radii differ, 10-fold, three layers of 4 units",
    problem=_spirals,
    replicates=FOLDS,
    replicate="fold",
    most=FOLDS,
    baselines=with_wide(2),
    measures=_published,
    pictures=_boundaries,
    shown=(("seen", "accuracy"), ("published", "accuracy"), ("unseen", "accuracy"), ("seen", "nlpd")),
    note=(
        "Every model has 10 epochs in batches of 32 rows, as published, with Adam at 0.01 (published: "
        "0.001). The published limit is 0.908."
    ),
)


def _confounded(seed: int, quick: bool, files: Sequence[Path]) -> Problem:
    data = confounded_spirals(10, 40 if quick else 1000, seed=seed)
    problem = _problem(data, 0, seed, ("x1", "x2", *PROBES), quick)
    # With a class ratio of its own the limit for unseen groups takes the probes into account.
    words = problem.words + " Two probes tell only of the group's class ratio."
    task = problem.task if quick else replace(problem.task, fit=CONFOUNDED_BUDGET)
    return replace(problem, task=task, words=words)


def _probes(problem: Problem, name: str, fitted: Fitted, seed: int) -> pd.DataFrame | None:
    """The probes' share of the importance, where there is a model with the columns as inputs."""
    if fitted.model is None or name == "group as input":
        return None
    share = _importance(problem, fitted.model, seed).share(PROBES)
    return pd.DataFrame(
        [("fixed", "probes' share", float(share.mean()))], columns=["split", "metric", "value"]
    )


def _importance(problem: Problem, model: ARMED, seed: int) -> Importance:
    test = problem.task.seen
    draws = min(20, model.idata["posterior"].sizes["draw"])
    return importance(model, test.x, groups=test.groups, draws=draws, seed=seed)


def _confounded_pictures(problem: Problem, fitted: Mapping[str, Fitted], seed: int) -> Mapping[str, Figure]:
    """Decision boundaries at the probes' means, and importance of the columns."""
    figures = dict(_boundaries(problem, fitted, seed))
    for name in ("conventional", "ARMED"):
        model = fitted[name].model if name in fitted else None
        if model is not None:
            found = _importance(problem, model, seed)
            figures[f"importance_{name}"] = plot_importance(found, figure=new_figure())
    return figures


CONFOUNDED = Application(
    name="spirals-confounded",
    title="Confounded spirals: class ratios differ by group, and two probes tell of them",
    problem=_confounded,
    baselines=with_wide(4),
    measures=_probes,
    pictures=_confounded_pictures,
    shown=(("fixed", "probes' share"), ("seen", "accuracy"), ("unseen", "accuracy"), ("seen", "nlpd")),
    note="The probes' share is that of the expected absolute gradients of the fixed-effects prediction.",
)
