"""Traced SVI steps of the structured guide: the numbers of eager ones."""

import pytest
import torch
from hand_made import design, frame, module_of

import pyro_armed as pa
from pyro_armed import structured_fit, structured_steps
from pyro_armed.errors import CompilationWarning
from pyro_armed.global_draws import marginal
from pyro_armed.simulate import spirals
from pyro_armed.structured import StructuredGuide
from pyro_armed.structured_fit import fit_structured, svi_step
from pyro_armed.structured_steps import marginal_graph

F64 = torch.float64
MODELS = [
    ("y ~ x + (1 | g)", "gaussian"),
    ("b ~ x + (1 | g)", "bernoulli"),
    ("count ~ x + (1 + x | g)", "poisson"),
    pytest.param("y ~ x + (1 | g)", "student_t", marks=pytest.mark.slow),
    pytest.param("b ~ x + (1 | g) + (1 | h)", "bernoulli", marks=pytest.mark.slow),
]


def guide_of(formula, family):
    module = module_of(design(formula, frame(8, 6), family))
    guide = StructuredGuide(module, module.data)
    fit_structured(guide, seed=0, max_steps=1, progressbar=False)
    return guide


def thetas(guide, seed, count=4, spread=0.5):
    noise = torch.randn(count, guide.space.size, generator=torch.Generator().manual_seed(seed), dtype=F64)
    mean, factor = guide.mean_and_factor()
    return (mean + spread * noise @ factor.mT).detach()


def eager(guide, theta):
    leaf = theta.clone().requires_grad_()
    value = marginal(guide, leaf)
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


def same(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("formula", "family"), MODELS)
def test_graph_is_the_eager_marginal_and_its_gradient(formula, family):
    guide = guide_of(formula, family)
    graph = marginal_graph(guide, thetas(guide, 0), "trace")
    theta = thetas(guide, 1)
    same(graph(theta), eager(guide, theta))


@pytest.mark.slow
@pytest.mark.parametrize(("formula", "family"), MODELS[2:3])
def test_inductor_finds_the_eager_marginal_and_its_gradient(formula, family):
    guide = guide_of(formula, family)
    graph = marginal_graph(guide, thetas(guide, 0), "inductor")
    theta = thetas(guide, 1)
    same(graph(theta), eager(guide, theta))
    assert graph(thetas(guide, 1, spread=30.0)) is None


@pytest.mark.filterwarnings("ignore::pyro_armed.errors.ConvergenceWarning")
def test_groups_with_many_rows_and_hidden_features_too():
    """Their effects are known to a tenth of their sds: standardised, they move with these."""
    data = spirals(4, 500, seed=0).frame
    model = pa.ARMED(
        "y ~ x1 + x2 + (1 + features | group)", data, family="bernoulli", network=pa.networks.MLP((4, 4))
    )
    model.fit(guide="mean_field", restarts=1, epochs=20, draws=10, log_likelihood=False, progressbar=False)
    module = model.module.eval()
    with torch.no_grad():
        guide = StructuredGuide(module, module.data, module.hidden(module.data))
    fit_structured(guide, seed=0, max_steps=1, progressbar=False)
    theta = structured_fit._thetas(guide, torch.randn(1, guide.space.size, dtype=F64)).detach()
    graph = marginal_graph(guide, theta, "trace")
    for seed in range(20):
        noise = torch.randn(1, len(theta[0]), generator=torch.Generator().manual_seed(seed), dtype=F64)
        theta = structured_fit._thetas(guide, noise).detach()
        found = graph(theta)
        assert found is not None
        same(found, eager(guide, theta))


def test_far_away_an_eager_step_is_taken(monkeypatch):
    guide = guide_of(*MODELS[2])
    graph = marginal_graph(guide, thetas(guide, 0), "trace")
    assert graph(thetas(guide, 1, spread=30.0)) is None
    with monkeypatch.context() as patched:
        assert graph(thetas(guide, 1)) is not None
        patched.setattr(structured_steps, "_ARRIVED", 1e-12)
        assert graph(thetas(guide, 1)) is None
    noise = 6.0 * torch.randn(4, guide.space.size, generator=torch.Generator().manual_seed(2), dtype=F64)
    assert graph(structured_fit._thetas(guide, noise).detach()) is None
    optimizer = torch.optim.Adam(guide.parameters(), lr=0.0)
    plain = structured_fit._ascend(guide, optimizer, noise)
    torch.testing.assert_close(structured_fit._ascend(guide, optimizer, noise, graph), plain)


def test_step_has_the_gradient_of_the_eager_step():
    guide = guide_of(*MODELS[1])
    graph = marginal_graph(guide, thetas(guide, 0), "trace")
    optimizer = torch.optim.Adam(guide.parameters(), lr=0.0)
    noise = 0.5 * torch.randn(4, guide.space.size, generator=torch.Generator().manual_seed(2), dtype=F64)
    assert graph(structured_fit._thetas(guide, noise).detach()) is not None
    found = []
    for how in (None, graph):
        elbo = structured_fit._ascend(guide, optimizer, noise, how)
        found.append([elbo, *(p.grad.clone() for p in guide.parameters())])
    same(found[1], found[0])


def test_fit_takes_traced_steps(monkeypatch):
    calls = []
    run = structured_steps.MarginalGraph.__call__
    monkeypatch.setattr(
        structured_steps.MarginalGraph, "__call__", lambda self, theta: calls.append(1) or run(self, theta)
    )
    elbos = []
    for how in ("auto", "trace"):
        module = module_of(design(*MODELS[1][:1], frame(8, 6), MODELS[1][1]))
        guide = StructuredGuide(module, module.data)
        elbos.append(fit_structured(guide, seed=0, max_steps=20, compile=how, progressbar=False).elbo)
        assert len(calls) == {"auto": 0, "trace": 21}[how]  # one to compare with
    torch.testing.assert_close(elbos[1], elbos[0], rtol=1e-6, atol=1e-6)


def test_steps_one_by_one_draw_the_same_eagerly_and_traced():
    guide = guide_of(*MODELS[1])
    ways = [svi_step(guide, seed=3, compile=how, rate=0.0) for how in ("off", "trace")]
    for _ in range(2):
        torch.testing.assert_close(ways[1](), ways[0](), rtol=1e-6, atol=1e-6)


def test_what_cannot_be_traced_runs_eagerly(monkeypatch):
    guide = guide_of(*MODELS[1])

    def fail(*_, **__):
        raise TypeError("no tracing here.")

    monkeypatch.setattr(structured_steps, "inductor_run", fail)
    with pytest.warns(CompilationWarning, match="Inductor.*no tracing here"):
        assert marginal_graph(guide, thetas(guide, 0), "inductor") is not None
    monkeypatch.setattr(structured_steps, "compiler_found", lambda: False)
    with pytest.warns(CompilationWarning, match=r"C\+\+ compiler"):
        assert marginal_graph(guide, thetas(guide, 0), "inductor") is not None
    monkeypatch.setattr(structured_steps, "traced", fail)
    with pytest.warns(CompilationWarning, match="run eagerly"):
        assert marginal_graph(guide, thetas(guide, 0), "trace") is None
    assert marginal_graph(guide, thetas(guide, 0), "auto") is None


def test_wrong_graph_is_not_used(monkeypatch):
    guide = guide_of(*MODELS[1])
    monkeypatch.setattr(structured_steps, "marginal", lambda guide, theta: 1.1 * marginal(guide, theta))
    with pytest.warns(CompilationWarning, match="something else"):
        assert marginal_graph(guide, thetas(guide, 0), "trace") is None
