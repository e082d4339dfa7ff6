"""The baselines, one line each."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pyro_armed import families
from pyro_armed.armed import ARMED
from pyro_armed.baselines._fitted import ArmedFit, Fitted
from pyro_armed.baselines._group_input import GroupInputFit, joined, told_the_group
from pyro_armed.baselines._meta_learning import train_mldg
from pyro_armed.baselines._task import Task
from pyro_armed.effects import RandomEffects
from pyro_armed.errors import ArgumentError, ConvergenceWarning
from pyro_armed.seeds import stream

__all__ = ["BASELINES", "Baseline"]

_FIT = {"guide": "mean_field", "restarts": 1, "draws": 100, "early_stopping": False, "log_likelihood": False}


@dataclass(frozen=True)
class Baseline:
    """A way to deal with groups.

    Parameters
    ----------
    name : str
        As tables have it.
    words : str
        What it is.
    fit : callable
        Takes a `Task`, a seed and whether to show progress; returns a `Fitted`.
    """

    name: str
    words: str
    fit: Callable[[Task, int, bool], Fitted]

    def changed(self, name: str, words: str, **changes: Any) -> Baseline:
        """The same with other settings of the task: ``ARMED.changed("ARMED, wide", "...", network=...)``."""
        return Baseline(name, words, lambda task, seed, bar: self.fit(replace(task, **changes), seed, bar))


def _model(task: Task, effects: bool, adversary: bool, seed: int, bar: bool, **changes: Any) -> ARMED:
    """The fitted `ARMED` of one configuration."""
    wanted = task.random_effects
    if wanted is None:
        wanted = [RandomEffects(task.group, slopes="features")]
    if adversary and task.adversary is None:
        raise ArgumentError("The task has no adversary; give it adversary=pa.Adversary(weight=...).")
    settings = task.adversary if adversary else None
    if settings is not None:
        settings = replace(settings, groups=settings.groups or task.group)
    arguments = {
        "network": task.network,
        "reconstruction": task.reconstruction,
        "fixed_effects_weight": task.fixed_effects_weight if effects else 0.0,
        **task.options,
        **changes,
    }
    x = arguments.pop("x", task.train.x)
    model = ARMED.from_arrays(
        x,
        task.train.y,
        task.train.groups,
        random_effects=wanted if effects else [],
        family=task.family,
        adversary=settings,
        **arguments,
    )
    with warnings.catch_warnings():
        # A fixed budget is not trained to convergence; `verdict` in the model's attributes says so.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(**{**_FIT, **task.fit}, seed=seed, progressbar=bar)
    return model


def _conventional(task: Task, seed: int, bar: bool) -> Fitted:
    return ArmedFit(_model(task, False, False, seed, bar), task.new_groups, task.draws)


def _group_as_input(task: Task, seed: int, bar: bool) -> Fitted:
    levels = len(np.unique(task.train.y))
    outputs = families.get(task.family, task.options.get("link")).n_predictors(levels)
    options = {name: value for name, value in task.options.items() if name != "columns"}
    plain = replace(task, options=options)
    network = told_the_group(task, outputs)
    x = joined(task, task.train)
    model = _model(plain, False, False, seed, bar, network=network, x=x, standardize=False)
    return GroupInputFit(task, model)


def _domain_adversarial(task: Task, seed: int, bar: bool) -> Fitted:
    return ArmedFit(_model(task, False, True, seed, bar), task.new_groups, task.draws)


def _meta_learning(task: Task, seed: int, bar: bool) -> Fitted:
    return train_mldg(task, seed=seed, progressbar=bar)


def _random_effects(task: Task, seed: int, bar: bool) -> Fitted:
    return ArmedFit(_model(task, True, False, seed, bar), task.new_groups, task.draws)


def _armed(task: Task, seed: int, bar: bool) -> Fitted:
    return ArmedFit(_model(task, True, task.adversary is not None, seed, bar), task.new_groups, task.draws)


def _randomised_groups(task: Task, seed: int, bar: bool) -> Fitted:
    labels = task.train.groups[task.group]
    order = np.random.default_rng(stream(seed, "randomised groups")).permutation(len(labels))
    return _armed(task.with_labels(labels[order]), seed, bar)


BASELINES: dict[str, Baseline] = {
    one.name: one
    for one in (
        Baseline("conventional", "the network alone", _conventional),
        Baseline("group as input", "the group's one-hot code as a further input", _group_as_input),
        Baseline("domain adversarial", "the adversary, no random effects", _domain_adversarial),
        Baseline("meta-learning", "MLDG: groups play at being new in each step", _meta_learning),
        Baseline("random effects", "random effects, no adversary", _random_effects),
        Baseline("ARMED", "random effects and the adversary", _armed),
        Baseline("randomised groups", "as ARMED, the training rows' groups permuted", _randomised_groups),
    )
}
