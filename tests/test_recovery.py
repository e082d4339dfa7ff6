"""Simulate from each response family and recover what was put in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, softmax

import pyro_armed as pa

pytestmark = pytest.mark.slow

GROUPS, ROWS, SEEDS = 25, 15, (0, 1)
AUXILIARY = {
    "gaussian": {"sigma": 1.0},
    "student_t": {"sigma": 1.0, "nu": 4.0},
    "negative_binomial": {"alpha": 2.0},
    "gamma": {"alpha": 2.0},
    "beta": {"kappa": 10.0},
}


def recovered(posterior: Any, truth: dict[str, float]) -> dict[str, float]:
    """Distances from the truth in posterior sds; positive quantities on their log scale."""
    distances = {}
    for name, value in truth.items():
        base, _, label = name.partition("[")
        variable = posterior[base]
        draws = variable.to_numpy().reshape(-1, *variable.shape[2:])
        if label:
            labels = [str(each) for each in variable[variable.dims[2]].to_numpy()]
            draws = draws[:, labels.index(label.rstrip("]"))]
        if base.endswith("_sigma") or base in ("sigma", "nu", "alpha", "kappa"):
            draws, value = np.log(draws), np.log(value)
        distances[name] = abs(draws.mean() - value) / draws.std()
    return distances


def check(formula: Any, frame: pd.DataFrame, family: str, truth: dict[str, float]) -> None:
    model = pa.ARMED(formula, frame, family=family)
    idata = model.fit(restarts=1, draws=400, seed=0, progressbar=False, log_likelihood=False)
    assert {name: far for name, far in recovered(idata.posterior, truth).items() if far > 3} == {}
    assert idata.posterior.attrs["khat"] < 0.7
    assert idata.posterior.attrs["converged"]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "family", ["gaussian", "student_t", "bernoulli", "poisson", "negative_binomial", "gamma", "beta"]
)
def test_family(family, seed):
    data = pa.simulate.mixed_model(GROUPS, ROWS, fixed=(0.3, 0.8), sds=(0.7,), family=family, seed=seed)
    truth = {"Intercept": 0.3, "x1": 0.8, "1|group_sigma": 0.7, **AUXILIARY.get(family, {})}
    check(data.formula, data.frame, family, truth)


@pytest.mark.parametrize("seed", SEEDS)
def test_ordinal(seed):
    data = pa.simulate.mixed_model(GROUPS, ROWS, fixed=(0.0, 0.8), sds=(0.7,), family="ordinal", seed=seed)
    truth = {"x1": 0.8, "1|group_sigma": 0.7, "threshold[0]": -1.0, "threshold[1]": 0.0, "threshold[2]": 1.0}
    check(data.formula, data.frame, "ordinal", truth)


def grouped(seed: int) -> tuple[np.random.Generator, pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(seed)
    code = np.repeat(np.arange(GROUPS), ROWS)
    frame = pd.DataFrame({"x": rng.normal(size=code.size), "group": [f"g{c}" for c in code]})
    return rng, frame, code


@pytest.mark.parametrize("seed", SEEDS)
def test_binomial(seed):
    rng, frame, code = grouped(seed)
    eta = 0.3 + 0.8 * frame["x"] + 0.7 * rng.normal(size=GROUPS)[code]
    frame["trials"] = rng.integers(1, 9, len(frame))
    frame["successes"] = rng.binomial(frame["trials"], expit(eta))
    truth = {"Intercept": 0.3, "x": 0.8, "1|group_sigma": 0.7}
    check("p(successes, trials) ~ x + (1 | group)", frame, "binomial", truth)


@pytest.mark.parametrize("seed", SEEDS)
def test_categorical(seed):
    rng, frame, code = grouped(seed)
    effects = rng.normal(size=(GROUPS, 2)) * [0.7, 1.1]
    logits = np.column_stack(
        [
            np.zeros(len(frame)),
            0.4 + 0.9 * frame["x"] + effects[code, 0],
            -0.2 - 0.6 * frame["x"] + effects[code, 1],
        ]
    )
    chances = softmax(logits, axis=1).cumsum(axis=1)
    frame["y"] = np.array(["a", "b", "c"])[(rng.uniform(size=len(frame))[:, None] > chances).sum(axis=1)]
    truth = {"Intercept[b]": 0.4, "Intercept[c]": -0.2, "x[b]": 0.9, "x[c]": -0.6}
    truth |= {"1|group_sigma[b]": 0.7, "1|group_sigma[c]": 1.1}
    check("y ~ x + (1 | group)", frame, "categorical", truth)


@pytest.mark.parametrize("seed", SEEDS)
def test_modelled_scale(seed):
    rng, frame, code = grouped(seed)
    mean = 0.3 + 0.8 * frame["x"] + 0.7 * rng.normal(size=GROUPS)[code]
    frame["y"] = mean + np.exp(-0.5 + 0.4 * frame["x"]) * rng.normal(size=len(frame))
    truth = {"Intercept": 0.3, "x": 0.8, "1|group_sigma": 0.7, "sigma_Intercept": -0.5, "sigma_x": 0.4}
    check(["y ~ x + (1 | group)", "sigma ~ x"], frame, "gaussian", truth)


@pytest.mark.parametrize("seed", SEEDS)
def test_correlated_slopes(seed):
    data = pa.simulate.mixed_model(
        30, ROWS, fixed=(0.3, 0.8), sds=(0.9, 0.6), correlation=0.5, family="poisson", seed=seed
    )
    truth = {"Intercept": 0.3, "x1": 0.8, "1|group_sigma": 0.9, "x1|group_sigma": 0.6}
    check(data.formula, data.frame, "poisson", truth)
