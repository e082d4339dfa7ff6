"""Group effects given the global variables, against dense algebra, quadrature and finite differences."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hand_made import design, frame, module_of
from scipy import integrate, optimize, stats
from scipy.special import expit
from torch import nn

from pyro_armed.conditional import GroupConditional
from pyro_armed.gaussian_conditional import GaussianConditional, conditional_of
from pyro_armed.global_space import GlobalSpace

F64 = torch.float64


def build(formulas, family="gaussian", data=None, **options):
    module = module_of(design(formulas, frame(8, 6) if data is None else data, family, **options))
    return module, GlobalSpace(module)


def points(space, count=2, seed=0, spread=0.4):
    noise = torch.randn(count, space.size, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return space.start + spread * noise


def randn(like, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(part.shape, generator=generator, dtype=F64) for part in like]


# --- a Gaussian response against dense algebra -----------------------------------------------------------


def indicators(labels):
    return (np.asarray(labels)[:, None] == sorted(set(labels))).astype(float)


def number(values, name, s):
    return values[name][s].detach().numpy().reshape(-1)


def covariance_of(values, names, group, s):
    """Sigma = D(tau) R D(tau) of the named effects."""
    tau = np.concatenate([number(values, f"{name}|{group}_sigma", s) for name in names])
    correlation = np.eye(len(tau))
    if f"{group}_corr" in values:
        factor = values[f"{group}_corr"][s, 0].detach().numpy()
        correlation = factor @ factor.T
    return np.diag(tau) @ correlation @ np.diag(tau)


def features(module):
    return module.hidden(module.data)[0].detach().numpy()


def network_module(data):
    torch.manual_seed(3)
    network = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    return module_of(design("y ~ x + z + (1 + features | g)", data, network=True), network, "2", 3)


ONE = np.ones(48)
GAUSSIAN = {
    "intercepts": ("y ~ x + (1 | g)", {"g": ["1"]}, {}),
    "correlated": ("y ~ x + (1 + z | g)", {"g": ["1", "z"]}, {}),
    "uncorrelated": ("y ~ x + c + (1 + z || g)", {"g": ["1", "z"]}, {}),
    "slope only": ("y ~ x + (0 + z | g)", {"g": ["z"]}, {}),
    "crossed": ("y ~ x + (1 | g) + (1 + z | h)", {"g": ["1"], "h": ["1", "z"]}, {}),
    "nested": ("y ~ 1 + (1 | g / h)", {"g": ["1"], "g:h": ["1"]}, {}),
    "three": ("y ~ 0 + x + (1 | g) + (1 | h) + (0 + x | k)", {"g": ["1"], "h": ["1"], "k": ["x"]}, {}),
    "weights": ("y ~ x + (1 + z | g)", {"g": ["1", "z"]}, {"weights": "w"}),
    "offset": ("y ~ x + offset(z) + (1 | g)", {"g": ["1"]}, {}),
    "scale": (["y ~ x + (1 | g)", "sigma ~ z"], {"g": ["1"]}, {}),
    "network": (None, {"g": ["1", "features"]}, {}),
}


class Dense:
    """The marginal law of y, and the effects' posterior, with N x N matrices."""

    def __init__(self, key, s=0, spread=0.4):
        formulas, effects, options = GAUSSIAN[key]
        data = frame(8, 6)
        data["k"] = [f"k{i}" for i in (np.arange(48) * 7) % 5]
        data["g:h"] = data["g"] + ":" + data["h"]
        if formulas is None:
            self.module = network_module(data)
        else:
            self.module = module_of(design(formulas, data, **options))
        self.space = GlobalSpace(self.module)
        self.hidden = self.module.hidden(self.module.data)
        self.values, self.log_prior = self.space.evaluate(points(self.space, 3, spread=spread))
        columns = {"1": ONE[:, None], "x": data[["x"]].to_numpy(), "z": data[["z"]].to_numpy()}
        if formulas is None:
            columns["features"] = features(self.module)
        predictor = self.module.spec.mu
        base = self.module.linear_predictor(
            predictor, self.values, self.module.data, self.hidden, random=False
        )
        base = base.expand(3, -1)[s].detach().numpy()
        if "sigma" in self.values:
            sigma = np.full(48, number(self.values, "sigma", s)[0])
        else:
            scale = self.module.linear_predictor(
                self.module.spec.predictors[1], self.values, self.module.data
            )
            sigma = scale.exp()[s].detach().numpy()
        weight = data["w"].to_numpy() if options else ONE
        # A weighted row is one of variance sigma^2 / w, up to a factor.
        total = np.diag(sigma**2 / weight)
        factor = -0.5 * np.log(weight) - 0.5 * (weight - 1) * np.log(2 * np.pi * sigma**2)
        loadings = {}
        for group, names in effects.items():
            w = np.concatenate([columns[name] for name in names], axis=1)
            z = indicators(data[group])
            design_matrix = np.einsum("nc,nk->nck", z, w).reshape(48, -1)
            prior = np.kron(np.eye(z.shape[1]), covariance_of(self.values, names, group, s))
            loadings[group] = prior @ design_matrix.T
            total = total + design_matrix @ prior @ design_matrix.T
        y = data["y"].to_numpy()
        self.evidence = stats.multivariate_normal(base, total).logpdf(y) + factor.sum()
        self.means = {group: part @ np.linalg.solve(total, y - base) for group, part in loadings.items()}
        self.effects = effects


@pytest.mark.parametrize("key", GAUSSIAN)
@pytest.mark.parametrize("kind", [GroupConditional, GaussianConditional])
def test_gaussian_evidence_and_posterior_means_are_exact(key, kind):
    if key == "scale" and kind is GaussianConditional:
        pytest.skip("has no single noise scale")
    for s in range(3):
        dense = Dense(key, s)
        conditional = kind(dense.module, dense.module.data, dense.hidden)
        problem = conditional.problem(dense.values)
        solved = conditional.solve(problem)
        np.testing.assert_allclose(conditional.integrated(problem)[s].detach(), dense.evidence, rtol=1e-8)
        effects = conditional.effects(dense.values, solved.mean)
        for group, names in dense.effects.items():
            parts = [effects[f"{name}|{group}"][s].detach() for name in names]
            ours = torch.cat([p if p.dim() == 2 else p[:, None] for p in parts], dim=1)
            np.testing.assert_allclose(ours.reshape(-1), dense.means[group], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("key", GAUSSIAN)
def test_joint_over_conditional_is_the_evidence_wherever_it_is_taken(key):
    """p(y, z) / p(z | y) = p(y) for every z: mean, precision and constants are right together."""
    dense = Dense(key)
    conditional = GroupConditional(dense.module, dense.module.data, dense.hidden)
    problem = conditional.problem(dense.values)
    chosen = conditional_of(dense.module, dense.module.data, dense.hidden)
    exact = chosen.solve(chosen.problem(dense.values))
    for effects in (conditional.solve(problem), exact):
        for seed in range(3):
            z = [3 * part for part in randn(effects.mean, seed)]
            ratio = conditional.joint(problem, z) - chosen.log_density(effects, z)
            np.testing.assert_allclose(ratio[0].detach(), dense.evidence, rtol=1e-7)


def test_gaussian_responses_take_the_exact_way():
    expected = dict.fromkeys(GAUSSIAN, GaussianConditional) | {"scale": GroupConditional}
    for key in GAUSSIAN:
        dense = Dense(key)
        assert type(conditional_of(dense.module, dense.module.data, dense.hidden)) is expected[key]
    for family, link in (("bernoulli", None), ("gaussian", "log")):
        module, _ = build(
            "b ~ x + (1 | g)" if family == "bernoulli" else "p ~ x + (1 | g)", family, link=link
        )
        assert type(conditional_of(module, module.data)) is GroupConditional


def test_largest_factor_is_eliminated_block_by_block():
    module, _ = build("y ~ x + (1 | h) + (1 | g)")
    assert GroupConditional(module, module.data).groups == ["g", "h"]


# --- draws -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("formula", ["b ~ x + (1 + z | g)", "b ~ x + (1 | g) + (1 + z | h)"])
def test_draws_have_the_density_that_is_claimed(formula):
    module, space = build(formula, "bernoulli")
    conditional = GroupConditional(module, module.data)
    values, _ = space.evaluate(points(space))
    effects = conditional.solve(conditional.problem(values))
    noise = randn(effects.mean, 1)
    z = conditional.draw(effects, noise)
    size = sum(part[0].numel() for part in noise)
    square = sum(part.square().sum((1, 2)) for part in noise)
    expected = 0.5 * (effects.log_det - square - size * math.log(2 * math.pi))
    torch.testing.assert_close(conditional.log_density(effects, z), expected)


@pytest.mark.parametrize("formula", ["b ~ x + (1 + z | g)", "b ~ x + (1 | g) + (1 + z | h)"])
def test_precision_is_the_negative_hessian_of_the_joint_density(formula):
    module, space = build(formula, "bernoulli")
    conditional = GroupConditional(module, module.data)
    values, _ = space.evaluate(points(space, 1))
    problem = conditional.problem(values)
    effects = conditional.solve(problem)
    shapes = [part.shape for part in effects.mean]
    sizes = [part.numel() for part in effects.mean]

    def unflatten(flat):
        return [part.reshape(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)]

    mode = torch.cat([part.reshape(-1) for part in effects.mean])
    hessian = torch.autograd.functional.hessian(lambda v: -conditional.joint(problem, unflatten(v))[0], mode)
    score = torch.autograd.functional.jacobian(lambda v: conditional.joint(problem, unflatten(v))[0], mode)
    assert score.abs().max() < 1e-7
    torch.testing.assert_close(torch.logdet(hessian), effects.log_det[0])
    columns = []
    for k in range(len(mode)):
        unit = torch.zeros_like(mode)
        unit[k] = 1.0
        drawn = conditional.draw(effects, unflatten(unit))
        columns.append(torch.cat([part.reshape(-1) for part in drawn]) - mode)
    root = torch.stack(columns, dim=1)
    torch.testing.assert_close(root @ root.mT, torch.linalg.inv(hessian), rtol=1e-6, atol=1e-9)


def test_groups_add_up():
    module, space = build("b ~ x + (1 + z | g)", "bernoulli", weights="w")
    conditional = GroupConditional(module, module.data)
    values, _ = space.evaluate(points(space, 3))
    problem = conditional.problem(values)
    effects = conditional.solve(problem)
    z = conditional.draw(effects, randn(effects.mean, 0))
    by_group = conditional.by_group(problem, z)
    assert by_group.shape == (3, 8)
    torch.testing.assert_close(by_group.sum(-1), conditional.joint(problem, z))
    density = conditional.density_by_group(effects, z)
    torch.testing.assert_close(density.sum(-1), conditional.log_density(effects, z))
    # Another z of one group changes that group's density only.
    other = [z[0].clone()]
    other[0][:, 2] += 1.0
    changed = (conditional.by_group(problem, other) - by_group).abs() > 1e-12
    assert changed.nonzero()[:, 1].unique().tolist() == [2]


def test_effects_are_those_of_the_model():
    """Scaling z by hand gives what the linear predictor with effects is made of."""
    for formula, family in (
        ("b ~ x + (1 + z | g) + (1 | h)", "bernoulli"),
        ("c ~ x + (1 + z | g)", "categorical"),
    ):
        module, space = build(formula, family)
        conditional = GroupConditional(module, module.data)
        values, _ = space.evaluate(points(space))
        problem = conditional.problem(values)
        z = randn(conditional.solve(problem).mean, 0)
        everything = {**values, **conditional.effects(values, z)}
        eta = module.linear_predictor(module.spec.mu, everything, module.data)
        ours = conditional.eta(problem, z)
        torch.testing.assert_close(ours if family == "categorical" else ours[..., 0], eta)


# --- other responses -------------------------------------------------------------------------------------


def responses():
    data = frame(8, 6)
    data["positive"] = np.exp(0.3 * data["y"])
    data["trials"] = data["s"] + data["t"]
    return data


FAMILIES = {
    "gaussian": "y ~ x + (1 + z | g)",
    "student_t": "y ~ x + (1 | g)",
    "bernoulli": "b ~ x + (1 + z | g)",
    "binomial": "p(s, trials) ~ x + (1 | g)",
    "poisson": "count ~ x + (1 | g) + (1 | h)",
    "negative_binomial": "count ~ x + (1 | g)",
    "gamma": "positive ~ x + (1 | g)",
    "beta": "p ~ x + (1 | g)",
    "ordinal": "o ~ x + (1 | g)",
    "categorical": "c ~ x + (1 | g)",
    "categorical slopes": "c ~ x + (1 + z | g)",
    "scale": ["y ~ x + (1 | g)", "sigma ~ z"],
    "scale with groups": ["y ~ x + (1 | g)", "sigma ~ 1 + (1 | g)"],
}


def family_model(key):
    family = {"scale": "gaussian", "scale with groups": "gaussian"}.get(key, key.split()[0])
    return build(FAMILIES[key], family, responses())


@pytest.mark.parametrize("key", FAMILIES)
def test_gradient_of_laplace_by_finite_differences(key):
    module, space = family_model(key)
    theta = points(space, 2, spread=0.2)
    conditional = GroupConditional(module, module.data)

    def evidence(at):
        problem = conditional.problem(space.evaluate(at)[0])
        return conditional.laplace(problem, conditional.solve(problem, steps=100, tolerance=1e-10))

    attached = theta.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(evidence(attached).sum(), attached)
    steps = 1e-5 * torch.eye(space.size, dtype=F64)
    with torch.no_grad():
        numeric = torch.stack([(evidence(theta + h) - evidence(theta - h)) / 2e-5 for h in steps], dim=-1)
    torch.testing.assert_close(gradient, numeric, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("key", FAMILIES)
def test_mode_has_no_slope(key):
    module, space = family_model(key)
    conditional = GroupConditional(module, module.data)
    problem = conditional.problem(space.evaluate(points(space))[0])
    mode = [part.clone().requires_grad_() for part in conditional.solve(problem, steps=100).mean]
    gradients = torch.autograd.grad(conditional.joint(problem, mode).sum(), mode)
    assert max(float(g.abs().max()) for g in gradients) < 1e-4


@pytest.mark.parametrize("key", [key for key in FAMILIES if key not in ("scale with groups", "poisson")])
def test_two_rows_are_one_of_weight_two(key):
    family = "gaussian" if key == "scale" else key.split()[0]
    data = responses()
    data["w"] = 1.0 + (np.arange(48) % 3 == 0)
    twice = pd.concat([data, data[data["w"] == 2]], ignore_index=True)
    once = module_of(design(FAMILIES[key], data, family, weights="w"))
    space = GlobalSpace(once)
    values, _ = space.evaluate(points(space))
    # The repeated rows under the same standardisation: only the batch differs.
    rows = torch.as_tensor(np.concatenate([np.arange(48), np.flatnonzero(data["w"] == 2)]))
    batch = once.data.select(rows)
    batch = replace(batch, rows=None, n_rows=len(rows), weights=None)
    assert len(twice) == batch.size
    results = []
    for rows_of in (once.data, batch):
        conditional = conditional_of(once, rows_of)
        problem = conditional.problem(values)
        results.append(conditional.integrated(problem))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-9)


# --- quadrature ------------------------------------------------------------------------------------------


def bernoulli_integral(eta, y, tau):
    def density(z):
        p = expit(eta + tau * z)
        return np.prod(np.where(y == 1, p, 1 - p)) * stats.norm.pdf(z)

    return math.log(integrate.quad(density, -9, 9, epsabs=1e-13, epsrel=1e-11)[0])


def test_quadrature_of_an_intercept():
    data = frame(8, 6)
    module, space = build("b ~ x + (1 | g)", "bernoulli", data)
    conditional = GroupConditional(module, module.data)
    values, _ = space.evaluate(points(space, 3, spread=0.8))
    problem = conditional.problem(values)
    effects = conditional.solve(problem)
    base = module.linear_predictor(module.spec.mu, values, module.data, random=False)
    for s in range(3):
        tau = float(values["1|g_sigma"][s])
        expected = sum(
            bernoulli_integral(base[s, rows].numpy(), data["b"].to_numpy()[rows], tau)
            for rows in (data["g"].to_numpy() == label for label in sorted(set(data["g"])))
        )
        assert float(conditional.quadrature(problem, effects, 25)[s]) == pytest.approx(expected, abs=1e-6)
        assert float(conditional.quadrature(problem, effects, 9)[s]) == pytest.approx(expected, abs=1e-3)


def test_quadrature_of_two_effects():
    data = frame(2, 6)
    module, space = build("b ~ x + (1 + z | g)", "bernoulli", data)
    conditional = GroupConditional(module, module.data)
    values, _ = space.evaluate(points(space, 1))
    problem = conditional.problem(values)
    base = problem.base[0, :, 0].numpy()
    root = np.diag(np.concatenate([number(values, f"{n}|g_sigma", 0) for n in ("1", "z")]))
    root = root @ values["g_corr"][0, 0].numpy()
    y, z = data["b"].to_numpy(), data["z"].to_numpy()
    expected = 0.0
    grid = np.linspace(-7, 7, 401)
    first, second = np.meshgrid(grid, grid, indexing="ij")
    for label in ("g0", "g1"):
        rows = np.flatnonzero(data["g"] == label)
        u = np.tensordot(root, np.stack([first, second]), axes=1)
        p = expit(base[rows, None, None] + u[0] + z[rows, None, None] * u[1])
        likelihood = np.where(y[rows, None, None] == 1, p, 1 - p).prod(axis=0)
        expected += math.log(
            np.sum(likelihood * stats.norm.pdf(first) * stats.norm.pdf(second)) * (grid[1] - grid[0]) ** 2
        )
    quadrature = conditional.quadrature(problem, conditional.solve(problem), 15)
    assert float(quadrature[0]) == pytest.approx(expected, abs=1e-4)


def skewed():
    """Groups of few rows, nearly all of one answer, and large effects: far from Gaussian."""
    data = frame(8, 4)
    data["c"] = np.where(np.arange(32) % 11 == 0, "mid", "low")
    data.loc[data["g"].isin(["g1", "g6"]), "c"] = "top"
    module, space = build("c ~ 1 + (1 | g)", "categorical", data)
    values, _ = space.evaluate(space.start.expand(3, -1))
    values["1|g_sigma"] = torch.tensor([[1.0, 1.0], [3.0, 2.0], [4.0, 5.0]], dtype=F64).unsqueeze(1)
    conditional = GroupConditional(module, module.data)
    problem = conditional.problem(values)
    return conditional, problem, conditional.solve(problem)


def test_quasi_monte_carlo():
    conditional, problem, effects = skewed()
    exact = conditional.quadrature(problem, effects, 61)
    near = conditional.quasi_monte_carlo(problem, effects, 4096)
    torch.testing.assert_close(near, exact, rtol=0, atol=0.02)
    few = conditional.quasi_monte_carlo(problem, effects, 32)
    laplace = conditional.laplace(problem, effects)
    assert ((few - exact).abs() < 0.3).all()
    # What matters is how the error differs between values of the globals.
    assert ((few - exact).std() < 0.3 * (laplace - exact).std()).all()


def test_quasi_monte_carlo_is_repeatable(unmoved_rng):
    conditional, problem, effects = skewed()
    with unmoved_rng():
        first = conditional.quasi_monte_carlo(problem, effects, 16)
    assert torch.equal(first, conditional.quasi_monte_carlo(problem, effects, 16))


def test_quadrature_of_one_node_is_laplace():
    module, space = build("count ~ x + (1 + z | g)", "poisson")
    conditional = GroupConditional(module, module.data)
    problem = conditional.problem(space.evaluate(points(space))[0])
    effects = conditional.solve(problem)
    torch.testing.assert_close(
        conditional.quadrature(problem, effects, 1), conditional.laplace(problem, effects)
    )


# --- Newton where it is hard -----------------------------------------------------------------------------


def solve_at(module, space, **fixed):
    """Solve with some global values replaced."""
    values, _ = space.evaluate(space.start.unsqueeze(0))
    for name, value in fixed.items():
        values[name] = torch.full_like(values[name], value)
    conditional = GroupConditional(module, module.data)
    problem = conditional.problem(values)
    return conditional, problem, conditional.solve(problem)


@pytest.mark.parametrize("tau", [1e-8, 1e-3, 1.0, 30.0, 1e3])
@pytest.mark.parametrize("intercept", [-5.0, 0.0, 9.0])
def test_newton_with_counts_of_ten_thousand(tau, intercept):
    data = frame(4, 5)
    data["count"] = np.repeat([10_000, 0, 3, 12_000], 5)
    module, space = build("count ~ 1 + (1 | g)", "poisson", data)
    conditional, problem, solved = solve_at(module, space, **{"1|g_sigma": tau, "Intercept": intercept})
    for c, (count, n) in enumerate([(10_000, 5), (0, 5), (3, 5), (12_000, 5)]):

        def slope(z, count=count, n=n):
            return n * (count - math.exp(min(intercept + tau * z, 700))) * tau - z

        expected = optimize.brentq(slope, -5e6, 5e6, xtol=1e-12, maxiter=1000)
        assert float(solved.mean[0][0, c, 0]) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert torch.isfinite(conditional.laplace(problem, solved)).all()


@pytest.mark.parametrize("tau", [1e-8, 1.0, 100.0, 1e4])
def test_newton_where_all_answers_are_yes(tau):
    data = frame(4, 5)
    data["b"] = np.repeat([1, 0, 1, 1], 5)
    module, space = build("b ~ 1 + (1 | g)", "bernoulli", data)
    conditional, problem, solved = solve_at(module, space, **{"1|g_sigma": tau, "Intercept": 0.2})
    for c, y in enumerate([1, 0, 1, 1]):

        def slope(z, y=y):
            return 5 * (y - expit(0.2 + tau * z)) * tau - z

        expected = optimize.brentq(slope, -1e6, 1e6, xtol=1e-13)
        assert float(solved.mean[0][0, c, 0]) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert torch.isfinite(conditional.laplace(problem, solved)).all()
    assert torch.isfinite(solved.log_det).all()


def test_newton_crossed_with_large_counts_and_sds():
    data = frame(6, 6)
    data["count"] = np.random.default_rng(0).poisson(np.exp(np.repeat([0, 9, 2, 5, 8, 1], 6)))
    module, space = build("count ~ 1 + (1 | g) + (1 | h)", "poisson", data)
    for tau in (0.01, 2.0, 50.0):
        conditional, problem, solved = solve_at(module, space, **{"1|g_sigma": tau, "1|h_sigma": tau})
        mode = [part.clone().requires_grad_() for part in solved.mean]
        gradients = torch.autograd.grad(conditional.joint(problem, mode).sum(), mode)
        assert max(float(g.abs().max()) for g in gradients) < 1e-3 * tau
        assert torch.isfinite(conditional.laplace(problem, solved)).all()


def test_a_good_start_needs_one_step():
    module, space = build("b ~ x + (1 | g)", "bernoulli")
    conditional = GroupConditional(module, module.data)
    problem = conditional.problem(space.evaluate(points(space))[0])
    mode = conditional.solve(problem).mean
    again = conditional.solve(problem, mode, steps=1).mean
    torch.testing.assert_close(again[0], mode[0], rtol=0, atol=1e-7)


def test_groups_without_rows_keep_their_prior():
    module, space = build("b ~ x + (1 + z | g)", "bernoulli")
    conditional = GroupConditional(module, module.data, sizes={"g": 10})
    problem = conditional.problem(space.evaluate(points(space))[0])
    effects = conditional.solve(problem)
    assert effects.mean[0].shape == (2, 10, 2)
    assert float(effects.mean[0][:, 8:].abs().max()) == 0.0
    torch.testing.assert_close(effects.primary[:, 8:], torch.eye(2, dtype=F64).expand(2, 2, 2, 2))


def test_without_group_effects_there_is_only_the_likelihood():
    data = frame(8, 6)
    module, space = build("y ~ x", data=data)
    values, _ = space.evaluate(points(space))
    expected = [
        stats.norm(
            module.linear_predictor(module.spec.mu, values, module.data)[s].numpy(), float(values["sigma"][s])
        )
        .logpdf(data["y"])
        .sum()
        for s in range(2)
    ]
    for kind in (GroupConditional, GaussianConditional):
        conditional = kind(module, module.data)
        np.testing.assert_allclose(conditional.evidence(conditional.problem(values)), expected)
