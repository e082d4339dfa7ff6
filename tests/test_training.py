"""The SVI loop: settings, clipping, decay and stopping, repeatability, and what it leaves behind."""

import math
from dataclasses import replace

import pyro
import pytest
import torch
from hand_made import design, frame, module_of
from torch import nn

import pyro_armed as pa
from pyro_armed.building import build_adversary
from pyro_armed.errors import ArgumentError
from pyro_armed.guides import MeanFieldGuide
from pyro_armed.objective import LossParts, Objective
from pyro_armed.training import (
    Plateau,
    TrainingResult,
    TrainingSettings,
    no_validation,
    single_thread,
    train,
)
from pyro_armed.updates import Update


def objective_of(formula="y ~ x + (1 | g)", family="gaussian", adversary=None, network=None, rows=4):
    made = design(formula, frame(rows=rows), family, network=network is not None)
    module = module_of(made, network, None if network is None else "2", 3)
    guide = MeanFieldGuide(module, module.data, torch.Generator().manual_seed(0))
    head = build_adversary(adversary, module, module.data, 0)
    return Objective(module, guide, head)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))


def run(objective, seed=0, **settings):
    data = objective.module.data
    return train(objective, data, TrainingSettings(**settings), seed=seed, progressbar=False)


# --- settings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["epochs", "batch_size", "learning_rate", "max_steps", "clip"])
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, "5", True, [1]])
def test_settings_must_be_positive(name, value):
    with pytest.raises(ArgumentError, match=rf"^{name}=.* must be a positive number"):
        TrainingSettings(**{name: value})


@pytest.mark.parametrize("name", ["epochs", "batch_size", "max_steps"])
def test_counts_must_be_whole(name):
    with pytest.raises(ArgumentError, match=rf"^{name}=1.5 must be a whole number"):
        TrainingSettings(**{name: 1.5})
    assert getattr(TrainingSettings(**{name: 2.0}), name) == 2


def test_rows_and_steps():
    assert TrainingSettings().rows_per_step(2048) == 2048
    assert TrainingSettings().rows_per_step(2049) == 512
    assert TrainingSettings(batch_size=100).rows_per_step(30) == 30
    assert TrainingSettings(max_steps=7).steps(10_000) == 7
    assert TrainingSettings(epochs=3, batch_size=10).steps(25) == 6
    assert TrainingSettings(epochs=3).steps(25) == 3


@pytest.mark.parametrize(("settings", "steps"), [({"epochs": 3}, 3), ({"epochs": 3, "batch_size": 6}, 9)])
def test_as_many_steps_as_asked_for(settings, steps):
    result = run(objective_of(), **settings)
    assert result.elbo.shape == (steps,)
    assert not result.converged
    assert result.adversary.shape[1] == 0


# --- the loop ----------------------------------------------------------------------------------------------


def test_the_elbo_rises():
    result = run(objective_of(), max_steps=150)
    assert result.elbo[-20:].mean() > result.elbo[:20].mean() + 0.1
    assert result.final == pytest.approx(float(result.elbo[-100:].mean()))


@pytest.mark.parametrize("batch_size", [None, 7])
def test_same_seed_same_numbers_bit_for_bit(batch_size, unmoved_rng):
    with unmoved_rng():
        objectives = [objective_of() for _ in range(3)]
        results = [
            run(objective, seed, max_steps=12, batch_size=batch_size)
            for objective, seed in zip(objectives, (3, 3, 4), strict=True)
        ]
    assert torch.equal(results[0].elbo, results[1].elbo)
    assert not torch.equal(results[0].elbo, results[2].elbo)
    for one, other in zip(objectives[0].guide.parameters(), objectives[1].guide.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_first_step_does_not_depend_on_how_many_there_are():
    short, long = (run(objective_of(), max_steps=steps, batch_size=7) for steps in (4, 9))
    assert torch.equal(short.elbo, long.elbo[:4])


def test_frozen_parameters_stay_and_others_move():
    one = network()
    one[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in one.state_dict().items()}
    objective = objective_of("y ~ x + z + (1 | g)", network=one)
    run(objective, max_steps=5)
    after = one.state_dict()
    assert torch.equal(after["0.weight"], before["0.weight"])
    assert not torch.equal(after["0.bias"], before["0.bias"])


def test_the_adversary_is_trained_watched_and_its_weight_warms_up():
    settings = pa.Adversary(1.0, warmup=0.5)
    objective = objective_of("b ~ x + z + (1 | g)", "bernoulli", settings, network())
    seen = []
    head = objective.adversary
    before = [p.clone() for p in head.classifiers.parameters()]

    def loss(batch, features, weight):
        seen.append(float(weight))
        return type(head).loss(head, batch, features, weight)

    object.__setattr__(head, "loss", loss)
    result = run(objective, max_steps=8)
    assert seen == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0])
    assert result.adversary.shape == (8, 1)
    assert head.chance == (0.2,)
    assert all(not torch.equal(a, b) for a, b in zip(before, head.classifiers.parameters(), strict=True))


def test_training_does_not_stop_before_the_adversarys_weight_has_risen(monkeypatch):
    monkeypatch.setattr(Plateau, "update", lambda self, window: "stop")

    def steps(warmup):
        settings = pa.Adversary(1.0, warmup=warmup)
        objective = objective_of("b ~ x + z + (1 | g)", "bernoulli", settings, network())
        return len(run(objective, max_steps=400).elbo)

    assert steps(0.0) == 100
    assert steps(0.7) == 300  # the first check from step 280 on


def test_progress_is_shown_on_request_only(capfd):
    objective = objective_of()
    run(objective, max_steps=3)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
    train(objective, objective.module.data, TrainingSettings(max_steps=3), seed=0, label="my bar")
    assert "my bar" in capfd.readouterr().err


def test_training_mode_while_it_runs_and_evaluation_after():
    objective = objective_of("y ~ x + z + (1 | g)", network=network())
    modes = []
    objective.module.network.register_forward_hook(lambda module, *_: modes.append(module.training))
    run(objective, max_steps=2)
    assert modes == [True, True]
    assert not objective.module.training


def test_everything_is_put_back_after_an_exception(unmoved_rng):
    objective = objective_of()
    calls = []

    def fail(batch, weight):
        calls.append((torch.get_num_threads(), pyro.settings.get("module_local_params")))
        torch.rand(3)
        raise ZeroDivisionError("in the middle")

    torch.set_num_threads(2)
    state = pyro.settings.get()
    validated = torch.distributions.Distribution._validate_args
    objective.__class__ = type("Failing", (Objective,), {"__call__": lambda self, *args: fail(*args)})
    with unmoved_rng(), pytest.raises(ZeroDivisionError, match="in the middle"):
        run(objective, max_steps=3)
    assert calls == [(1, True)]
    assert torch.get_num_threads() == 2
    assert pyro.settings.get() == state
    assert torch.distributions.Distribution._validate_args == validated
    assert not objective.module.training
    torch.set_num_threads(1)


# --- bad steps -------------------------------------------------------------------------------------------


def test_one_bad_step_does_no_harm():
    objective = objective_of()
    original, count = type(objective).__call__, iter(range(100))

    def sometimes(self, batch, weight):
        parts = original(self, batch, weight)
        return replace(parts, total=parts.total * (math.nan if next(count) == 20 else 1.0))

    objective.__class__ = type("Sometimes", (Objective,), {"__call__": sometimes})
    run(objective, max_steps=40)
    assert all(torch.isfinite(p).all() for p in objective.guide.parameters())


# --- decay and stopping ------------------------------------------------------------------------------------


def test_plateau_decays_twice_and_stops():
    plateau = Plateau()
    noise = 0.1 * torch.randn(100, generator=torch.Generator().manual_seed(0))
    rising = [plateau.update(noise + step) for step in range(5)]
    flat = [plateau.update(noise + 4.0) for _ in range(9)]
    assert rising == ["go"] * 5
    assert flat == ["go", "go", "decay", "go", "go", "decay", "go", "go", "stop"]


def test_a_rise_within_the_noise_is_none():
    plateau = Plateau(decays=0, patience=0)
    noise = torch.randn(100, generator=torch.Generator().manual_seed(0))
    assert plateau.update(noise) == "go"
    assert plateau.update(noise + 0.02) == "stop"
    plateau = Plateau(decays=0, patience=0)
    plateau.update(noise)
    assert plateau.update(noise + 1.0) == "go"


class Constant(Objective):
    """An objective whose ELBO is what the test says, without the cost of a model."""

    value = 1.0

    def __call__(self, batch, weight=0.0):
        zero = torch.zeros(())
        total = sum(0.0 * p.sum() for p in self.guide.parameters())
        return LossParts(torch.tensor(self.value), zero, zero, total, zero.new_empty(0))


def test_the_seed_shuffles_the_rows():
    class Watched(Constant):
        def __call__(self, batch, weight=0.0):
            seen.append(batch.rows.tolist())
            return super().__call__(batch, weight)

    orders = []
    for seed in (3, 3, 4):
        seen = []
        objective = objective_of()
        objective.__class__ = Watched
        run(objective, seed, epochs=2, batch_size=10)
        orders.append(seen)
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert [sorted(orders[0][i] + orders[0][i + 1]) for i in (0, 2)] == [list(range(20))] * 2


def test_training_stops_when_the_elbo_no_longer_rises():
    objective = objective_of()
    objective.__class__ = Constant
    result = run(objective, max_steps=1500)
    assert result.converged
    assert len(result.elbo) == 1000
    again = objective_of()
    again.__class__ = Constant
    result = run(again, max_steps=1100, early_stopping=False)
    assert not result.converged
    assert len(result.elbo) == 1100


def watched_rates(monkeypatch):
    """An objective with a flat ELBO, and the list that the learning rates of its steps go to."""
    rates = []
    ascend = Update.ascend

    def watched(self, state, gradient, present, controls):
        rates.append(controls[1:].tolist())
        return ascend(self, state, gradient, present, controls)

    monkeypatch.setattr(Update, "ascend", watched)
    objective = objective_of(
        "b ~ x + z + (1 | g)", "bernoulli", pa.Adversary(1.0, learning_rate=0.5), network()
    )
    objective.__class__ = Constant
    return objective, rates


def test_the_learning_rate_decays(monkeypatch):
    objective, rates = watched_rates(monkeypatch)
    run(objective, max_steps=900, learning_rate=0.1, compile="off")
    assert sorted({tuple(rate) for rate in rates}, reverse=True) == [
        pytest.approx((0.1, 0.5)),
        pytest.approx((0.03, 0.15)),
        pytest.approx((0.009, 0.045)),
    ]


def test_learning_rates_fall_to_zero_along_half_a_cosine(monkeypatch):
    objective, rates = watched_rates(monkeypatch)
    result = run(objective, max_steps=1200, learning_rate=0.1, schedule="cosine", compile="off")
    assert len(result.elbo) == 1200  # a flat ELBO does not end it
    assert rates[0] == pytest.approx([0.1, 0.5])
    assert rates[300] == pytest.approx([0.1 * (0.5 + 0.5**1.5), 0.5 * (0.5 + 0.5**1.5)])
    assert rates[600] == pytest.approx([0.05, 0.25])
    assert max(rates[-1]) < 1e-5
    with pytest.raises(ArgumentError, match="schedule='linear' is not 'plateau' or 'cosine'"):
        TrainingSettings(schedule="linear")


@pytest.mark.filterwarnings("ignore::pyro_armed.errors.ConvergenceWarning")  # mean field
def test_where_rates_fall_to_zero_restarts_end_closer_together():
    data = pa.simulate.mixed_model(10, 20, seed=0).frame
    spread = []
    for schedule in ("plateau", "cosine"):
        model = pa.ARMED("y ~ x1 + (1 | group)", data)
        idata = model.fit(
            guide="mean_field", epochs=100, batch_size=20, learning_rate=0.05, early_stopping=False,
            schedule=schedule, restarts=4, draws=400, seed=1, progressbar=False,
        )  # fmt: skip
        x1 = idata["posterior"]["x1"].to_numpy()
        spread.append(x1.mean(1).std() / x1.std(1).mean())
    # The error of 400 draws' mean is .05 sds; a constant rate circles by a good part of one.
    assert spread[1] < 0.15 < spread[0]


def test_an_elbo_that_is_no_number_is_not_converged():
    objective = objective_of()
    objective.__class__ = type("Bad", (Constant,), {"value": math.nan})
    result = run(objective, max_steps=1200)
    assert not result.converged


def test_results_tell_the_last_window():
    result = TrainingResult(torch.arange(250.0), True, torch.empty(0, 2))
    assert result.final == pytest.approx(199.5)


def test_threads_and_validation_are_put_back():
    data = objective_of().module.data
    torch.set_num_threads(2)
    with single_thread(data):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    large = replace(data, inputs=torch.zeros(300_000))
    with single_thread(large):
        assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    with no_validation():
        assert not torch.distributions.Distribution._validate_args
    assert torch.distributions.Distribution._validate_args
