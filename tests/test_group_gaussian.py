"""The algebra of Gaussians over group effects, against dense matrices."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import multivariate_normal

from pyro_armed import families
from pyro_armed.design import FormulaDesign
from pyro_armed.group_gaussian import Effects, GroupGaussian, cholesky, solve_lower, solve_transposed
from pyro_armed.module import MixedEffectsModule
from pyro_armed.priors import PriorTable


@pytest.fixture(scope="module")
def crossed() -> GroupGaussian:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"y": rng.normal(size=60), "x": rng.normal(size=60), "g": np.arange(60) % 5, "h": np.arange(60) % 3}
    )
    design = FormulaDesign(["y ~ x + (1 + x | g) + (1 | h)"], frame, families.get("gaussian"))
    module = MixedEffectsModule(design.spec, PriorTable(design.spec), data=design.training.batch)
    return GroupGaussian(module, design.training.batch)


def arrow(algebra: GroupGaussian, seed: int) -> tuple[Effects, np.ndarray, np.ndarray]:
    """A random Gaussian of the right shape, and its dense mean and precision."""
    rng = np.random.default_rng(seed)
    groups, width, rest = 5, 2, 3
    root = rng.normal(size=(groups * width + rest,) * 2)
    precision = root @ root.T + 5 * np.eye(len(root))
    for a in range(groups):  # block diagonal where the primary factor's groups meet
        for b in range(groups):
            if a != b:
                precision[a * 2 : a * 2 + 2, b * 2 : b * 2 + 2] = 0.0
    precision += 20 * np.eye(len(precision))
    split = groups * width
    blocks = np.stack([precision[a * 2 : a * 2 + 2, a * 2 : a * 2 + 2] for a in range(groups)])
    parts = algebra._eliminate(
        torch.tensor(blocks)[None],
        torch.tensor(precision[:split, split:])[None],
        torch.tensor(precision[split:, split:])[None],
    )
    mean = rng.normal(size=len(precision))
    tables = [
        torch.tensor(mean[:split].reshape(1, groups, width)),
        torch.tensor(mean[split:].reshape(1, rest, 1)),
    ]
    return Effects(tables, *parts), mean, precision


def test_largest_factor_is_first(crossed: GroupGaussian) -> None:
    assert crossed.groups == ["g", "h"]
    assert (crossed.counts["g"], crossed.widths["g"]) == (5, 2)


@pytest.mark.parametrize("seed", [0, 1])
def test_log_density_is_that_of_the_dense_gaussian(crossed: GroupGaussian, seed: int) -> None:
    effects, mean, precision = arrow(crossed, seed)
    point = np.random.default_rng(seed + 10).normal(size=len(mean))
    z = [torch.tensor(point[:10].reshape(1, 5, 2)), torch.tensor(point[10:].reshape(1, 3, 1))]
    expected = multivariate_normal(mean, np.linalg.inv(precision)).logpdf(point)
    assert float(crossed.log_density(effects, z)) == pytest.approx(expected, rel=1e-10)
    assert float(effects.log_det) == pytest.approx(np.linalg.slogdet(precision)[1], rel=1e-10)


def test_draws_are_the_inverse_of_a_root_of_the_precision(crossed: GroupGaussian) -> None:
    effects, mean, precision = arrow(crossed, 2)
    columns = []
    for unit in np.eye(len(mean)):
        noise = [torch.tensor(unit[:10].reshape(1, 5, 2)), torch.tensor(unit[10:].reshape(1, 3, 1))]
        z = crossed.draw(effects, noise)
        columns.append(np.concatenate([part.numpy().ravel() for part in z]) - mean)
    root = np.stack(columns, axis=1)
    assert np.allclose(root @ root.T, np.linalg.inv(precision), atol=1e-12)


def test_solving_is_multiplying_by_the_inverse(crossed: GroupGaussian) -> None:
    effects, mean, precision = arrow(crossed, 3)
    scores = np.random.default_rng(5).normal(size=len(mean))
    parts = [torch.tensor(scores[:10].reshape(1, 5, 2)), torch.tensor(scores[10:].reshape(1, 3, 1))]
    factors = (effects.primary, effects.cross, effects.rest, effects.log_det)
    solved = np.concatenate([part.numpy().ravel() for part in crossed._apply_inverse(factors, parts)])
    assert np.allclose(solved, np.linalg.solve(precision, scores), atol=1e-12)


def test_draws_by_group_have_the_density_by_group() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"y": rng.normal(size=20), "g": np.arange(20) % 4})
    design = FormulaDesign(["y ~ 1 + (1 | g)"], frame, families.get("gaussian"))
    module = MixedEffectsModule(design.spec, PriorTable(design.spec), data=design.training.batch)
    algebra = GroupGaussian(module, design.training.batch)
    blocks = torch.tensor(rng.uniform(1, 3, size=(1, 4, 1, 1)))
    empty = torch.zeros(1, 4, 0, dtype=torch.float64)
    effects = Effects(
        [torch.zeros(1, 4, 1, dtype=torch.float64)], *algebra._eliminate(blocks, empty, empty[:, :0])
    )
    z = [torch.tensor(rng.normal(size=(1, 4, 1)))]
    by_group = algebra.density_by_group(effects, z)
    assert by_group.sum().item() == pytest.approx(float(algebra.log_density(effects, z)), rel=1e-12)


@pytest.mark.parametrize("width", [1, 3])
def test_triangular_systems(width):
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(2, 4, width, width, generator=generator, dtype=torch.float64)
    blocks = root @ root.mT + torch.eye(width, dtype=torch.float64)
    right = torch.randn(2, 4, width, 5, generator=generator, dtype=torch.float64)
    factor = cholesky(blocks)
    torch.testing.assert_close(factor @ factor.mT, blocks)
    torch.testing.assert_close(factor @ solve_lower(factor, right), right)
    torch.testing.assert_close(factor.mT @ solve_transposed(factor, right), right)
