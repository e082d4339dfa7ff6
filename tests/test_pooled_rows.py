"""Rows that are alike, as one: nothing that a Gaussian model says of them may change."""

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_armed as pa
from pyro_armed import pooled_rows
from pyro_armed.gaussian_conditional import GaussianConditional
from pyro_armed.global_space import GlobalSpace
from pyro_armed.pooled_rows import PooledRows, equal_rows, pool_rows

F64 = torch.float64
FORMULAS = {
    "intercepts": "y ~ x + (1 | g)",
    "slopes": "y ~ x + offset(z) + (1 + x | g) + (1 | h)",
    "none": "y ~ x",
}


def frame(rows=400, seed=0):
    """Few different predictors and groups; weights, some of them zero."""
    random = np.random.default_rng(seed)
    data = pd.DataFrame({"x": random.integers(0, 3, rows) / 2.0, "z": random.integers(0, 2, rows) - 0.5})
    data["g"], data["h"] = random.integers(0, 5, rows).astype(str), random.integers(0, 3, rows).astype(str)
    data["y"] = 50.0 + data["x"] + data["g"].astype(float) + random.normal(size=rows)
    data["w"] = random.integers(0, 3, rows).astype(float)
    return data


def module_of(formula, **options):
    return pa.ARMED(formula, options.pop("data", frame()), **options).module


@pytest.mark.parametrize("weights", [None, "w"])
@pytest.mark.parametrize("key", FORMULAS)
def test_the_likelihood_is_that_of_all_rows(key, weights):
    module = module_of(FORMULAS[key], weights=weights)
    pooled = pool_rows(module.data)
    assert pooled.batch.size < 100
    assert pooled.batch.n_rows == 400
    space = GlobalSpace(module)
    noise = torch.randn(3, space.size, generator=torch.Generator().manual_seed(1), dtype=F64)
    values, _ = space.evaluate(space.start + 0.5 * noise)
    every = GaussianConditional(module, module.data)
    few = GaussianConditional(module, pooled.batch, within=pooled.within)
    method = "integrated" if every.groups else "evidence"
    expected, found = (getattr(one, method)(one.problem(values)) for one in (every, few))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-8)
    if every.groups:
        pairs = zip(every.solve(every.problem(values)).mean, few.solve(few.problem(values)).mean, strict=True)
        for a, b in pairs:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_fits_are_the_same_with_and_without(monkeypatch):
    options = {"restarts": 1, "draws": 50, "progressbar": False}
    pooled = pa.ARMED(FORMULAS["slopes"], frame()).fit(**options)
    monkeypatch.setattr(pooled_rows, "_MOST", 0.0)
    every = pa.ARMED(FORMULAS["slopes"], frame()).fit(**options)
    for name in ("x", "sigma", "1|g", "1|h_sigma"):
        a, b = (idata["posterior"][name].to_numpy() for idata in (pooled, every))
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [400, 5000])
def test_rows_that_differ_stay(rows):
    data = frame(rows).assign(x=np.random.default_rng(3).normal(size=rows))
    module = module_of("y ~ x + (1 | g)", data=data)
    pooled = pool_rows(module.data)
    assert pooled.batch is module.data
    assert pooled.within is None


def test_many_rows_are_pooled_too():
    module = module_of("y ~ x + (1 | g)", data=frame(5000))
    assert pool_rows(module.data).batch.size == 15


def test_images_stay():
    images = np.zeros((60, 1, 8, 8), dtype=np.float32)
    y, site = np.random.default_rng(4).normal(size=60), np.arange(60) % 3
    network = pa.networks.CNN(channels=(2,), hidden=(3,))
    module = pa.ARMED.from_arrays(images, y, groups={"site": site}, network=network).module
    assert isinstance(pool_rows(module.data), PooledRows)
    assert pool_rows(module.data).batch is module.data


def test_different_rows_with_the_same_sum_are_told_apart(monkeypatch):
    """Sums that happen to be equal say nothing."""
    monkeypatch.setattr(torch, "randn", lambda *size, dtype=None, **_: torch.ones(*size, dtype=dtype))
    first, which = equal_rows([torch.tensor([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0]])])
    assert first.tolist() == which.tolist() == [0, 1, 2]
