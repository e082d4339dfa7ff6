"""Newton's method for the group effects: derivatives, many problems at once, sums within groups."""

import pytest
import torch
from hand_made import design, frame, module_of

from pyro_armed import newton
from pyro_armed.conditional import GroupConditional
from pyro_armed.global_space import GlobalSpace
from pyro_armed.newton import NewtonSolver, square_norm

F64 = torch.float64

MODELS = {
    "bernoulli": ("b ~ x + (1 + z | g)", "bernoulli"),
    "binomial": ("p(s, t) ~ x + (1 | g)", "binomial"),
    "poisson": ("count ~ x + (1 + z | g)", "poisson"),
    "crossed": ("count ~ x + (1 | g) + (1 + z | h)", "poisson"),
    "three": ("b ~ x + (1 + z + x | g)", "bernoulli"),
    "categorical": ("c ~ x + (1 + z | g)", "categorical"),
    "scale": (["y ~ x + (1 + z | g)", "sigma ~ 1 + (1 | g)"], "gaussian"),
    "probit": ("b ~ x + (1 | g)", "bernoulli"),
}


def build(key, count=6, spread=0.4, **options):
    formula, family = MODELS[key]
    data = frame(8, 6)
    data["s"] = data["s"].clip(upper=data["t"])
    if key == "probit":
        options["link"] = "probit"
    module = module_of(design(formula, data, family, **options))
    space = GlobalSpace(module)
    noise = torch.randn(count, space.size, generator=torch.Generator().manual_seed(0), dtype=F64)
    conditional = GroupConditional(module, module.data)
    return conditional, conditional.problem(space.evaluate(space.start + spread * noise)[0])


def some_effects(conditional, problem, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(len(problem.base), conditional.counts[n], conditional.widths[n]) for n in conditional.groups]
    return [torch.randn(shape, generator=generator, dtype=F64) for shape in shapes]


@pytest.mark.parametrize("weights", [None, "w"])
@pytest.mark.parametrize("key", ["bernoulli", "binomial", "poisson", "crossed"])
def test_known_derivatives_are_those_of_the_density(key, weights, monkeypatch):
    conditional, problem = build(key, weights=weights)
    z = some_effects(conditional, problem)
    assert conditional._known_derivatives(conditional.eta(problem, z)) is not None
    known = conditional._row_derivatives(problem, z, False)
    monkeypatch.setattr(GroupConditional, "_known_derivatives", NewtonSolver._known_derivatives)
    for ours, theirs in zip(known, conditional._row_derivatives(problem, z, False), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("key", ["categorical", "scale", "probit"])
def test_other_derivatives_are_not_known(key):
    conditional, problem = build(key)
    assert (
        conditional._known_derivatives(conditional.eta(problem, some_effects(conditional, problem))) is None
    )


@pytest.mark.parametrize("key", MODELS)
def test_problems_together_are_problems_alone(key):
    """Those that arrive early leave the others; far starts take many steps."""
    conditional, problem = build(key, spread=0.6)
    start = some_effects(conditional, problem, seed=1)
    far = torch.tensor([0.0, 0.1, 0.3, 0.6, 1.0, 2.0], dtype=F64)[:, None, None]
    start = [far * part for part in start]
    together = conditional.solve(problem, start, tolerance=1e-8)
    for s in range(len(problem.base)):
        chosen = torch.arange(len(problem.base)) == s
        alone = conditional.solve(problem.select(chosen), [part[chosen] for part in start], tolerance=1e-8)
        for ours, theirs in zip(together.mean, alone.mean, strict=True):
            torch.testing.assert_close(ours[s], theirs[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(together.primary[s], alone.primary[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(together.log_det[s], alone.log_det[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("key", ["bernoulli", "three", "categorical", "scale"])
def test_padded_products_are_sums_over_rows(key, monkeypatch):
    conditional, problem = build(key)
    curvature = conditional._point(problem, some_effects(conditional, problem)).curvature
    (weighted,) = conditional._weighted(problem, curvature)
    expected = torch.einsum("snde,snef->sndf", problem.loadings[0], curvature)
    torch.testing.assert_close(weighted, expected)
    products = torch.einsum("sndf,snkf->sndk", weighted, problem.loadings[0])
    by_group = conditional._sum_by_group(0, products)
    torch.testing.assert_close(conditional._gram(weighted, problem.loadings[0]), by_group)
    monkeypatch.setattr(newton, "_PADDING_PAYS", ((1, 4.0),))
    padded = conditional._padding()
    assert padded is not None
    torch.testing.assert_close(conditional._padded_gram(padded, weighted, problem.loadings[0]), by_group)


@pytest.mark.parametrize("key", MODELS)
def test_effects_and_back(key):
    conditional, problem = build(key)
    z = some_effects(conditional, problem)
    effects = conditional.scaled(problem.values, z)
    named = conditional.effects(problem.values, z)
    assert sum(part.numel() for part in effects) == sum(part.numel() for part in named.values())
    expected = sum(part.square().sum() for part in named.values())
    torch.testing.assert_close(sum(part.square().sum() for part in effects), expected)
    back = conditional.standardised(problem.values, effects)
    for one, other in zip(back, z, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("width", [1, 2, 5])
def test_square_norm(width):
    z = torch.randn(3, 4, width, generator=torch.Generator().manual_seed(0), dtype=F64)
    torch.testing.assert_close(square_norm(z), z.square().sum(-1))
