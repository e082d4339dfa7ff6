"""Graphs of training steps against eager steps: the Pyro model stays the only definition."""

import copy
import gc
import os

import pyro.distributions as dist
import pytest
import torch
from hand_made import design, frame, module_of
from torch import nn

import pyro_armed as pa
from pyro_armed.building import build_adversary
from pyro_armed.compiled import (
    CompiledStep,
    GradientGraph,
    chosen,
    compiler_found,
    unchecked_priors,
    uncollected,
)
from pyro_armed.guides import MeanFieldGuide
from pyro_armed.local import local_parameters
from pyro_armed.module import MixedEffectsModule
from pyro_armed.objective import Objective
from pyro_armed.priors import PriorTable
from pyro_armed.seeds import seeded, stream
from pyro_armed.training import no_validation
from pyro_armed.training_state import initial_state, rows_key
from pyro_armed.updates import Update

CONTROLS = torch.tensor([0.5, 0.02, 0.01], dtype=torch.float64)

MODELS = {
    "gaussian": ("y ~ x + c + (1 + z | g) + (1 | h)", "gaussian", {}),
    "uncorrelated": ("y ~ x + (1 + z || g)", "gaussian", {}),
    "weights": ("y ~ x + (1 | g)", "gaussian", {"weights": "w"}),
    "sigma": (["y ~ x + (1 | g)", "sigma ~ x + (1 | g)"], "gaussian", {}),
    "student_t": ("y ~ x + (1 | g)", "student_t", {}),
    "bernoulli": ("b ~ x + (1 | g)", "bernoulli", {}),
    "probit": ("b ~ x + (1 | g)", "bernoulli", {"link": "probit"}),
    "binomial": ("p(s, t) ~ x + (1 | g)", "binomial", {}),
    "categorical": ("c ~ x + (1 + z | g)", "categorical", {}),
    "ordinal": ("o ~ x + (1 | g)", "ordinal", {}),
    "poisson": ("count ~ x + offset(z) + (1 | g)", "poisson", {}),
    "negative_binomial": ("count ~ x + (1 | g)", "negative_binomial", {}),
    "gamma": ("p ~ x + (1 | g)", "gamma", {}),
    "beta": ("p ~ x + (1 | g)", "beta", {}),
}
NETWORKS = {
    "adversary": ("b ~ x + z + (1 + features | g)", "bernoulli", {"adversary": pa.Adversary(0.5)}),
    "two adversaries": (
        "y ~ x + z + (1 | g) + (1 | h)",
        "gaussian",
        {"adversary": pa.Adversary(0.5, groups=("g", "h"), conditional=True, weight_decay=0.1)},
    ),
    "classes": ("c ~ x + z + (1 + features | g)", "categorical", {"adversary": pa.Adversary(1.0)}),
    "independence": (
        "c ~ x + z + (1 + features | g)",
        "categorical",
        {"adversary": pa.Adversary(1.0, independence=5.0)},
    ),
    "fixed effects": ("y ~ x + z + (1 | g)", "gaussian", {"fixed": 0.5}),
    "batch statistics": ("y ~ x + z + (1 | g)", "gaussian", {"layer": nn.BatchNorm1d(3)}),
    "dropout": ("y ~ x + z + (1 | g)", "gaussian", {"layer": nn.Dropout(0.4)}),
}


def objective_of(name, seed=0, data=None, layer=None):
    if name in MODELS:
        formula, family, options = MODELS[name]
        module = module_of(design(formula, frame() if data is None else data, family, **options))
        return Objective(module, MeanFieldGuide(module, module.data, torch.Generator().manual_seed(seed)))
    formula, family, options = NETWORKS[name]
    outputs = 3 if family == "categorical" else 1
    torch.manual_seed(seed)
    middle = copy.deepcopy(layer or options.get("layer", nn.Tanh()))
    # A bias before batch normalisation has no gradient but rounding, which Adam makes a step of.
    bias = not isinstance(middle, nn.BatchNorm1d)
    network = nn.Sequential(nn.Linear(2, 3, bias), middle, nn.Linear(3, outputs))
    module = module_of(design(formula, frame(), family, network=True), network, "2", 3).train()
    guide = MeanFieldGuide(module, module.data, torch.Generator().manual_seed(seed))
    head = build_adversary(options.get("adversary"), module, module.data, seed)
    return Objective(module, guide, head, options.get("fixed", 0.0))


def within_network(network, adversary=None, fixed=0.0):
    """A model of arrays with group effects on a layer's channels."""
    x = torch.randn(24, 2, generator=torch.Generator().manual_seed(1))
    model = pa.ARMED.from_arrays(
        x,
        (x[:, 0] > 0).numpy(),
        groups={"site": ["a", "b", "c"] * 8},
        family="bernoulli",
        network=network,
        adversary=adversary,
        random_effects=[pa.RandomEffects("site"), pa.effects.ScaleBias(["0"], "site")],
    )
    module = model.module.train()
    guide = MeanFieldGuide(module, module.data, torch.Generator().manual_seed(0))
    return Objective(module, guide, build_adversary(adversary, module, module.data, 0), fixed)


class Eager:
    """Eager steps of some restarts, one after another."""

    def __init__(self, objectives, size, sparse=()):
        self.objectives, self.data = objectives, objectives[0].module.data
        self.updates = [Update(one, self.data, size, 10.0, sparse) for one in objectives]
        self.layout = self.updates[0].layout

    def steps(self, rows, seeds, controls=CONTROLS):
        """Records and states after some steps; buffers of networks move."""
        records, states = [], []
        for number, (update, objective, seed) in enumerate(
            zip(self.updates, self.objectives, seeds, strict=True)
        ):
            state = initial_state(self.layout, [objective])
            with local_parameters(), no_validation(), seeded(stream(seed, "training")):
                own = [some if some is None or some.dim() == 1 else some[number] for some in rows]
                source = self.data.tensors()
                records.append(torch.stack([update(state, source, some, controls) for some in own]))
            states.append(state)
        return records, states


def compiled(eager, rows, inductor=False):
    """The graph, and a state at the start, for as many restarts as the eager steps have."""
    update, objectives = eager.updates[0], eager.objectives
    source = eager.data.tensors()
    first = rows[0] if rows[0] is None or rows[0].dim() == 1 else rows[0][0]
    one = initial_state(eager.layout, objectives[:1])
    controls = CONTROLS if len(objectives) == 1 else CONTROLS.repeat(len(objectives), 1)
    with local_parameters(), no_validation(), unchecked_priors(objectives):
        batch, present = update.select(source, first)
        fixed = {name: one[name] for name in eager.layout.fixed}
        gradient = GradientGraph(update, update.values(one, present), fixed, batch)
        state = initial_state(eager.layout, objectives)
        step = CompiledStep(update, gradient, state, source, rows[0], controls, inductor=inductor)
    return step, state, controls


def assert_same(eager, rows, seeds=(3,), inductor=False, tolerance=1e-9):
    step, state, controls = compiled(eager, rows, inductor)
    run = step.seeded(seeds)
    records = torch.stack([run(state, some, controls) for some in rows])
    expected, states = eager.steps(rows, seeds)
    for number, (one, values) in enumerate(zip(expected, states, strict=True)):
        found = records if len(seeds) == 1 else records[:, number]
        torch.testing.assert_close(found, one, rtol=tolerance, atol=tolerance)
        for key, value in values.items():
            mine = state[key] if len(seeds) == 1 else state[key][number]
            near = {torch.float32: 1e-5}.get(value.dtype, tolerance)
            torch.testing.assert_close(mine, value, rtol=near, atol=near, msg=lambda m, key=key: key + m)


ROWS = [torch.tensor([0, 3, 4, 9, 11, 17, 18]), torch.tensor([1, 2, 5, 6, 7, 8, 19])]


def traced(eager, rows):
    """The gradient's graph, and what it was traced at."""
    update, state = eager.updates[0], initial_state(eager.layout, eager.objectives[:1])
    batch, present = update.select(eager.data.tensors(), rows)
    given = (update.values(state, present), {name: state[name] for name in eager.layout.fixed}, batch)
    return GradientGraph(update, *given), given


@pytest.mark.parametrize("name", [*MODELS, *NETWORKS])
def test_graphs_have_the_eager_losses_and_gradients_at_the_same_draws(name):
    eager = Eager([objective_of(name)], 7)
    with local_parameters(), no_validation(), unchecked_priors(eager.objectives):
        graph, given = traced(eager, ROWS[0])
        noise = [draw.like.clone() for draw in graph.draws]
        generator = torch.Generator().manual_seed(3)
        for draw, numbers in zip(graph.draws, noise, strict=True):
            draw.fill(numbers, generator)
        found, _, record = graph(*given, CONTROLS[0], noise)
        with seeded(3):
            expected, expected_record = eager.updates[0].gradient(*given, CONTROLS[0])
    near = 1e-10 if name in MODELS else 1e-5  # networks are in single precision
    torch.testing.assert_close(record, expected_record, rtol=near, atol=near)
    assert set(found) == set(expected)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=near, atol=near)
    assert sum(float(value.abs().sum()) for value in expected.values()) > 0


@pytest.mark.parametrize("adversary", [None, pa.Adversary(0.5)])
def test_effects_within_networks(adversary):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 1))
    eager = Eager([within_network(network, adversary, 0.3)], 7)
    assert_same(eager, ROWS, tolerance=1e-5)


@pytest.mark.slow
def test_images_with_the_channels_last():
    x = torch.randn(24, 32, 32, generator=torch.Generator().manual_seed(1))
    network = pa.networks.CNN(channels=(2, 3), hidden=(4,)).build((32, 32), 1)
    adversary = pa.Adversary(0.5, layers=network.block_layers)
    model = pa.ARMED.from_arrays(
        x,
        (x[:, 0, 0] > 0).numpy(),
        groups={"site": ["a", "b", "c"] * 8},
        family="bernoulli",
        network=network,
        random_effects=[pa.RandomEffects("site"), pa.effects.ScaleBias(network.conv_layers, "site")],
    )
    module = model.module.train()
    guide = MeanFieldGuide(module, module.data, torch.Generator().manual_seed(0))
    objective = Objective(module, guide, build_adversary(adversary, module, module.data, 0))
    assert_same(Eager([objective], 20), [torch.arange(20), torch.arange(4, 24)], tolerance=1e-3)


@pytest.mark.parametrize("name", ["bernoulli", "adversary", "batch statistics", "dropout"])
def test_graphs_step_as_eager_steps_do(name):
    """Two steps on different rows: clipping, Adam, buffers, and the network's own draws."""
    assert_same(Eager([objective_of(name)], 7), ROWS, tolerance=1e-9 if name in MODELS else 1e-5)


@pytest.mark.parametrize("name", ["bernoulli", "batch statistics"])
def test_all_rows_at_once(name):
    assert_same(Eager([objective_of(name)], 20), [None, None], tolerance=1e-5)


@pytest.mark.parametrize("name", ["bernoulli", "adversary", "batch statistics", "dropout"])
def test_restarts_side_by_side_are_restarts_one_by_one(name):
    rows = [torch.stack([ROWS[0], ROWS[1], ROWS[0]]), torch.stack([ROWS[1], ROWS[0], ROWS[0]])]
    eager = Eager([objective_of(name, seed) for seed in range(3)], 7)
    assert_same(eager, rows, (3, 4, 5), tolerance=1e-9 if name in MODELS else 1e-5)


def test_side_by_side_on_all_rows():
    assert_same(Eager([objective_of("bernoulli", seed) for seed in range(2)], 20), [None, None], (3, 4))


def sparse_rows():
    return [torch.tensor([0, 1, 2]), torch.tensor([3, 9, 18]), torch.tensor([3, 10, 19])]


def test_tables_of_groups_by_graph():
    assert_same(Eager([objective_of("bernoulli")], 3, ["g"]), sparse_rows())


def test_tables_of_groups_side_by_side():
    """Tables stand one below the other, so they are compared with steps of the same two restarts alone."""
    objectives = [objective_of("bernoulli", seed) for seed in range(2)]
    rows = [torch.stack([some, some.flip(0)]) for some in sparse_rows()]
    eager = Eager(objectives, 3, ["g"])
    step, state, controls = compiled(eager, rows)
    run = step.seeded((3, 4))
    records = torch.stack([run(state, some, controls) for some in rows])
    expected, states = eager.steps(rows, (3, 4))
    torch.testing.assert_close(records, torch.stack(expected, dim=1), rtol=1e-7, atol=1e-7)
    together = torch.cat([one[rows_key("g")][:-1] for one in states])
    found = torch.cat([part[:-1] for part in state[rows_key("g")].chunk(2)])
    torch.testing.assert_close(found, together, rtol=1e-6, atol=1e-6)


def test_a_stopped_restart_keeps_its_batch_statistics():
    objectives = [objective_of("batch statistics", seed) for seed in range(2)]
    rows = [torch.stack([ROWS[0], ROWS[1]])]
    step, state, controls = compiled(Eager(objectives, 7), rows)
    controls = controls.clone()
    controls[1, 1:] = 0.0
    name = "module.network.1.running_mean"
    before = {key: value.clone() for key, value in state.items()}
    step.seeded((3, 4))(state, rows[0], controls)
    assert not torch.equal(state[name][0], before[name][0])
    assert torch.equal(state[name][1], before[name][1])


def test_draws_differ_between_steps_and_repeat_with_the_seed():
    eager = Eager([objective_of("bernoulli")], 7)
    step, start, controls = compiled(eager, ROWS)
    controls = controls * torch.tensor([1.0, 0.0, 0.0])
    records = []
    for seed in (3, 3, 4):
        run, state = step.seeded([seed]), {name: value.clone() for name, value in start.items()}
        records.append(torch.stack([run(state, ROWS[0], controls) for _ in range(3)]))
    assert torch.equal(records[0], records[1])
    assert not torch.equal(records[0], records[2])
    assert len(records[0][:, 0].unique()) == 3


def test_priors_of_the_users_own_do_not_stand_in_the_way():
    made = design("y ~ x + (1 | g)", frame())
    priors = PriorTable(made.spec, {"1|g_sigma": dist.HalfCauchy(2.0), "x": dist.StudentT(3.0, 0.0, 1.0)})
    module = MixedEffectsModule(made.spec, priors, data=made.training.batch)
    guide = MeanFieldGuide(module, module.data, torch.Generator().manual_seed(0))
    objective = Objective(module, guide)
    checked = [prior.raw._validate_args for prior in priors.values()]
    assert any(checked)
    with local_parameters(), no_validation(), unchecked_priors([objective]):
        eager = Eager([objective], 7)
        graph, given = traced(eager, ROWS[0])
        graph.check(eager.updates[0], *given)
    assert [prior.raw._validate_args for prior in priors.values()] == checked


class Hidden(nn.Module):
    """A layer that does something else each time, unseen by a trace."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return x * (1.0 + 0.5 * self.calls)


def test_a_network_that_hides_something_is_found_out():
    eager = Eager([objective_of("fixed effects", layer=Hidden())], 7)
    with local_parameters(), no_validation(), unchecked_priors(eager.objectives):
        graph, given = traced(eager, ROWS[0])
        with pytest.raises(RuntimeError, match="something else than an eager one"):
            graph.check(eager.updates[0], *given)


def test_what_auto_takes(monkeypatch):
    monkeypatch.setattr("pyro_armed.compiled.compiler_found", lambda: True)
    assert chosen("auto", 200, 4) == "off"
    assert chosen("auto", 300, 4) == "trace"
    assert chosen("auto", 50_000, 1) == "inductor"
    assert [chosen(mode, 5, 1) for mode in ("off", "trace", "inductor")] == ["off", "trace", "inductor"]
    monkeypatch.setattr("pyro_armed.compiled.compiler_found", lambda: False)
    assert chosen("auto", 50_000, 1) == "trace"


def test_compilers_are_looked_for_where_inductor_looks(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert not compiler_found()
    compiler = tmp_path / "my-compiler"
    compiler.write_text("#!/bin/sh\n")
    os.chmod(compiler, 0o755)
    assert not compiler_found()
    monkeypatch.setenv("CXX", "my-compiler")
    assert compiler_found()


@pytest.mark.slow
@pytest.mark.skipif(not compiler_found(), reason="no C++ compiler")
@pytest.mark.parametrize("restarts", [1, 2])
def test_inductor_steps_as_eager_steps_do(restarts, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    rows = ROWS if restarts == 1 else [torch.stack([some, some]) for some in ROWS]
    eager = Eager([objective_of("adversary", seed) for seed in range(restarts)], 7)
    assert_same(eager, rows, (3, 4)[:restarts], inductor=True, tolerance=1e-5)


@pytest.mark.parametrize("running", [True, False])
def test_the_collector_is_as_it_was(running):
    before = gc.isenabled()
    (gc.enable if running else gc.disable)()
    try:
        with uncollected():
            assert not gc.isenabled()
        assert gc.isenabled() is running
    finally:
        (gc.enable if before else gc.disable)()
