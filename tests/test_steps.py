"""How the steps of a fit are run: what is chosen, what is shared, and what happens when tracing fails."""

import pytest
import torch
from hand_made import design, frame, module_of
from torch import nn

from pyro_armed import steps
from pyro_armed.compiled import unchecked_priors
from pyro_armed.errors import ArgumentError, CompilationWarning
from pyro_armed.guides import MeanFieldGuide
from pyro_armed.local import local_parameters
from pyro_armed.objective import Objective
from pyro_armed.training import TrainingSettings, no_validation, train, train_restarts


def objective_of(seed=0, layer=None, width=3):
    if layer is None:
        module = module_of(design("b ~ x + (1 | g)", frame(), "bernoulli"))
    else:
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(2, width), layer, nn.Linear(width, 1))
        module = module_of(design("y ~ x + z + (1 | g)", frame(), network=True), network, "2", width)
    return Objective(module, MeanFieldGuide(module, module.data, torch.Generator().manual_seed(seed)))


def run(objectives, mode, **settings):
    chosen = TrainingSettings(compile=mode, **{"max_steps": 5, **settings})
    seeds = range(len(objectives))
    return train_restarts(objectives, objectives[0].module.data, chosen, seeds, progressbar=False)


def parameters(objectives):
    return [p.detach().clone() for one in objectives for p in one.guide.parameters()]


@pytest.mark.parametrize("batch_size", [None, 7])
def test_fits_by_graph_are_eager_fits(batch_size, unmoved_rng):
    results, values = [], []
    for mode in ("off", "trace"):
        objectives = [objective_of(seed) for seed in range(2)]
        with unmoved_rng():
            results.append(run(objectives, mode, batch_size=batch_size))
        values.append(parameters(objectives))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one.elbo, other.elbo, rtol=1e-9, atol=1e-9)
        assert one.elbo.shape == (5,)
    for one, other in zip(*values, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7)


def test_restarts_stop_each_at_its_own_time(monkeypatch):
    """Side by side, a restart that has stopped stays where it is until the last one stops."""
    actions = iter(["go", "stop", "stop"])  # first window: restarts 0 and 1; second window: restart 0
    monkeypatch.setattr("pyro_armed.training.Plateau.update", lambda self, window: next(actions))
    objectives = [objective_of(seed) for seed in range(2)]
    results = run(objectives, "trace", max_steps=400, batch_size=7)
    assert [len(result.elbo) for result in results] == [200, 100]
    assert all(result.converged for result in results)
    alone = objective_of(1)
    monkeypatch.setattr("pyro_armed.training.Plateau.update", lambda self, window: "stop")
    train(
        alone,
        alone.module.data,
        TrainingSettings(compile="off", max_steps=400, batch_size=7),
        seed=1,
        progressbar=False,
    )
    for one, other in zip(parameters(objectives[1:]), parameters([alone]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


class Branching(nn.Module):
    """Looks at its numbers, which cannot be traced."""

    def forward(self, x):
        return x if float(x.detach().sum()) > 0 else -x


def test_what_cannot_be_traced_runs_eagerly_with_a_warning():
    objectives = [objective_of(seed, Branching()) for seed in range(2)]
    with pytest.warns(CompilationWarning, match="cannot be traced .*they run eagerly") as caught:
        results = run(objectives, "trace")
    assert len(caught) == 1
    assert all(torch.isfinite(result.elbo).all() for result in results)


def test_short_fits_are_not_traced(monkeypatch):
    monkeypatch.setattr(steps, "GradientGraph", None)
    run([objective_of()], "auto")


def test_no_compiler_is_told_and_the_graph_runs(monkeypatch):
    monkeypatch.setattr(steps, "compiler_found", lambda: False)
    with pytest.warns(CompilationWarning, match="needs a C\\+\\+ compiler"):
        run([objective_of()], "inductor")


def test_a_compiler_that_fails_is_told_and_the_graph_runs(monkeypatch):
    def fail(*_):
        raise OSError("cannot execute g++")

    monkeypatch.setattr(steps, "compiler_found", lambda: True)
    for way in ("kept_library", "inductor_run"):
        monkeypatch.setattr(f"pyro_armed.compiled.{way}", fail)
    with pytest.warns(CompilationWarning, match="OSError: cannot execute g"):
        run([objective_of()], "inductor")


def plan_of(objectives):
    data = objectives[0].module.data
    with local_parameters(), no_validation(), unchecked_priors(objectives):
        return steps.plan_steps(objectives, data, size=7, clip=10.0, mode="trace", steps=10)


def test_large_steps_run_one_restart_after_another(monkeypatch):
    monkeypatch.setattr(steps, "_TOGETHER", 10)
    plan = plan_of([objective_of(seed) for seed in range(2)])
    assert plan.side_by_side == 1
    assert plan.compiled is not None


def test_networks_of_different_shapes_are_not_put_together():
    plan = plan_of([objective_of(0, nn.Tanh(), 3), objective_of(1, nn.Tanh(), 4)])
    assert plan.side_by_side == 1
    assert plan.compiled is None


def test_networks_that_differ_are_found_out():
    with pytest.warns(CompilationWarning, match="something else than an eager one"):
        plan = plan_of([objective_of(0, nn.Tanh()), objective_of(1, nn.ReLU())])
    assert plan.compiled is None


def test_unknown_words_are_refused():
    with pytest.raises(ArgumentError, match="compile='jit' is not one of 'auto', 'inductor'"):
        TrainingSettings(compile="jit")
