"""Draws from guides and their weights, against densities by hand and loops over draws."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from hand_made import design, frame, module_of
from pyro import poutine
from scipy import stats
from torch import nn
from torch.distributions import biject_to

from pyro_armed.draws import DRAWS, draw_chain, log_density, without_row_axis
from pyro_armed.guides import MeanFieldGuide
from pyro_armed.local import local_parameters


def model_and_guide(formula, family="gaussian", of=(), **options):
    """A model, of (network, output layer, number of features) where given, and a guide for it."""
    module = module_of(design(formula, frame(), family, **options), *of)
    with local_parameters():
        guide = MeanFieldGuide(module, module.data, torch.Generator().manual_seed(3), init_scale=0.3)
    return module, guide


def offsets(chain, s):
    """Standard normal z of each group from its effects: u = D(tau) L z."""
    values = chain.values
    u = torch.stack([values["1|g"][s], values["z|g"][s]], dim=-1)
    tau = torch.stack([values["1|g_sigma"][s], values["z|g_sigma"][s]])
    return torch.linalg.solve_triangular(values["g_corr"][s], (u / tau).T, upper=False).T.numpy()


def sites_by_hand(module, chain, s):
    """Every latent site of a draw from what the chain stores."""
    values, sites = chain.values, {}
    for name in ("x", "Intercept"):
        prior = module.priors[name]
        sites[f"{name}_raw"] = (values[name][s] - prior.shift) / prior.unit
    sites |= {name: values[name][s] for name in ("sigma", "1|g_sigma", "z|g_sigma")}
    sites["g_corr_cholesky"] = values["g_corr"][s]
    z = torch.as_tensor(offsets(chain, s))
    return sites | {"1|g_offset": z[:, 0], "z|g_offset": z[:, 1]}


def weighted_sd(values, weights):
    """A row of weight 2 is the row twice, in the priors' scales too."""
    return np.sqrt(np.average((values - np.average(values, weights=weights)) ** 2, weights=weights))


def test_log_weight_is_model_minus_guide_by_hand():
    module, guide = model_and_guide("y ~ x + (1 + z | g)", weights="w")
    chain = draw_chain(module, guide, module.data, 6, seed=1)
    data = frame()
    y, x, z, w = (data[name].to_numpy() for name in ("y", "x", "z", "w"))
    code = data["g"].str[1:].astype(int).to_numpy()
    for s in range(6):
        value = {name: tensor[s].numpy() for name, tensor in chain.values.items()}
        sites = sites_by_hand(module, chain, s)
        # x is centred, its coefficient is not rescaled; the intercept is at the mean of x.
        eta = (
            value["Intercept"]
            + value["x"] * (x - np.average(x, weights=w))
            + value["1|g"][code]
            + value["z|g"][code] * z
        )
        log_p = w @ stats.norm.logpdf(y, eta, value["sigma"])
        sd = weighted_sd(y, w)
        log_p += stats.norm.logpdf(value["Intercept"], np.average(y, weights=w), 2.5 * sd) + np.log(sd)
        log_p += stats.norm.logpdf(value["x"], 0, 2.5 * sd / weighted_sd(x, w)) + np.log(
            sd / weighted_sd(x, w)
        )
        log_p += np.log(2) + stats.t.logpdf(value["sigma"], 4, scale=sd)
        log_p += np.log(2) + stats.t.logpdf(value["1|g_sigma"], 3, scale=2.5 * sd)
        log_p += np.log(2) + stats.t.logpdf(value["z|g_sigma"], 3, scale=2.5 * sd / weighted_sd(z, w))
        log_p += float(dist.LKJCholesky(2, torch.tensor(1.0).double()).log_prob(sites["g_corr_cholesky"]))
        log_p += stats.norm.logpdf(offsets(chain, s)).sum()
        log_q = 0.0
        for site, location, log_scale in zip(guide.sites, guide.locations, guide.log_scales, strict=True):
            bijection = biject_to(site.support)
            free = bijection.inv(sites[site.name])
            log_q += stats.norm.logpdf(
                free.numpy(), location.detach().numpy(), log_scale.detach().exp().numpy()
            ).sum()
            log_q -= float(bijection.log_abs_det_jacobian(free, sites[site.name]).sum())
        assert float(chain.stats["log_weight"][s]) == pytest.approx(log_p - log_q, abs=1e-8)


MODELS = [
    ("y ~ x + (1 + z | g)", "gaussian", {"weights": "w"}),
    ("count ~ x + c + (1 | g) + (1 | h)", "poisson", {}),
    ("c ~ x + (1 + z | g)", "categorical", {}),
    ("o ~ x + (1 | g)", "ordinal", {}),
    ("p(s, t) ~ x + (0 + c | g)", "binomial", {}),
    (("y ~ x + (1 | g)", "sigma ~ x + (1 | g)"), "student_t", {}),
]


@pytest.mark.parametrize(("formula", "family", "options"), MODELS, ids=[family for _, family, _ in MODELS])
def test_density_of_many_draws_is_that_of_each(formula, family, options):
    module, guide = model_and_guide(formula, family, **options)
    batch, size = module.data, 4
    with torch.no_grad(), local_parameters():
        with pyro.plate(DRAWS, size, dim=-2):
            guide_trace = poutine.trace(guide).get_trace(batch, None)
            model_trace = poutine.trace(poutine.replay(module, trace=guide_trace)).get_trace(batch, None)
        together = log_density(model_trace, size), log_density(guide_trace, size)
        groups = {site.name for site in guide.sites if site.group is not None}
        for s in range(size):
            one = {}
            for site in guide.sites:
                value = guide_trace.nodes[site.name]["value"]
                one[site.name] = value[s] if site.name in groups else value[s, 0]
            for program, found in zip((module, guide), together, strict=True):
                trace = poutine.trace(poutine.condition(program, data=one)).get_trace(batch, None)
                assert float(found[s]) == pytest.approx(float(trace.log_prob_sum()), abs=1e-8)


@pytest.mark.parametrize(("formula", "family", "options"), MODELS, ids=[family for _, family, _ in MODELS])
def test_shapes_of_stored_draws(formula, family, options):
    module, guide = model_and_guide(formula, family, **options)
    chain = draw_chain(module, guide, module.data, 3, seed=1)
    groups = module.effect_names()
    assert {name: len(value) for name, value in chain.values.items()} == dict.fromkeys(chain.values, 3)
    for name, value in chain.values.items():
        if name in groups:
            assert value.shape[1] == {"g": 5, "h": 3}[name.rsplit("|")[-1]]
            assert value.shape[2:] == module.priors[f"{name}_sigma"].raw.event_shape
        else:
            assert value.shape[1:] == module.priors[name].raw.event_shape
    assert chain.stats["log_weight"].shape == (3,)
    assert torch.isfinite(chain.stats["log_weight"]).all()
    assert not any(value.requires_grad for value in chain.values.values())


def test_draws_follow_the_guide():
    module, guide = model_and_guide("y ~ x + (1 | g)")
    chain = draw_chain(module, guide, module.data, 20_000, seed=0, weights=False)
    assert chain.stats == {}
    by_name = dict(zip((s.name for s in guide.sites), guide.locations, strict=True))
    prior = module.priors["x"]
    center = float(prior.shift + prior.unit * by_name["x_raw"].detach())
    spread = float(prior.unit) * 0.3
    assert float(chain.values["x"].mean()) == pytest.approx(center, abs=4 * spread / 141)
    assert float(chain.values["x"].std()) == pytest.approx(spread, rel=0.03)
    scaled = chain.values["1|g"] / chain.values["1|g_sigma"][:, None]
    expected = by_name["1|g_offset"].detach()
    torch.testing.assert_close(scaled.mean(0), expected, atol=4 * 0.3 / 141, rtol=0)
    torch.testing.assert_close(scaled.std(0), torch.full((5,), 0.3).double(), rtol=0.03, atol=0)
    # Draws of different sites and groups are independent in a mean-field guide.
    columns = torch.stack([chain.values["x"], chain.values["Intercept"], scaled[:, 0], scaled[:, 1]])
    off = np.abs(np.corrcoef(columns.numpy())[np.triu_indices(4, 1)])
    assert off.max() < 4 / 141


def test_same_seed_same_draws_and_no_global_state(unmoved_rng):
    module, guide = model_and_guide("y ~ x + (1 | g)")
    with unmoved_rng():
        first = draw_chain(module, guide, module.data, 5, seed=2)
    torch.manual_seed(12345)
    again = draw_chain(module, guide, module.data, 5, seed=2)
    other = draw_chain(module, guide, module.data, 5, seed=3)
    for name, value in first.values.items():
        assert torch.equal(value, again.values[name])
        assert not torch.equal(value, other.values[name])
    assert torch.equal(first.stats["log_weight"], again.stats["log_weight"])
    assert len(pyro.get_param_store()) == 0


def test_draws_taken_some_at_a_time_are_as_many_and_weigh_the_same(monkeypatch):
    module, guide = model_and_guide("y ~ x + (1 | g)")
    monkeypatch.setattr("pyro_armed.draws._ELEMENTS", 3 * 20)
    chain = draw_chain(module, guide, module.data, 7, seed=2)
    assert chain.n_draws == 7
    assert len(torch.unique(chain.values["x"])) == 7
    one = draw_chain(module, guide, module.data, 3, seed=2)
    assert torch.equal(chain.values["x"][:3], one.values["x"])
    torch.testing.assert_close(chain.stats["log_weight"][:3], one.stats["log_weight"])


def test_network_is_evaluated_not_trained():
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.9), nn.Linear(3, 1)).double()
    module, guide = model_and_guide("y ~ x + z + (1 | g)", of=(network, "3", 3), network=True)
    module.train()
    before = network[1].running_mean.clone()
    first = draw_chain(module, guide, module.data, 3, seed=2)
    second = draw_chain(module, guide, module.data, 3, seed=2)
    assert torch.equal(first.stats["log_weight"], second.stats["log_weight"])
    assert torch.equal(network[1].running_mean, before)


def test_without_row_axis_undoes_the_plate():
    module, _ = model_and_guide("y ~ x + (1 + z | g)")
    with torch.no_grad(), local_parameters(), pyro.plate(DRAWS, 4, dim=-2):
        values = module.sample_latents(module.data)
    shapes = {name: tuple(value.shape) for name, value in without_row_axis(module, values).items()}
    assert shapes == {
        "x": (4,),
        "Intercept": (4,),
        "sigma": (4,),
        "1|g_sigma": (4,),
        "z|g_sigma": (4,),
        "g_corr": (4, 2, 2),
        "1|g": (4, 5),
        "z|g": (4, 5),
    }
