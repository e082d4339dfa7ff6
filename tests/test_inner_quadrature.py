"""Several grouping factors, the largest integrated out: against brute force and automatic differentiation."""

import numpy as np
import pandas as pd
import pytest
import torch
from hand_made import design, frame, module_of
from numpy.polynomial.hermite_e import hermegauss
from scipy.special import expit, logsumexp

from pyro_armed import global_draws
from pyro_armed.conditional import GroupConditional
from pyro_armed.global_space import GlobalSpace
from pyro_armed.inner_quadrature import InnerQuadrature, inner_nodes
from pyro_armed.structured import StructuredGuide

F64 = torch.float64


def nested(groups=5, each=6, rows=2, seed=0):
    """Binary rows of small groups b within groups a, with sds 2 and 1."""
    rng = np.random.default_rng(seed)
    a = np.repeat(np.arange(groups), each * rows)
    b = np.repeat(np.arange(groups * each), rows)
    x = rng.normal(size=len(a))
    eta = x + rng.normal(size=groups)[a] + 2.0 * rng.normal(size=groups * each)[b]
    labels = {"a": [f"a{i}" for i in a], "b": [f"b{i}" for i in b]}
    return pd.DataFrame({"y": (rng.random(len(a)) < expit(eta)).astype(int), "x": x, **labels})


def build(formula, data, family="bernoulli", order=15):
    module = module_of(design(formula, data, family))
    space = GlobalSpace(module)
    return space, InnerQuadrature(GroupConditional(module, module.data), order)


def exact(data, slope, intercept, sd_a, sd_b, nodes=101):
    """Log of the product over a of the integral over u_a of the product over b of that over u_b."""
    node, weight = hermegauss(nodes)
    log_weight = np.log(weight) - 0.5 * np.log(2 * np.pi)
    total = 0.0
    for _, outer in data.groupby("a"):
        given_a = np.zeros(nodes)
        for _, inner in outer.groupby("b"):
            eta = intercept + slope * inner["x"].to_numpy()[:, None, None]
            eta = eta + sd_a * node[:, None] + sd_b * node
            sign = 2 * inner["y"].to_numpy()[:, None, None] - 1
            given_a += logsumexp(-np.logaddexp(0, -sign * eta).sum(0) + log_weight, axis=1)
        total += logsumexp(given_a + log_weight)
    return total


def test_nested_factors_against_brute_force():
    """What is left is Laplace's approximation of the integral over the effect of 12 rows."""
    data = nested()
    space, quadrature = build("y ~ x + (1 | a) + (1 | b)", data)
    theta = space.start + 0.3 * torch.randn(
        4, space.size, generator=torch.Generator().manual_seed(1), dtype=F64
    )
    values, _ = space.evaluate(theta)
    problem = quadrature.outer.problem(values)
    found = quadrature.log_marginal(problem).detach()
    laplace = quadrature.outer.integrated(problem).detach()
    assert quadrature.outer.groups == ["b", "a"]
    predictor = quadrature.outer.module.linear_predictor
    for s in range(4):
        one = {name: value[s, 0].detach() for name, value in values.items()}
        fixed = predictor(quadrature.outer.module.spec.mu, one, quadrature.outer.batch, random=False).detach()
        slope = float(one["x"])
        intercept = float(fixed[0]) - slope * data["x"].iloc[0]
        truth = exact(data, slope, intercept, float(one["1|a_sigma"]), float(one["1|b_sigma"]))
        assert float(found[s]) == pytest.approx(truth, abs=0.05)
        assert abs(float(found[s]) - truth) < 0.2 * abs(float(laplace[s]) - truth)


CROSSED = {
    "binary": ("b ~ x + (1 | g) + (1 + z | h)", "bernoulli"),
    "counts": ("count ~ x + (1 | g) + (1 | h)", "poisson"),
    "two effects": ("b ~ x + (1 + x | g) + (1 | h)", "bernoulli"),
    "levels": ("o ~ x + (1 | g) + (1 | h)", "ordinal"),
}


@pytest.mark.parametrize("key", CROSSED)
def test_score_and_curvature_are_those_of_the_integral(key):
    """By automatic differentiation of the quadrature's log g(v), whose nodes stay where they are."""
    formula, family = CROSSED[key]
    space, quadrature = build(formula, frame(12, 3), family, order=7)
    values, _ = space.evaluate(space.start.unsqueeze(0))
    problem = quadrature.outer.problem(values)
    point = quadrature.solve(problem)
    v = point.v + 0.3

    def height(flat):
        return quadrature._moments(problem, flat.unsqueeze(0), point.mean, point.primary, True).height[0]

    moved = quadrature._moments(problem, v, point.mean, point.primary, False)
    gradient = torch.autograd.functional.jacobian(height, v[0])
    torch.testing.assert_close(quadrature._score(problem, moved)[0], gradient)
    step = 1e-4 * torch.eye(v.shape[1], dtype=F64)
    hessian = torch.stack(
        [
            (
                torch.autograd.functional.jacobian(height, v[0] + d)
                - torch.autograd.functional.jacobian(height, v[0] - d)
            )
            / 2e-4
            for d in step
        ]
    )
    torch.testing.assert_close(quadrature._curvature(problem, moved)[0], -hessian, rtol=1e-4, atol=1e-5)
    at_mode = quadrature._score(problem, point)[0]
    assert float(at_mode.abs().max()) < 0.1


def test_gradient_in_the_global_values_against_finite_differences():
    space, quadrature = build("y ~ x + (1 | a) + (1 | b)", nested())

    def height(theta):
        values, _ = space.evaluate(theta)
        return quadrature.log_marginal(quadrature.outer.problem(values))

    theta = (space.start + 0.2).unsqueeze(0).requires_grad_()
    (gradient,) = torch.autograd.grad(height(theta).sum(), theta)
    step = 1e-3 * torch.eye(space.size, dtype=F64)
    with torch.no_grad():
        numeric = (height(theta + step) - height(theta - step)) / 2e-3
    torch.testing.assert_close(gradient[0], numeric, rtol=0.02, atol=0.02)


def test_draws_have_the_moments_of_the_exact_conditional():
    """Means and sds of the effects at known sds, against importance sampling from the prior."""
    data = nested(groups=2, each=5, rows=2, seed=3)
    space, quadrature = build("y ~ x + (1 | a) + (1 | b)", data)
    values, _ = space.evaluate(space.start.expand(4000, -1))
    problem = quadrature.outer.problem(values)
    z, ratio = quadrature.draw(problem, None, 8, torch.Generator().manual_seed(0))
    assert ratio.shape == (4000, 10)
    rng = np.random.default_rng(0)
    prior = [torch.as_tensor(rng.normal(size=(4000, count, 1))) for count in (10, 2)]
    # The rows of each a are independent of the other's: two sets of weights, of ten rows each.
    density = quadrature.outer.log_likelihood(problem, quadrature.outer.eta(problem, prior))
    outer = quadrature.outer.batch.codes["a"]
    inner_of = torch.as_tensor([int(outer[quadrature.codes == code][0]) for code in range(10)])
    for side in range(2):
        weight = density[:, outer == side].sum(1).softmax(0).detach()
        for mine, exact_draws in (
            (z[0][:, inner_of == side, 0], prior[0][:, inner_of == side, 0]),
            (z[1][:, side], prior[1][:, side]),
        ):
            mean = weight @ exact_draws
            sd = (weight @ (exact_draws - mean).square()).sqrt()
            torch.testing.assert_close(mine.mean(0), mean, atol=0.12, rtol=0)
            torch.testing.assert_close(mine.std(0), sd, atol=0.1, rtol=0)


def test_where_it_pays():
    def nodes(formula, data, family="bernoulli"):
        module = module_of(design(formula, data, family))
        return inner_nodes(GroupConditional(module, module.data))

    assert nodes("y ~ x + (1 | a) + (1 | b)", nested()) == 15
    assert nodes("y ~ x + (1 | b)", nested()) == 1  # one factor has quadrature of its own
    assert nodes("y ~ x + (1 | a) + (1 | b)", nested(each=2, rows=20)) == 1  # Laplace suffices
    assert nodes("c ~ x + (1 | g) + (1 | h)", frame(12, 3), "categorical") == 1
    assert nodes("y ~ x + (1 | g) + (1 | h)", frame(12, 3), "student_t") == 1


def test_weights_move_the_proposal_once_at_least(monkeypatch):
    """With one round of 2000 k-hat on grouseticks was 0.80, and the mode's Gaussian was all there was."""
    module = module_of(design("y ~ x + (1 | a) + (1 | b)", nested(), "bernoulli"))
    guide = StructuredGuide(module, module.data)
    assert guide.inner is not None
    counts = []

    def record(guide, count, enough, rounds, *rest):
        counts.append((count, rounds))
        return original(guide, 20, enough, 1, *rest)

    original = global_draws._adaptive_draws
    monkeypatch.setattr(global_draws, "affordable", lambda *_: 2300)
    monkeypatch.setattr(global_draws, "_adaptive_draws", record)
    global_draws.correct_globals(guide, 2000, seed=0)
    global_draws.correct_globals(guide, 1000, seed=0)
    assert counts == [(1150, 2), (1000, 2)]
