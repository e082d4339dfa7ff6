"""The Pyro model against plain algebra, loops over draws, and stock Pyro."""

import copy
import itertools
from dataclasses import replace

import numpy as np
import pyro
import pytest
import torch
from hand_made import design, frame, module_of
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from scipy import stats
from torch import nn

import pyro_armed as pa
from pyro_armed.batch import Batch
from pyro_armed.errors import NotFittedError
from pyro_armed.local import local_parameters
from pyro_armed.module import MixedEffectsModule
from pyro_armed.priors import PriorTable

MLP = (nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)), "2", 3)
MLP2 = (nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)), "2", 3)
MODELS = {
    "gaussian": ("y ~ x + c + (1 + z | g) + (1 | h)", "gaussian", (), {}),
    "bernoulli": ("b ~ x + (x + z || g)", "bernoulli", (), {}),
    "vector slopes": ("y ~ x + (c | g)", "gaussian", (), {"weights": "w"}),
    "categorical": ("c ~ x + z + (1 + x | g)", "categorical", (), {}),
    "ordinal": ("o ~ x + (1 | g)", "ordinal", (), {}),
    "features": ("y ~ x + z + features + (1 + features | g)", "gaussian", MLP, {"network": True}),
    "categorical features": ("c ~ x + z + (1 + features | g)", "categorical", MLP2, {"network": True}),
    "sigma": (["y ~ x + offset(z) + (1 | g)", "sigma ~ x + (1 | g)"], "gaussian", (), {}),
    "binomial": ("p(s, t) ~ x + (1 | g)", "binomial", (), {}),
}


def model(name):
    formulas, family, of, options = MODELS[name]
    return module_of(design(formulas, frame(), family, **options), *copy.deepcopy(of))


def latents(trace):
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and not site["is_observed"]
        and not site["infer"].get("_deterministic")
        and type(site["fn"]).__name__ != "_Subsample"
    }


def traced(module, batch=None, values=None):
    conditioned = poutine.condition(module, data=values or {})
    with local_parameters():
        trace = poutine.trace(conditioned).get_trace(batch)
    trace.compute_log_prob()
    return trace


def values_of(trace):
    return {name: site["value"].detach() for name, site in latents(trace).items()}


# --- names and shapes --------------------------------------------------------------------------------------


def test_sites_of_the_model_and_nothing_else():
    trace = traced(model("gaussian"))
    assert set(latents(trace)) == {
        *("x_raw", "c_raw", "Intercept_raw", "sigma"),
        *("1|g_sigma", "z|g_sigma", "g_corr_cholesky", "1|h_sigma"),
        *("1|g_offset", "z|g_offset", "1|h_offset"),
    }
    deterministic = {n for n, s in trace.nodes.items() if s.get("infer", {}).get("_deterministic")}
    assert deterministic == {"Intercept", "x", "c", "g_corr", "1|g", "z|g", "1|h"}
    assert [n for n, s in trace.nodes.items() if s["type"] == "sample" and s["is_observed"]] == [
        *sorted(deterministic, key=list(trace.nodes).index),
        "y",
    ]
    assert trace.nodes["c_raw"]["value"].shape == (2,)
    assert trace.nodes["z|g_offset"]["value"].shape == (5,)
    assert trace.nodes["1|h_offset"]["value"].shape == (3,)


def test_names_of_features_thresholds_and_modelled_sigma():
    features = traced(model("features"))
    assert features.nodes["features_raw"]["value"].shape == (3,)
    assert features.nodes["features|g_offset"]["value"].shape == (5, 3)
    assert "x_raw" not in features.nodes
    assert {"sigma_Intercept_raw", "sigma_x_raw", "sigma_1|g_offset"} <= set(latents(traced(model("sigma"))))
    ordinal = traced(model("ordinal"))
    assert ordinal.nodes["threshold_raw"]["value"].shape == (2,)
    assert "Intercept_raw" not in ordinal.nodes
    levels = traced(model("categorical"))
    assert levels.nodes["x_raw"]["value"].shape == (2,)
    assert levels.nodes["1|g_offset"]["value"].shape == (5, 2)


@pytest.mark.filterwarnings("ignore::pyro_armed.errors.ConvergenceWarning")
def test_trained_model_has_no_auxiliary_site():
    made = pa.ARMED(
        "b ~ x + z + (1 | g)",
        frame(),
        family="bernoulli",
        network=pa.networks.MLP(hidden=(3,)),
        adversary=pa.Adversary(0.5),
        fixed_effects_weight=0.3,
    )
    made.fit(restarts=1, draws=5, epochs=3, guide="mean_field", progressbar=False)
    trace = traced(made.module)
    assert set(latents(trace)) == {"Intercept_raw", "features_raw", "1|g_sigma", "1|g_offset"}
    for site in trace.nodes.values():
        assert not site.get("infer", {}).get("is_auxiliary")
        assert "adversary" not in site["name"]
        assert "classifier" not in site["name"]
    parameters = {name for name, site in trace.nodes.items() if site["type"] == "param"}
    assert {name.split("network")[1] for name in parameters} == {
        f"$$${name}" for name, _ in made.module.network.named_parameters()
    }


def test_without_arguments_it_is_the_model_of_the_training_data():
    module = model("gaussian")
    once = traced(module)
    again = traced(module, module.data, values_of(once))
    assert torch.equal(once.nodes["y"]["value"], module.data.response)
    assert torch.equal(once.nodes["_RETURN"]["value"], again.nodes["_RETURN"]["value"])
    assert float(once.log_prob_sum()) == float(again.log_prob_sum())


def test_without_data_it_asks_for_a_batch():
    module = model("gaussian")
    alone = MixedEffectsModule(module.spec, PriorTable(module.spec))
    with pytest.raises(NotFittedError, match=r"no training data .* pass a Batch"):
        alone()


def test_without_a_response_it_is_drawn():
    module = model("gaussian")
    trace = traced(module, module.data.without_response())
    assert not trace.nodes["y"]["is_observed"]
    assert trace.nodes["y"]["value"].shape == (20,)


@pytest.mark.parametrize("name", MODELS)
def test_a_plate_of_draws_is_a_loop(name):
    module, draws = model(name), 3
    with pyro.plate("particles", draws, dim=-2):
        plated = traced(module)
    found = values_of(plated)
    groups = {f"{effect}_offset" for effect in module.effect_names()}
    for s in range(draws):
        one = {key: value[s] if key in groups else value[s, 0] for key, value in found.items()}
        alone = traced(module, values=one)
        for key in [*found, module.spec.response]:
            together = plated.nodes[key]["log_prob"]
            expected = alone.nodes[key]["log_prob"]
            together = together[s] if key in groups or together.shape[-1:] == (20,) else together[s, 0]
            torch.testing.assert_close(together, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(
            plated.nodes["_RETURN"]["value"][s], alone.nodes["_RETURN"]["value"], rtol=1e-10, atol=1e-10
        )
        for effect in module.effect_names():
            torch.testing.assert_close(plated.nodes[effect]["value"][s], alone.nodes[effect]["value"])


@pytest.mark.parametrize("name", ["gaussian", "categorical"])
def test_two_plates_of_draws(name):
    module = model(name)
    with pyro.plate("outer", 2, dim=-3), pyro.plate("inner", 4, dim=-2):
        trace = traced(module)
    outcomes = (2,) if name == "categorical" else ()
    assert trace.nodes["_RETURN"]["value"].shape == (2, 4, 20, *outcomes)
    assert trace.nodes[module.spec.response]["log_prob"].shape == (2, 4, 20)


# --- the density against algebra by hand -------------------------------------------------------------------


def test_log_likelihood_of_a_modelled_sigma_by_hand():
    module, data = model("sigma"), frame()
    trace = traced(module)
    value = {n: s["value"].detach().numpy() for n, s in trace.nodes.items() if s["type"] == "sample"}
    code = data["g"].str[1:].astype(int).to_numpy()
    x, z, y = (data[name].to_numpy() for name in "xzy")
    mean = value["Intercept"] + value["x"] * x + z + value["1|g"][code]
    log_sigma = value["sigma_Intercept"] + value["sigma_x"] * x + value["sigma_1|g"][code]
    by_hand = stats.norm.logpdf(y, mean, np.exp(log_sigma)).sum()
    assert float(trace.nodes["y"]["log_prob_sum"]) == pytest.approx(by_hand, rel=1e-9)


# --- weights -----------------------------------------------------------------------------------------------


def test_a_row_of_weight_two_is_the_row_twice_and_of_weight_zero_none():
    module = model("gaussian")
    values = values_of(traced(module))
    rows = torch.tensor([0, 0, 1, 3, 3, 3, 4])
    weights = torch.tensor([2.0, 1.0, 0.0, 3.0, 1.0]).double()
    part = module.data.select(torch.arange(5))
    weighted = replace(part, weights=weights, rows=None, n_rows=5)
    repeated = replace(module.data.select(rows), rows=None, n_rows=7)
    one, other = traced(module, weighted, values), traced(module, repeated, values)
    assert float(one.log_prob_sum()) == pytest.approx(float(other.log_prob_sum()), rel=1e-13)


# --- minibatches -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("formulas", "family", "options"),
    [
        ("y ~ x + (1 + z | g)", "gaussian", {}),
        ("y ~ x + (1 | g)", "gaussian", {"weights": "w"}),
        ("c ~ x + (1 | g)", "categorical", {}),
    ],
)
def test_mean_over_all_minibatches_is_the_full_log_density(formulas, family, options):
    module = module_of(design(formulas, frame(3, 3), family, **options))
    full = traced(module)
    values = values_of(full)
    sums = []
    for rows in itertools.combinations(range(9), 4):
        trace = traced(module, module.data.select(torch.tensor(rows)), values)
        sums.append(float(trace.log_prob_sum()))
    assert np.mean(sums) == pytest.approx(float(full.log_prob_sum()), rel=1e-11)
    assert np.std(sums) > 0


def present_batch(module, rows, scales):
    """A batch that draws only its own groups' effects, each scaled by the inverse of its chance."""
    batch = module.data.select(torch.tensor(rows))
    present, codes = torch.unique(batch.codes["g"], return_inverse=True)
    return replace(
        batch,
        codes={**batch.codes, "g": codes},
        present={"g": present},
        group_scale={"g": scales[present]},
    )


def inverse_chances(codes, size):
    """1 / P(group has a row in a random batch), by enumeration."""
    batches = list(itertools.combinations(range(len(codes)), size))
    groups = int(codes.max()) + 1
    counts = np.zeros(groups)
    for rows in batches:
        counts[np.unique(codes[list(rows)])] += 1
    return batches, torch.as_tensor(len(batches) / counts)


@pytest.mark.parametrize("formula", ["y ~ x + (1 + z | g)", "y ~ x + (1 | g)"])
def test_mean_over_batches_of_present_groups_is_the_full_log_density(formula):
    data = frame(3, 3).drop(index=[1, 2])  # groups of different sizes
    module = module_of(design(formula, data))
    full = traced(module)
    values = values_of(full)
    batches, scales = inverse_chances(module.data.codes["g"].numpy(), 3)
    prior = [name for name in values if name.endswith("_offset")]
    sums = []
    for rows in batches:
        batch = present_batch(module, rows, scales)
        own = {n: v[batch.present["g"]] if n in prior else v for n, v in values.items()}
        trace = traced(module, batch, own)
        sums.append([float(trace.log_prob_sum()), *(float(trace.nodes[n]["log_prob_sum"]) for n in prior)])
    expected = [float(full.log_prob_sum()), *(float(full.nodes[n]["log_prob_sum"]) for n in prior)]
    np.testing.assert_allclose(np.mean(sums, axis=0), expected, rtol=1e-11)


# --- stock Pyro --------------------------------------------------------------------------------------------


@pytest.mark.global_params
@pytest.mark.parametrize("name", ["gaussian", "features", "categorical", "ordinal"])
def test_stock_svi_runs(name):
    module = model(name)
    guide = AutoNormal(module)
    svi = SVI(module, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    losses = [svi.step() for _ in range(30)]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    if module.network is not None:
        assert any("network" in key for key in pyro.get_param_store())


@pytest.mark.parametrize("name", ["gaussian", "categorical", "sigma"])
def test_stock_predictive_runs_and_agrees(name):
    module = model(name)
    found = values_of(traced(module))
    draws = {key: torch.stack([value, value]) for key, value in found.items()}
    batch = module.data.without_response()
    with local_parameters():
        loop = Predictive(module, draws)(batch)
        groups = {f"{effect}_offset" for effect in module.effect_names()}
        lifted = {k: v if k in groups else v.unsqueeze(1) for k, v in draws.items()}
        together = Predictive(module, lifted, parallel=True)(batch)
        prior = Predictive(module, num_samples=3)(batch)
    response = module.spec.response
    assert loop[response].shape == together[response].shape == (2, 20)
    assert prior[response].shape == (3, 20)
    for effect in module.effect_names():
        torch.testing.assert_close(loop[effect], together[effect])


def test_stock_nuts_runs():
    module = model("gaussian")
    with local_parameters():
        chain = MCMC(NUTS(module, max_tree_depth=4), num_samples=3, warmup_steps=3, disable_progbar=True)
        chain.run()
    samples = chain.get_samples()
    assert samples["1|g_offset"].shape == (3, 5)
    assert torch.isfinite(samples["sigma"]).all()


def trained_by_stock_svi(module, steps=3):
    svi = SVI(module, AutoNormal(module), pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(steps):
        svi.step()


@pytest.mark.global_params
def test_two_models_share_no_parameters():
    first, second = model("features"), model("features")
    untouched = copy.deepcopy(second.network.state_dict())
    for module in (first, second):
        module.train()
    trained_by_stock_svi(first)
    after_first = copy.deepcopy(first.network.state_dict())
    assert any(not torch.equal(after_first[k], untouched[k]) for k in untouched)
    assert all(torch.equal(second.network.state_dict()[k], untouched[k]) for k in untouched)
    trained_by_stock_svi(second)
    assert all(torch.equal(first.network.state_dict()[k], after_first[k]) for k in after_first)
    assert any(not torch.equal(second.network.state_dict()[k], untouched[k]) for k in untouched)


@pytest.mark.global_params
def test_a_deep_copy_is_a_model_of_its_own():
    first = model("features").train()
    second = copy.deepcopy(first)
    values = values_of(traced(first))
    one, other = (traced(module, values=values).log_prob_sum().detach() for module in (first, second))
    assert torch.equal(one, other)
    before = copy.deepcopy(second.network.state_dict())
    trained_by_stock_svi(first)
    trained = copy.deepcopy(first.network.state_dict())
    assert all(torch.equal(second.network.state_dict()[k], before[k]) for k in before)
    trained_by_stock_svi(second)
    assert all(torch.equal(first.network.state_dict()[k], trained[k]) for k in trained)
    assert any(not torch.equal(second.network.state_dict()[k], before[k]) for k in before)


def test_types_and_devices_move_with_the_module():
    module = model("gaussian")
    values = values_of(traced(module))
    full = float(traced(module, values=values).log_prob_sum())
    single = copy.deepcopy(module).float()
    assert single.data.response.dtype == torch.float32
    assert single.data.codes["g"].dtype == torch.int64
    assert single.priors["x"].unit.dtype == torch.float32
    trace = traced(single, values={name: value.float() for name, value in values.items()})
    assert float(trace.log_prob_sum()) == pytest.approx(full, rel=1e-4)
    assert module.data.response.dtype == torch.float64
    assert module.priors["x"].unit.dtype == torch.float64


def test_empty_batch_draws_latents_only():
    module = model("gaussian")
    with local_parameters():
        values = module.sample_latents(Batch(size=0, n_rows=20))
    assert values["1|g"].shape == (5,)
