"""The mean-field guide: which sites, which densities, and which rows of its tables a batch touches."""

import copy
from dataclasses import replace

import numpy as np
import pyro
import pytest
import torch
from hand_made import design, frame, module_of
from pyro import poutine
from scipy import stats
from torch.distributions import biject_to

from pyro_armed.guides import MeanFieldGuide, latent_sites
from pyro_armed.local import local_parameters
from pyro_armed.objective import negative_elbo
from pyro_armed.seeds import seeded

FORMULA = "y ~ x + c + (1 + z | g) + (1 | h)"


def made(formulas=FORMULA, family="gaussian", scale=0.3, seed=0, **options):
    module = module_of(design(formulas, frame(), family, **options))
    return module, MeanFieldGuide(module, module.data, torch.Generator().manual_seed(seed), init_scale=scale)


def traced(guide, *args):
    with local_parameters():
        trace = poutine.trace(guide).get_trace(*args)
    trace.compute_log_prob()
    return trace


def test_sites_are_the_models_latent_ones_in_its_order(unmoved_rng):
    module, _ = made()
    with unmoved_rng():
        sites = {site.name: site for site in latent_sites(module, module.data)}
    assert list(sites) == [
        *("x_raw", "c_raw", "Intercept_raw", "sigma"),
        *("1|g_sigma", "z|g_sigma", "g_corr_cholesky", "1|h_sigma"),
        *("1|g_offset", "z|g_offset", "1|h_offset"),
    ]
    assert [site.group for site in sites.values()] == [None] * 8 + ["g", "g", "h"]
    assert sites["g_corr_cholesky"].shape == (2, 2)
    assert sites["g_corr_cholesky"].unconstrained == (1,)
    assert sites["1|h_offset"].shape == (3,)
    assert [sites[name].event_dim for name in ("sigma", "c_raw", "g_corr_cholesky", "1|g_offset")] == [
        0,
        1,
        2,
        0,
    ]
    assert torch.equal(sites["1|g_offset"].start, torch.zeros(5).double())
    for site in sites.values():
        value = biject_to(site.support)(site.start)
        assert site.support.check(value).all()
        assert value.shape == site.shape


@pytest.mark.parametrize(
    ("formulas", "family"),
    [
        (FORMULA, "gaussian"),
        ("c ~ x + (1 + x | g)", "categorical"),
        ("o ~ x + (0 + c | g)", "ordinal"),
        (["y ~ x", "sigma ~ x + (1 | g)"], "student_t"),
    ],
)
def test_draws_fit_the_model(formulas, family):
    module, guide = made(formulas, family)
    with local_parameters():
        draws = guide()
        replayed = poutine.trace(poutine.replay(module, trace=traced(guide))).get_trace()
    assert set(draws) == {site.name for site in guide.sites}
    for site in guide.sites:
        assert draws[site.name].shape == site.shape
        assert site.support.check(draws[site.name]).all()
    replayed.compute_log_prob()
    assert torch.isfinite(replayed.log_prob_sum())


def test_density_is_that_of_transformed_normals():
    _, guide = made()
    trace = traced(guide)
    for site, location, log_scale in zip(guide.sites, guide.locations, guide.log_scales, strict=True):
        location, scale = location.detach().numpy(), log_scale.detach().exp().numpy()
        value = trace.nodes[site.name]["value"].detach()
        if site.name.endswith("sigma"):
            expected = stats.lognorm.logpdf(value.numpy(), s=scale, scale=np.exp(location)).sum()
        elif site.name == "g_corr_cholesky":
            free = np.arctanh(value[1, 0].numpy())  # a correlation is tanh of a normal
            expected = stats.norm.logpdf(free, location[0], scale[0]) - np.log1p(-(float(value[1, 0]) ** 2))
        else:
            expected = stats.norm.logpdf(value.numpy(), location, scale).sum()
        assert float(trace.nodes[site.name]["log_prob_sum"].detach()) == pytest.approx(
            float(expected), rel=1e-9
        )


def test_the_generator_decides_the_start(unmoved_rng):
    with unmoved_rng():
        (_, one), (_, same), (_, other) = made(seed=1), made(seed=1), made(seed=2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.locations, other.locations, strict=True))


def test_under_a_plate_of_draws():
    _, guide = made()
    with pyro.plate("draws", 4, dim=-2):
        trace = traced(guide)
    assert trace.nodes["1|g_offset"]["value"].shape == (4, 5)
    assert trace.nodes["sigma"]["value"].shape == (4, 1)
    assert trace.nodes["g_corr_cholesky"]["value"].shape == (4, 1, 2, 2)


def present_batch(module, rows):
    batch = module.data.select(torch.tensor(rows))
    present, codes = torch.unique(batch.codes["g"], return_inverse=True)
    scales = torch.tensor([1.5, 2.0, 3.0, 1.0, 1.2]).double()
    return replace(
        batch, codes={**batch.codes, "g": codes}, present={"g": present}, group_scale={"g": scales[present]}
    )


def test_a_batch_touches_only_its_own_groups():
    module, guide = made()
    batch = present_batch(module, [0, 1, 13])  # groups g0 and g3
    with local_parameters():
        negative_elbo(module, guide, batch)[0].backward()
    for site, location, log_scale in zip(guide.sites, guide.locations, guide.log_scales, strict=True):
        for gradient in (location.grad, log_scale.grad):
            if site.group == "g":
                assert torch.equal(gradient[[1, 2, 4]], torch.zeros_like(gradient[[1, 2, 4]]))
                assert (gradient[[0, 3]] != 0).all()
            else:
                assert (gradient != 0).any()


def test_present_groups_are_drawn_and_scaled():
    """Each group's divergence is multiplied by its factor, in the guide as in the model."""
    module, guide = made()
    batch = present_batch(module, [0, 1, 13])
    with local_parameters(), seeded(0):
        guide_trace = poutine.trace(guide).get_trace(batch)
        model_trace = poutine.trace(poutine.replay(module, trace=guide_trace)).get_trace(batch)
    position = [site.name for site in guide.sites].index("z|g_offset")
    location = guide.locations[position].detach()[[0, 3]]
    scale = guide.log_scales[position].detach().exp()[[0, 3]]
    factors = np.array([1.5, 1.0])
    value = guide_trace.nodes["z|g_offset"]["value"].detach()
    assert value.shape == (2,)
    for trace, density in [
        (guide_trace, stats.norm.logpdf(value, location, scale)),
        (model_trace, stats.norm.logpdf(value)),
    ]:
        trace.compute_log_prob()
        found = float(trace.nodes["z|g_offset"]["log_prob_sum"].detach())
        assert found == pytest.approx(float(factors @ density), rel=1e-10)


def test_all_groups_present_is_the_whole():
    module, guide = made()
    whole = present_batch(module, list(range(20)))
    whole = replace(whole, group_scale={})
    results = []
    for batch in (module.data, replace(whole, rows=None)):
        with local_parameters(), seeded(1):
            loss = negative_elbo(module, guide, batch)[0].detach()
        results.append(float(loss))
    assert results[0] == pytest.approx(results[1], rel=1e-12)


def test_a_copy_is_a_guide_of_its_own():
    _, guide = made()
    copied = copy.deepcopy(guide)
    with torch.no_grad():
        copied.locations[0].add_(1.0)
    assert not torch.equal(copied.locations[0], guide.locations[0])
