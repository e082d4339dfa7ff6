"""The Gaussian conditional from cross-products against the row-by-row one, itself tested by dense algebra."""

import math

import numpy as np
import pytest
import torch
from hand_made import design, frame, module_of
from torch import nn

from pyro_armed import crossed
from pyro_armed.conditional import GroupConditional
from pyro_armed.gaussian_conditional import GaussianConditional, has_gaussian_conditional
from pyro_armed.global_space import GlobalSpace

F64 = torch.float64
FORMULAS = {
    "intercepts": "y ~ x + c + (1 | g)",
    "correlated": "y ~ x + (1 + z + x | g)",
    "uncorrelated": "y ~ x + (1 + z || g)",
    "two blocks": "y ~ x + (1 | g) + (0 + z | g)",
    "crossed": "y ~ x + (1 + z | g) + (1 + x | h)",
    "three": "y ~ x + (1 | g) + (1 | h) + (1 | c)",
    "nested": "y ~ x + (1 | h / c)",
    "pairs": "y ~ x + (1 | g) + (1 | h)",
    "no intercept": "y ~ 0 + x + (1 | g)",
    "offset": "y ~ x + offset(z) + (1 | g)",
    "none": "y ~ 0 + (1 | g)",
}


def build(formula, **options):
    module = module_of(design(formula, frame(6, 9), **options))
    return module, GlobalSpace(module)


def points(space, count=3, seed=0):
    noise = torch.randn(count, space.size, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return space.start + 0.5 * noise


@pytest.fixture
def always_pairs(monkeypatch):
    """Small tables too are eliminated pair by pair."""
    monkeypatch.setattr(crossed, "_PAYS", 0)


@pytest.mark.parametrize("weights", [None, "w"])
@pytest.mark.parametrize("key", ["pairs", "three", "nested"])
def test_pairs_change_nothing(key, weights, always_pairs):
    module, _ = build(FORMULAS[key], weights=weights)
    assert GaussianConditional(module, module.data).pairs is not None
    test_is_the_row_by_row_conditional(key, weights)
    test_gradient_of_the_evidence(key)


@pytest.mark.parametrize("weights", [None, "w"])
@pytest.mark.parametrize("key", FORMULAS)
def test_is_the_row_by_row_conditional(key, weights):
    module, space = build(FORMULAS[key], weights=weights)
    values, _ = space.evaluate(points(space))
    rows, sums = GroupConditional(module, module.data), GaussianConditional(module, module.data)
    problem, short = rows.problem(values), sums.problem(values)
    ours, theirs = sums.solve(short), rows.solve(problem)
    assert sums.groups == rows.groups
    for a, b in zip(ours.mean, theirs.mean, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
    for name in ("primary", "cross", "rest", "log_det"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(sums.integrated(short), rows.laplace(problem, theirs), rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("key", ["intercepts", "correlated", "crossed", "offset", "three"])
def test_gradient_of_the_evidence(key):
    module, space = build(FORMULAS[key], weights="w")
    conditional = GaussianConditional(module, module.data)

    def evidence(theta):
        problem = conditional.problem(space.evaluate(theta)[0])
        return conditional.integrated(problem)

    theta = points(space, 2).requires_grad_()
    assert torch.autograd.gradcheck(evidence, (theta,), eps=1e-6, atol=1e-3, rtol=1e-4)
    # Without a gradient the value is found in a shorter way.
    torch.testing.assert_close(evidence(theta.detach()), evidence(theta).detach())


@pytest.mark.parametrize("key", ["correlated", "crossed"])
def test_draws_have_the_density_that_is_claimed(key):
    module, space = build(FORMULAS[key])
    conditional = GaussianConditional(module, module.data)
    effects = conditional.solve(conditional.problem(space.evaluate(points(space))[0]))
    generator = torch.Generator().manual_seed(1)
    noise = [torch.randn(m.shape, generator=generator, dtype=F64) for m in effects.mean]
    z = conditional.draw(effects, noise)
    size = sum(n[0].numel() for n in noise)
    square = sum(n.square().sum((1, 2)) for n in noise)
    expected = 0.5 * (effects.log_det - square - size * math.log(2 * math.pi))
    torch.testing.assert_close(conditional.log_density(effects, z), expected)


def test_large_offsets_of_the_response_cost_no_precision():
    """The sums of squares are taken around the centre of the intercept's prior."""
    data = frame(6, 9)
    data["y"] = 1e6 + data["y"]
    module = module_of(design("y ~ x + (1 | g)", data))
    space = GlobalSpace(module)
    values, _ = space.evaluate(points(space))
    rows, sums = GroupConditional(module, module.data), GaussianConditional(module, module.data)
    problem, short = rows.problem(values), sums.problem(values)
    expected = rows.laplace(problem, rows.solve(problem))
    torch.testing.assert_close(sums.integrated(short), expected, rtol=1e-6, atol=1e-3)


def test_cost_does_not_grow_with_rows():
    module, space = build(FORMULAS["crossed"])
    conditional = GaussianConditional(module, module.data)
    problem = conditional.problem(space.evaluate(points(space))[0])
    shapes = [t.shape for t in [problem.contrast, problem.variance, *problem.transforms]]
    assert all(module.data.size not in shape for shape in shapes)


def test_features_of_a_network():
    network = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    made = design("y ~ x + z + (1 + features | g)", frame(6, 9), network=True)
    module = module_of(made, network, "2", 3)
    space = GlobalSpace(module)
    hidden = module.hidden(module.data)
    values, _ = space.evaluate(points(space))
    rows = GroupConditional(module, module.data, hidden)
    sums = GaussianConditional(module, module.data, hidden)
    problem, short = rows.problem(values), sums.problem(values)
    torch.testing.assert_close(
        sums.integrated(short),
        rows.laplace(problem, rows.solve(problem)),
        rtol=1e-9,
        atol=1e-7,
    )


def test_network_without_bayesian_last_layer_is_an_offset():
    network = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    made = design("y ~ x + z + (1 | g)", frame(6, 9), network=True)
    module = module_of(made, network, None, 0)
    space = GlobalSpace(module)
    hidden = tuple(part.detach() for part in module.hidden(module.data))
    values, _ = space.evaluate(points(space))
    rows = GroupConditional(module, module.data, hidden)
    sums = GaussianConditional(module, module.data, hidden)
    problem, short = rows.problem(values), sums.problem(values)
    torch.testing.assert_close(
        sums.integrated(short),
        rows.laplace(problem, rows.solve(problem)),
        rtol=1e-9,
        atol=1e-7,
    )


@pytest.mark.parametrize("tau", [1e-8, 1e4])
def test_extreme_standard_deviations(tau):
    module, space = build(FORMULAS["crossed"])
    values, _ = space.evaluate(space.start.unsqueeze(0))
    for name in values:
        if "|" in name:
            values[name] = torch.full_like(values[name], tau)
    rows, sums = GroupConditional(module, module.data), GaussianConditional(module, module.data)
    problem, short = rows.problem(values), sums.problem(values)
    expected = rows.laplace(problem, rows.solve(problem))
    assert torch.isfinite(expected).all()
    torch.testing.assert_close(sums.integrated(short), expected, rtol=1e-5, atol=1e-5)


def test_groups_without_rows():
    module, space = build(FORMULAS["correlated"])
    conditional = GaussianConditional(module, module.data, sizes={"g": 8})
    effects = conditional.solve(conditional.problem(space.evaluate(points(space))[0]))
    assert effects.mean[0].shape == (3, 8, 3)
    np.testing.assert_array_equal(effects.mean[0][:, 6:], 0.0)


@pytest.mark.parametrize(
    ("formula", "family", "link", "expected"),
    [
        ("y ~ x + (1 | g)", "gaussian", None, True),
        ("p ~ x + (1 | g)", "gaussian", "log", False),
        ("y ~ x + (1 | g)", "student_t", None, False),
        (["y ~ x + (1 | g)", "sigma ~ x"], "gaussian", None, False),
        ("b ~ x + (1 | g)", "bernoulli", None, False),
    ],
)
def test_which_models_have_it(formula, family, link, expected):
    module = module_of(design(formula, frame(), family, link=link))
    assert has_gaussian_conditional(module) is expected
