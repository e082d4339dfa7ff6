"""Time of a training step on spirals, in ratios within the run: batches of 32, a 4-4-4 network, mean-field.

``steps``: the bare network, `pyro.infer.SVI`, and the library's step, traced and through Inductor, for one
restart and for four. ``groups``: a million groups against a hundred. Times are of interleaved rounds.
"""

import argparse
import copy
import statistics
import time
import warnings

import numpy as np
import pyro
import torch
from pyro.infer import SVI, TraceMeanField_ELBO
from torch import nn

import pyro_armed as pa
from pyro_armed.building import build_adversary, build_module
from pyro_armed.compiled import unchecked_priors
from pyro_armed.guides import MeanFieldGuide
from pyro_armed.local import local_parameters
from pyro_armed.objective import Objective
from pyro_armed.seeds import generator_for
from pyro_armed.steps import first_controls, plan_steps
from pyro_armed.training import no_validation
from pyro_armed.updates import initial_state

ROWS, RATE, CLIP = 32, 0.01, 10.0


def objectives(model, restarts):
    """One objective for each restart, as `fit` makes them."""
    made = []
    for seed in range(restarts):
        with no_validation():
            module = build_module(model.spec, {}, model._plan, model._training.batch, seed)
        guide = MeanFieldGuide(module, module.data, generator_for(seed, "start"))
        made.append(Objective(module, guide, build_adversary(model.adversary, module, module.data, seed)))
    return made


def library_step(model, mode, restarts=1):
    parts = objectives(model, restarts)
    data = parts[0].module.data
    for part in parts:
        part.module.train()
    with local_parameters(), no_validation(), unchecked_priors(parts):
        plan = plan_steps(parts, data, size=ROWS, clip=CLIP, mode=mode, steps=10**6)
    parts = parts[: plan.side_by_side]
    state, controls = initial_state(plan.layout, parts), first_controls(parts, RATE, data.device)
    run, generator = plan.step(parts, list(range(len(parts)))), torch.Generator().manual_seed(0)

    def step():
        rows = torch.randint(0, data.n_rows, (ROWS,), generator=generator)
        run(state, rows if len(parts) == 1 else rows.repeat(len(parts), 1), controls)

    step()
    return step


def svi_step(model):
    (parts,) = objectives(model, 1)
    svi = SVI(parts.module, parts.guide, pyro.optim.Adam({"lr": RATE}), TraceMeanField_ELBO())
    data, generator = parts.module.data, torch.Generator().manual_seed(0)

    def step():
        with pyro.settings.context(module_local_params=False):
            svi.step(data.select(torch.randint(0, data.n_rows, (ROWS,), generator=generator)))

    return step


def bare_step(model):
    (parts,) = objectives(model, 1)
    network, data = copy.deepcopy(parts.module.network), parts.module.data
    adam, generator = torch.optim.Adam(network.parameters(), fused=True), torch.Generator().manual_seed(0)

    def step():
        rows = torch.randint(0, data.n_rows, (ROWS,), generator=generator)
        adam.zero_grad()
        output, response = network(data.inputs[rows])[:, 0], data.response[rows].to(data.inputs.dtype)
        nn.functional.binary_cross_entropy_with_logits(output, response).backward()
        adam.step()

    return step


def medians(steps, slow=(), rounds=25, repeats=20):
    """Median microseconds of each step over interleaved rounds."""
    times = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            count = 2 if name in slow else repeats
            start = time.perf_counter()
            for _ in range(count):
                step()
            times[name].append((time.perf_counter() - start) / count * 1e6)
    return {name: statistics.median(values) for name, values in times.items()}


def compare_steps():
    model = pa.ARMED(
        "y ~ x1 + x2 + (1 + features | group)",
        pa.simulate.spirals(seed=0).frame,
        family="bernoulli",
        network=pa.networks.MLP(hidden=(4, 4, 4)),
        adversary=pa.Adversary(weight=0.5),
    )
    steps = {"bare": bare_step(model), "svi": svi_step(model)}
    for mode in ("trace", "inductor"):
        steps[mode], steps[f"{mode} x 4"] = library_step(model, mode), library_step(model, mode, 4)
    found = medians(steps, slow=("svi",))
    print({name: round(value) for name, value in found.items()}, "microseconds")
    for mode in ("trace", "inductor"):
        print(
            f"{mode}: {found[mode] / found['bare']:.2f} of the bare network's step, "
            f"{found['svi'] / found[mode]:.1f} times faster than pyro.infer.SVI, "
            f"four restarts {found[f'{mode} x 4'] / found[mode]:.2f} times one",
            flush=True,
        )


def compare_groups(mode):
    steps = {}
    for groups in (100, 1_000_000):
        random, rows = np.random.default_rng(0), max(groups, 10_000)
        x = random.normal(size=(rows, 2)).astype("float32")
        group = np.concatenate([np.arange(groups), random.integers(0, groups, rows - groups)])
        model = pa.ARMED.from_arrays(
            x,
            (x[:, 0] > 0).astype(float),
            groups={"g": group},
            family="bernoulli",
            network=pa.networks.MLP(hidden=(4, 4, 4)),
            random_effects=[pa.RandomEffects("g", slopes="features")],
        )
        steps[groups] = library_step(model, mode)
    found = medians(steps)
    print(f"{mode}: a million groups {found[1_000_000] / found[100]:.2f} times a hundred", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", choices=("steps", "groups"))
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    for _ in range(options.repeats):
        if options.study == "steps":
            compare_steps()
        else:
            compare_groups("trace")
            compare_groups("inductor")
