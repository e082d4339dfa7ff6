"""Textbook mixed models against the figures of NUTS and lme4 in ``reference``, with the default guide.

Tolerances: 2000 draws give an sd to 1.6 % (one standard error, normal tails) and a mean to 0.022 sd, NUTS's
own figures rest on at least 1000 effective draws; sds are promised within 10 %, means within 0.15 sd.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyro_armed as pa

REFERENCE = Path(__file__).parent / "reference"
NUTS = json.loads((REFERENCE / "nuts.json").read_text())["fits"]
LME4 = json.loads((REFERENCE / "lme4.json").read_text())["fits"]

SD, MEAN = 0.10, 0.15


@dataclass(frozen=True)
class Comparison:
    """Figures beside those of NUTS, by name."""

    sd_ratio: dict[str, float]
    shift: dict[str, float]
    effects: dict[str, float]
    means: dict[str, float]
    attributes: dict[str, Any]


def flat(posterior: Any, name: str) -> dict[str, np.ndarray]:
    """Draws (S, ...) of a variable by the names of the reference files; group effects keep their groups."""
    variable = posterior[name]
    values = variable.to_numpy().reshape(-1, *variable.shape[2:])
    if name.endswith("_corr"):
        return {name: values[:, 0, 1]}
    dims = [d for d in variable.dims[2:] if not d.endswith("__factor_dim")]
    if not dims or dims[0].endswith("__expr_dim"):
        return {name: values.reshape(*values.shape[: values.ndim - len(dims)])}
    labels = variable[dims[0]].to_numpy()
    return {f"{name}[{label}]": values[..., k] for k, label in enumerate(labels)}


def compare(key: str, restarts: int = 2, draws: int = 1000) -> Comparison:
    """Fit a model of the reference file and put the figures side by side."""
    fit = NUTS[key]
    frame = pa.datasets.load(fit["data"])
    if "service" in frame:
        frame["service"] = frame["service"].astype(int)  # a number in the reference
    model = pa.ARMED(fit["formula"], frame, family=fit["family"])
    idata = model.fit(restarts=restarts, draws=draws, progressbar=False, log_likelihood=False, seed=0)
    posterior = idata.posterior
    drawn = {k: v for name in posterior.data_vars for k, v in flat(posterior, name).items()}
    sd_ratio, shift, effects = {}, {}, {}
    for name, figures in fit["parameters"].items():
        if name == "cHEIGHT":  # scale(cHEIGHT) in other units
            continue
        values = drawn[name]
        sd_ratio[name] = values.std() / figures["sd"]
        shift[name] = (values.mean() - figures["mean"]) / figures["sd"]
    for name, table in (fit.get("effects") or {}).items():
        dim = f"{name.split('|')[1].split('[')[0]}__factor_dim"
        position = {str(label): k for k, label in enumerate(posterior[dim].to_numpy())}
        at = [position[str(label)] for label in table["group"]]
        effects[name] = float(np.median(drawn[name][:, at].std(0) / np.asarray(table["sd"])))
    means = {name: float(values.mean()) for name, values in drawn.items() if values.ndim == 1}
    return Comparison(sd_ratio, shift, effects, means, dict(posterior.attrs))


# Fits of some seconds; the others are marked slow.
FAST = ("sleepstudy", "cbpp", "penicillin", "pastes")
SLOW = (
    "contraception_intercept",
    "contraception_slope",
    "grouseticks",
    "guimmun",
    "hsb82",
    "insteval_lecturers",
    "sleepstudy_uncorrelated",
    "wine",
)
KEYS = [*FAST, *(pytest.param(key, marks=pytest.mark.slow) for key in SLOW)]
# Restarts and draws where two restarts of 1000 draws would take long.
COSTLY = {
    "contraception_intercept": (1, 2000),
    "contraception_slope": (1, 2000),
    "grouseticks": (1, 2000),
    "guimmun": (1, 1000),
    "insteval_lecturers": (1, 2000),
}


@cache
def comparison(key: str) -> Comparison:
    return compare(key, *COSTLY.get(key, (2, 1000)))


@pytest.mark.parametrize("key", KEYS)
def test_standard_deviations_are_those_of_nuts(key):
    ratios = comparison(key).sd_ratio
    assert {name: ratio for name, ratio in ratios.items() if abs(ratio - 1) > SD} == {}


@pytest.mark.parametrize("key", KEYS)
def test_means_are_those_of_nuts(key):
    shifts = comparison(key).shift
    assert {name: shift for name, shift in shifts.items() if abs(shift) > MEAN} == {}


@pytest.mark.parametrize("key", KEYS)
def test_standard_deviations_of_the_effects_are_those_of_nuts(key):
    effects = comparison(key).effects
    assert {name: ratio for name, ratio in effects.items() if abs(ratio - 1) > SD} == {}


@pytest.mark.parametrize("key", KEYS)
def test_the_guide_vouches_for_itself(key):
    attributes = comparison(key).attributes
    assert attributes["converged"]
    assert attributes["khat"] < 0.7
    assert attributes["importance_corrected"]


@pytest.mark.parametrize("key", KEYS)
def test_fixed_effects_are_those_of_lme4(key):
    """Posterior means within a third of a standard error of the maximum-likelihood estimates."""
    figures = LME4.get(key, {"parameters": {}})["parameters"]
    means = comparison(key).means
    far = {
        name: (means[name] - figure["estimate"]) / figure["se"]
        for name, figure in figures.items()
        if name in means and figure.get("se") and abs(means[name] - figure["estimate"]) > figure["se"] / 3
    }
    assert far == {}


def test_every_reference_of_nuts_has_its_names():
    """A misspelt name would leave a parameter uncompared."""
    for key in FAST:
        result = comparison(key)
        assert set(result.sd_ratio) == set(NUTS[key]["parameters"])
        assert set(result.effects) == set(NUTS[key]["effects"])
