"""The structured guide as a Pyro program: its density, its plates, its place in SVI."""

import math

import pyro
import pytest
import torch
from hand_made import design, frame, module_of
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO

from pyro_armed.conditional import GroupConditional
from pyro_armed.errors import ArgumentError
from pyro_armed.global_draws import marginal
from pyro_armed.local import local_parameters
from pyro_armed.structured import StructuredGuide

F64 = torch.float64


@pytest.fixture(autouse=True)
def own_parameters(request):
    """As the library runs the guide; stock Pyro's SVI fills the global store."""
    if request.node.get_closest_marker("global_params"):
        yield
    else:
        with local_parameters():
            yield


MODELS = {
    "slopes": ("y ~ x + (1 + z | g)", "gaussian"),
    "crossed": ("y ~ x + (1 | g) + (1 + z | h)", "gaussian"),
    "bernoulli": ("b ~ x + (1 + z | g)", "bernoulli"),
    "crossed counts": ("count ~ x + (1 | g) + (1 | h)", "poisson"),
    "categorical": ("c ~ x + (1 + z | g)", "categorical"),
    "ordinal": ("o ~ x + (1 | g)", "ordinal"),
    "two blocks": ("y ~ x + (1 + z || g)", "gaussian"),
    "scale": (["y ~ x + (1 | g)", "sigma ~ z + (1 | g)"], "gaussian"),
    "no groups": ("y ~ x", "gaussian"),
}


def guide_of(key):
    formula, family = MODELS[key]
    module = module_of(design(formula, frame(6, 6), family))
    guide = StructuredGuide(module, module.data)
    generator = torch.Generator().manual_seed(1)
    size = guide.space.size
    factor = 0.1 * torch.randn(size, size, generator=generator, dtype=F64).tril(-1) + 0.2 * torch.eye(
        size, dtype=F64
    )
    shift = 0.2 * torch.randn(size, generator=generator, dtype=F64)
    guide.set_gaussian(guide.space.start + shift, factor)
    return module, guide


def log_ratio(module, trace):
    """log p(y, draws) - log q(draws), as Trace_ELBO takes it."""
    replayed = poutine.trace(poutine.replay(module, trace=trace)).get_trace()
    return replayed.log_prob_sum() - trace.log_prob_sum()


def gaussian_log_density(guide, theta):
    mean, factor = guide.mean_and_factor()
    return torch.distributions.MultivariateNormal(mean, factor @ factor.mT).log_prob(theta)


@pytest.mark.parametrize("key", ["slopes", "crossed", "two blocks", "no groups"])
def test_each_draw_of_a_gaussian_model_gives_the_marginal_likelihood(key):
    """The effects' part of q is exact: log p - log q is that of the globals alone, whatever the draw."""
    module, guide = guide_of(key)
    for seed in range(3):
        pyro.set_rng_seed(seed)
        trace = poutine.trace(guide).get_trace()
        theta = trace.nodes["_globals"]["value"]
        expected = marginal(guide, theta.unsqueeze(0))[0] - gaussian_log_density(guide, theta)
        torch.testing.assert_close(log_ratio(module, trace), expected, rtol=1e-8, atol=1e-7)


@pytest.mark.parametrize("key", [key for key in MODELS if key != "no groups"])
def test_each_draw_has_the_density_of_globals_and_effects(key):
    module, guide = guide_of(key)
    pyro.set_rng_seed(0)
    trace = poutine.trace(guide).get_trace()
    theta = trace.nodes["_globals"]["value"]
    problem, effects, log_prior = guide.solve(theta.unsqueeze(0))
    noise = [trace.nodes[f"_noise|{name}"]["value"].unsqueeze(0) for name in guide.conditional.groups]
    z = guide.conditional.draw(effects, noise)
    expected = log_prior - gaussian_log_density(guide, theta) - guide.conditional.log_density(effects, z)
    by_rows = GroupConditional(module, module.data)
    expected = expected + by_rows.joint(by_rows.problem(problem.values), z)
    torch.testing.assert_close(log_ratio(module, trace), expected[0], rtol=1e-8, atol=1e-7)
    # The effects that the model makes of the guide's draws are those of the conditional.
    replayed = poutine.trace(poutine.replay(module, trace=trace)).get_trace()
    for name, value in guide.conditional.effects(problem.values, z).items():
        torch.testing.assert_close(replayed.nodes[name]["value"], value[0])


def test_elbo_is_that_of_brute_force():
    """A Gaussian set by hand: Pyro's ELBO against plain means over draws, within Monte Carlo error."""
    module, guide = guide_of("bernoulli")
    mean, factor = guide.mean_and_factor()
    generator = torch.Generator().manual_seed(0)
    theta = mean + torch.randn(4000, len(mean), generator=generator, dtype=F64) @ factor.mT
    with torch.no_grad():
        problem, effects, log_prior = guide.solve(theta)
        noise = [torch.randn(m.shape, generator=generator, dtype=F64) for m in effects.mean]
        z = guide.conditional.draw(effects, noise)
        ratio = log_prior + guide.conditional.joint(problem, z)
        ratio = ratio - gaussian_log_density(guide, theta) - guide.conditional.log_density(effects, z)
        elbo = Trace_ELBO(num_particles=4000, vectorize_particles=True, max_plate_nesting=1)
        theirs = -elbo.loss(module, guide)
    error = float(ratio.std()) * math.sqrt(2 / 4000)
    assert theirs == pytest.approx(float(ratio.mean()), abs=4 * error)
    assert error < 0.1


@pytest.mark.parametrize("key", MODELS)
def test_a_plate_of_particles_is_a_loop(key):
    _, guide = guide_of(key)
    generator = torch.Generator().manual_seed(2)
    mean, factor = guide.mean_and_factor()
    theta = mean + torch.randn(4, len(mean), generator=generator, dtype=F64) @ factor.mT
    conditional = guide.conditional
    noise = {
        f"_noise|{name}": torch.randn(
            4, conditional.counts[name], conditional.widths[name], generator=generator, dtype=F64
        )
        for name in conditional.groups
    }
    together = {"_globals": theta[:, None], **{name: value[:, None] for name, value in noise.items()}}
    with pyro.plate("particles", 4, dim=-2):
        batched = poutine.trace(poutine.condition(guide, data=together)).get_trace()
    batched.compute_log_prob()
    for k in range(4):
        data = {"_globals": theta[k], **{name: value[k] for name, value in noise.items()}}
        alone = poutine.trace(poutine.condition(guide, data=data)).get_trace()
        alone.compute_log_prob()
        for name, node in alone.nodes.items():
            if node["type"] != "sample" or name.endswith("__factor_dim"):
                continue
            value = batched.nodes[name]["value"][k]
            torch.testing.assert_close(value.reshape(node["value"].shape), node["value"])
            inside = batched.nodes[name]["log_prob"]
            assert inside.shape[0] == 4
            torch.testing.assert_close(inside[k].sum(), node["log_prob"].sum())


@pytest.mark.parametrize("key", MODELS)
def test_guide_and_model_have_the_same_sites(key):
    module, guide = guide_of(key)
    ours = {n for n, node in poutine.trace(guide).get_trace().nodes.items() if node["type"] == "sample"}
    model = poutine.trace(module).get_trace()
    latent = {n for n, node in model.nodes.items() if node["type"] == "sample" and not node["is_observed"]}
    plates = {n for n in ours | latent if n.endswith("__factor_dim") or n == "__obs__"}
    assert {n for n in ours if not n.startswith("_")} - plates == latent - plates
    for name in latent - plates:
        assert poutine.trace(guide).get_trace().nodes[name]["value"].shape == model.nodes[name]["value"].shape


def test_a_minibatch_is_refused():
    module, guide = guide_of("slopes")
    with pytest.raises(ArgumentError, match="guide='mean_field'"):
        guide(module.data.select(torch.arange(5)))


@pytest.mark.global_params
@pytest.mark.parametrize("key", ["slopes", "bernoulli", "crossed counts"])
def test_stock_svi_raises_the_elbo(key):
    formula, family = MODELS[key]
    module = module_of(design(formula, frame(6, 6), family))
    guide = StructuredGuide(module, module.data)
    elbo = Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(module, guide, pyro.optim.Adam({"lr": 0.05}), elbo)
    losses = [svi.step() for _ in range(40)]
    assert all(math.isfinite(loss) for loss in losses)
    assert sum(losses[-5:]) < sum(losses[:5])
    assert guide.location.abs().max() > 0


@pytest.mark.parametrize("key", ["slopes", "bernoulli"])
def test_gradients_reach_all_parameters(key):
    module, guide = guide_of(key)
    loss = -log_ratio(module, poutine.trace(guide).get_trace())
    loss.backward()
    assert torch.isfinite(guide.location.grad).all()
    assert (guide.location.grad != 0).all()
    lower = guide.factor_raw.grad.tril()
    assert torch.isfinite(lower).all()
    assert (lower.diagonal() != 0).all()
    assert (guide.factor_raw.grad.triu(1) == 0).all()


def test_setting_the_gaussian():
    _, guide = guide_of("slopes")
    size = guide.space.size
    factor = torch.eye(size, dtype=F64) * 0.3
    factor[2, 0] = 0.1
    wanted = torch.linspace(-1, 1, size, dtype=F64)
    with torch.no_grad():
        guide.location.add_(1.0)
        guide.factor_raw.add_(1.0)
    guide.set_gaussian(wanted, factor)
    mean, root = guide.mean_and_factor()
    torch.testing.assert_close(mean, wanted)
    torch.testing.assert_close(root, factor)


def test_remembered_mode_changes_nothing_but_the_start():
    _, guide = guide_of("bernoulli")
    theta = guide.mean_and_factor()[0].unsqueeze(0) + 0.3
    first = guide.solve(theta)[1]
    guide.mode = None
    again = guide.solve(theta)[1]
    torch.testing.assert_close(first.mean[0], again.mean[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(first.log_det, again.log_det, rtol=0, atol=1e-6)


def test_no_global_parameters():
    _, guide = guide_of("slopes")
    guide()
    assert len(pyro.get_param_store()) == 0
