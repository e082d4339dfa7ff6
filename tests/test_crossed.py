"""Products between crossed groups, and determinants with their derivatives."""

import numpy as np
import pytest
import torch

import pyro_armed.crossed
from pyro_armed.crossed import CrossProducts, log_determinant

F64 = torch.float64


def table(rows=300, columns=40, share=0.03, seed=0):
    random = np.random.default_rng(seed)
    values = random.poisson(2.0, (rows, columns)) * (random.uniform(size=(rows, columns)) < share)
    return torch.as_tensor(values, dtype=F64)


def test_weighted_products_are_those_of_the_dense_table():
    crossed = table()
    crossed[7] = 0.0  # a group that meets no other
    weight = torch.as_tensor(np.random.default_rng(1).uniform(0.1, 2.0, (3, 300)))
    products = CrossProducts.of(crossed)
    expected = torch.einsum("sc,ci,cj->sij", weight, crossed, crossed)
    torch.testing.assert_close(products.weighted(weight), expected)


def test_derivative_of_weighted_products():
    products = CrossProducts.of(table(40, 12, 0.1))
    weight = torch.rand(2, 40, dtype=F64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(products.weighted, weight)


def test_a_full_table_is_left_to_matrix_products():
    assert CrossProducts.of(table(share=1.0)) is None


def test_too_many_pairs_for_memory_are_left_to_matrix_products(monkeypatch):
    monkeypatch.setattr(pyro_armed.crossed, "_MOST_PAIRS", 10)
    assert CrossProducts.of(table()) is None


def test_log_determinant_and_its_derivative():
    root = torch.randn(2, 5, 5, dtype=F64, generator=torch.Generator().manual_seed(0))
    matrix = (root @ root.mT + torch.eye(5, dtype=F64)).requires_grad_()
    value = log_determinant(matrix, torch.linalg.cholesky(matrix.detach()))
    torch.testing.assert_close(value, torch.logdet(matrix))
    (ours,) = torch.autograd.grad(value.sum(), matrix)
    (theirs,) = torch.autograd.grad(torch.logdet(matrix).sum(), matrix)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_cost_decides(share):
    """Pairs are gathered where they are few beside the multiplications of a matrix product."""
    crossed = table(1000, 60, share)
    pairs = int((crossed > 0).sum(1).square().sum())
    chosen = CrossProducts.of(crossed)
    assert (chosen is not None) == (pairs * 10 <= 1000 * 60 * 60)
    if chosen is not None:
        assert len(chosen.group) == pairs
