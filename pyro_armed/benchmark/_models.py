"""The models that are measured, and one step of each as the library takes it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from pyro_armed.adversary import Adversary
from pyro_armed.armed import ARMED
from pyro_armed.batch import Batch
from pyro_armed.building import build_adversary, build_module
from pyro_armed.compiled import unchecked_priors
from pyro_armed.effects import RandomEffects
from pyro_armed.guides import MeanFieldGuide
from pyro_armed.local import local_parameters
from pyro_armed.networks import MLP
from pyro_armed.objective import Objective
from pyro_armed.seeds import generator_for
from pyro_armed.simulate import spirals
from pyro_armed.steps import first_controls, plan_steps
from pyro_armed.training import no_validation
from pyro_armed.training_state import initial_state

__all__ = ["BATCH", "CLIP", "RATE", "groups_model", "library_step", "objectives", "rows_of", "spirals_model"]

BATCH, RATE, CLIP = 32, 0.01, 10.0
HIDDEN = (4, 4, 4)
Step = Callable[[], object]


def spirals_model(rows_per_group: int = 1000, seed: int = 0) -> ARMED:
    """Spirals in ten groups: intercept and slopes of all last features by group, adversary on.

    Parameters
    ----------
    rows_per_group : int
        Rows of each group.
    seed : int
        Seed of the data.

    Returns
    -------
    ARMED
        Not fitted.
    """
    return ARMED(
        "y ~ x1 + x2 + (1 + features | group)",
        spirals(rows_per_group=rows_per_group, seed=seed).frame,
        family="bernoulli",
        network=MLP(hidden=HIDDEN),
        adversary=Adversary(weight=0.5),
    )


def groups_model(groups: int, rows: int, seed: int = 0) -> ARMED:
    """The same network and five effects of each group, for any number of groups; no adversary.

    Parameters
    ----------
    groups : int
        Number of groups C, each with at least one row.
    rows : int
        Number of rows N, at least C.
    seed : int
        Seed of the data.

    Returns
    -------
    ARMED
        Not fitted.
    """
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, 2)).astype("float32")
    codes = np.concatenate([np.arange(groups), random.integers(0, groups, rows - groups)])
    return ARMED.from_arrays(
        x,
        (x[:, 0] > 0).astype(float),
        groups={"g": codes},
        family="bernoulli",
        network=MLP(hidden=HIDDEN),
        random_effects=[RandomEffects("g", slopes="features")],
    )


def objectives(model: ARMED, restarts: int, seed: int = 0) -> list[Objective]:
    """One objective of the mean-field guide for each restart, as `ARMED.fit` makes them.

    Parameters
    ----------
    model : ARMED
        With its training rows.
    restarts : int
        How many.
    seed : int
        Seed of the first; the others follow.

    Returns
    -------
    list of Objective
        In training mode.
    """
    made = []
    data: Batch = model.module.data  # type: ignore[assignment]
    for own in range(seed, seed + restarts):
        with no_validation(), local_parameters():
            module = build_module(model.spec, {}, model._plan, data, own)
            guide = MeanFieldGuide(module, data, generator_for(own, "start"))
            made.append(Objective(module, guide, build_adversary(model.adversary, module, data, own)))
        module.train()
    return made


def rows_of(objective: Objective) -> Batch:
    """All training rows of an objective."""
    data = objective.module.data
    if data is None:
        raise RuntimeError("the model has no training rows")
    return data


def library_step(model: ARMED, mode: str, restarts: int = 1, seed: int = 0) -> Step:
    """A step of the library's training on random minibatches.

    Parameters
    ----------
    model : ARMED
        With its training rows.
    mode : {"off", "trace", "inductor"}
        How it is run.
    restarts : int
        How many take their steps side by side.
    seed : int
        Seed of parameters and minibatches.

    Returns
    -------
    callable
        Takes one step of all restarts.

    Raises
    ------
    RuntimeError
        Where the restarts cannot be run side by side, or the step cannot be compiled.
    """
    parts = objectives(model, restarts, seed)
    data = rows_of(parts[0])
    with local_parameters(), no_validation(), unchecked_priors(parts):
        plan = plan_steps(parts, data, size=BATCH, clip=CLIP, mode=mode, steps=10**6)
    if (plan.compiled is None) != (mode == "off") or plan.side_by_side != restarts:
        raise RuntimeError(f"the step of {restarts} restarts is not run as compile={mode!r} says")
    state, controls = initial_state(plan.layout, parts), first_controls(parts, RATE, data.device)
    run, generator = plan.step(parts, list(range(restarts))), generator_for(seed, "minibatches")
    shape = (BATCH,) if restarts == 1 else (restarts, BATCH)

    def step() -> None:
        run(state, torch.randint(0, data.n_rows, shape, generator=generator), controls)

    if mode != "off":
        return step

    def eager() -> None:
        with local_parameters(), no_validation(), unchecked_priors(parts):
            step()

    return eager
