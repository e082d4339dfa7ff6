"""Inference: restarts, and what each way of inferring leaves behind."""

import math

import pytest
import torch
from hand_made import design, frame
from torch import nn

import pyro_armed as pa
from pyro_armed import inference, inference_settings
from pyro_armed.building import NetworkPlan
from pyro_armed.inference import infer
from pyro_armed.inference_settings import InferenceSettings, Ingredients

pytestmark = pytest.mark.filterwarnings("ignore::pyro_armed.errors.ConvergenceWarning")
QUICK = {"restarts": 2, "draws": 6, "epochs": 4, "warmup": 5, "progressbar": False}


def ingredients(formula="y ~ x + (1 | g)", family="gaussian", source=None, **options):
    made = design(formula, frame(), family, network=source is not None)
    spec, data, plan = made.spec, made.training.batch, None
    if source is not None:
        plan = NetworkPlan.inspect(source, spec, data, "bayesian")
        spec = plan.complete(spec)
    return Ingredients(spec, {}, plan, data, **options)


def settings(**changes):
    return InferenceSettings(**{**QUICK, **changes})


def test_training_elsewhere_ends_on_the_cpu(monkeypatch):
    """Rows and modules are on the device that the fit asks for while training runs, and only then."""
    seen = []

    def trained(objectives, data, *_, **__):
        seen.append((data.device.type, objectives[0].module.data is data))
        seen.extend(parameter.device.type for parameter in objectives[0].guide.parameters())
        raise RuntimeError("stop")

    monkeypatch.setattr(inference, "train_restarts", trained)
    monkeypatch.setattr(inference_settings, "checked_device", torch.device)
    monkeypatch.setattr(inference.Objective, "to", spied := _spy(inference.Objective.to))
    with pytest.raises((RuntimeError, NotImplementedError)):
        infer(ingredients(), settings(guide="mean_field", device="meta"))
    assert seen[0] == ("meta", True)
    assert set(seen[1:]) == {"meta"}
    assert [str(device) for device in spied.devices] == ["meta", "meta", "cpu"]


def _spy(function):
    def spied(self, device, data):
        spied.devices.append(device)
        return function(self, device, data)

    spied.devices = []
    return spied


def test_the_cpu_is_the_usual_device():
    first, second = (infer(ingredients(), settings(guide="mean_field", device=d)) for d in (None, "cpu"))
    for name, value in first.posterior.chains[0].values.items():
        assert torch.equal(value, second.posterior.chains[0].values[name])


# --- chains ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guide", ["mean_field", "structured"])
def test_restarts_are_chains(guide, unmoved_rng):
    with unmoved_rng():
        result = infer(ingredients(), settings(guide=guide))
        again = infer(ingredients(), settings(guide=guide))
        other = infer(ingredients(), settings(guide=guide, seed=1))
    one, two = result.posterior.chains
    assert one.n_draws == two.n_draws == 6
    assert one.values["1|g"].shape == (6, 5)
    assert one.stats["log_weight"].shape == (6,)
    assert len(one.trace) >= 4
    assert not torch.equal(one.values["x"], two.values["x"])
    for first, second in zip(result.posterior.chains, again.posterior.chains, strict=True):
        for name, value in first.values.items():
            assert torch.equal(value, second.values[name]), name
    assert not torch.equal(one.values["x"], other.posterior.chains[0].values["x"])
    attributes = result.posterior.attributes
    assert (attributes["inference"], attributes["guide"]) == ("svi", guide)
    assert (attributes["seed"], attributes["restarts"]) == (0, 2)
    assert math.isfinite(attributes["elbo"])


def test_the_first_restarts_do_not_depend_on_how_many_there_are():
    one = infer(ingredients(), settings(guide="mean_field", restarts=1)).posterior.chains[0]
    two = infer(ingredients(), settings(guide="mean_field", restarts=2)).posterior.chains[0]
    assert torch.equal(one.values["1|g"], two.values["1|g"])


def test_the_best_restart_is_kept(monkeypatch):
    original, elbos = inference._restarts, [-5.0, -3.0, math.nan, -4.0]

    def restarts(ingredients, settings):
        made = original(ingredients, settings)
        for one, elbo in zip(made, elbos, strict=True):
            object.__setattr__(one, "elbo", elbo)
        return made

    monkeypatch.setattr(inference, "_restarts", restarts)
    result = infer(ingredients(), settings(guide="mean_field", restarts=4, epochs=1, draws=3))
    assert result.posterior.attributes["elbo"] == -3.0
    assert result.module is result.posterior.chains[1].module


def test_networks_are_restarted_each_with_weights_of_its_own():
    made = ingredients("y ~ x + z + (1 | g)", source=pa.networks.MLP(hidden=(3,)))
    result = infer(made, settings(guide="mean_field"))
    one, two = (chain.module.network.state_dict() for chain in result.posterior.chains)
    assert not any(torch.equal(one[name], two[name]) for name in one)
    assert all(not chain.module.training for chain in result.posterior.chains)


def test_structured_guides_say_what_they_condition_on():
    made = ingredients("y ~ x + z + (1 | g)", source=pa.networks.MLP(hidden=(3,)))
    result = infer(made, settings(restarts=1))
    assert "network's weights" in result.posterior.attributes["conditions_on"]
    linear = infer(ingredients(), settings(restarts=1))
    assert "conditions_on" not in linear.posterior.attributes


def test_batch_statistics_do_not_move_after_training():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Dropout(0.5), nn.Linear(3, 1))
    made = ingredients("y ~ x + z + (1 | g)", source=network)
    result = infer(made, settings(guide="mean_field", restarts=1))
    module = result.module
    statistics = module.network[1]
    assert int(statistics.num_batches_tracked) == 4  # one for each step, none for drawing
    assert int(network[1].num_batches_tracked) == 0
    once, again = module.hidden(made.data)[1], module.hidden(made.data)[1]
    assert torch.equal(once, again)


def test_nuts_has_no_guide():
    result = infer(ingredients(), settings(inference="nuts", restarts=1))
    assert result.guide is None
    assert result.posterior.chains[0].values["1|g"].shape == (6, 5)
    assert result.posterior.attributes["inference"] == "nuts"
    assert result.posterior.attributes["seed"] == 0


def test_auxiliary_terms_reach_training_and_not_the_density(monkeypatch):
    made = ingredients(
        "b ~ x + z + (1 | g)",
        "bernoulli",
        pa.networks.MLP(hidden=(3,)),
        adversary=pa.Adversary(0.5),
        fixed_effects_weight=0.3,
    )
    seen = []
    original = inference.train_restarts

    def watched(objectives, *args, **options):
        (objective,) = objectives
        seen.append((objective.adversary.settings.weight, objective.fixed_effects_weight))
        return original(objectives, *args, **options)

    monkeypatch.setattr(inference, "train_restarts", watched)
    result = infer(made, settings(guide="mean_field", restarts=1))
    assert seen == [(0.5, 0.3)]
    assert set(result.posterior.chains[0].values) == {"Intercept", "features", "1|g_sigma", "1|g"}


@pytest.mark.parametrize("compile", ["off", "trace"])
def test_an_adversary_of_weight_zero_gives_the_posterior_of_no_adversary_to_the_last_bit(compile):
    frame = pa.simulate.spirals(3, 30, seed=0).frame
    posteriors = []
    for adversary in (None, pa.Adversary(0.0)):
        model = pa.ARMED(
            "y ~ x1 + x2 + (1 + features | group)",
            frame,
            family="bernoulli",
            network=pa.networks.MLP(hidden=(4, 4)),
            adversary=adversary,
        )
        fit = {"guide": "mean_field", "restarts": 1, "draws": 5, "epochs": 20, "batch_size": 30}
        posteriors.append(model.fit(**fit, compile=compile, seed=3, progressbar=False)["posterior"])
    assert posteriors[0].equals(posteriors[1])
