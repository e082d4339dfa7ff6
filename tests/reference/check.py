"""Check the reference figures: closed forms against dense normal densities, NUTS against lme4.

Run in this folder: ``python check.py``. It prints a table and fails if a closed form is wrong, a chain has
not converged or a posterior is far from the likelihood's estimate.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpyro
from insteval_exact import Crossed
from numpyro import handlers
from nuts_models import conditional_effects, marginalised, statistics
from nuts_specs import SPECS
from scipy import stats

HERE = Path(__file__).parent
# Of a posterior sd: what weak priors and skewed posteriors of sds may move a median.
FAR = 0.6


def check_marginalised(name: str) -> None:
    """Density and conditional means of a prior draw, against the normal density over all rows."""
    spec = SPECS[name]()
    sums = statistics(spec)
    with handlers.seed(rng_seed=1), handlers.trace() as trace:
        marginalised(spec, sums)
    draw = {key: np.asarray(site["value"]) for key, site in trace.items() if site["name"] != "y"}
    beta = draw.get("beta", np.zeros(0))
    covariance = draw["sigma"] ** 2 * np.eye(len(spec.y))
    parts = {}
    for group in spec.groups:
        lower = np.diag(draw[f"{group.name}_sd"]) @ draw.get(f"{group.name}_chol", np.eye(len(group.terms)))
        design = group.design() @ lower
        same = group.codes[:, None] == group.codes
        covariance = covariance + design @ design.T * same
        indicator = np.eye(len(group.labels))[group.codes]
        parts[group.name] = (indicator, design, lower)
    residual = spec.y - draw["centred"] - (spec.x - spec.x.mean(axis=0)) @ beta
    law = stats.multivariate_normal(np.zeros(len(residual)), covariance)
    constant = 0.5 * len(residual) * np.log(2 * np.pi)
    np.testing.assert_allclose(trace["y"]["fn"].log_factor, law.logpdf(residual) + constant, rtol=1e-8)
    solved = np.linalg.solve(covariance, residual)
    moments = conditional_effects(spec, sums, {key: value[None] for key, value in draw.items()})
    for key, (indicator, design, lower) in parts.items():
        expected = indicator.T @ (design * solved[:, None]) @ lower.T
        np.testing.assert_allclose(moments[key][0], expected, atol=1e-8)


def check_crossed() -> None:
    """Marginal density and posterior of the crossed model on 300 simulated rows, against dense algebra."""
    rng = np.random.default_rng(0)
    s, d = (np.r_[np.arange(count), rng.integers(0, count, 300 - count)] for count in (25, 12))
    x, y = rng.integers(0, 2, 300).astype(float), rng.normal(size=300) + rng.normal(size=25)[s]
    model = Crossed(y, x, s, d)
    tau_s, tau_d, sigma = 0.4, 0.9, 1.1
    fixed = np.c_[np.ones(300), x - x.mean()] * model.prior_sd
    students, lecturers = tau_s * np.eye(25)[s], tau_d * np.eye(12)[d]
    covariance = fixed @ fixed.T + students @ students.T + lecturers @ lecturers.T + sigma**2 * np.eye(300)
    value, _, mean, own = model.solve(tau_s, tau_d, sigma)
    np.testing.assert_allclose(value, stats.multivariate_normal(np.zeros(300), covariance).logpdf(model.y))
    solved = np.linalg.solve(covariance, model.y)
    expected = np.r_[model.prior_sd * (fixed.T @ solved), tau_d * (lecturers.T @ solved)]
    np.testing.assert_allclose(mean, expected, atol=1e-10)
    effects = (model.sy - model.cross @ mean) / own / sigma**2
    np.testing.assert_allclose(effects, tau_s * (students.T @ solved), atol=1e-10)


def compare() -> None:
    """Print (posterior median - estimate) / posterior sd for every parameter that both files have."""
    files = (HERE / "nuts.json", HERE / "lme4.json")
    sampled, classical = (json.loads(file.read_text())["fits"] for file in files)
    for name, fit in sampled.items():
        if fit["method"].startswith("NUTS"):
            assert max(fit["max_rhat"], fit.get("effects_max_rhat", 1)) < 1.01, name
            assert min(fit["min_ess_bulk"], fit["min_ess_tail"]) > 1000, name
        if name not in classical:
            continue
        for key, estimate in classical[name]["parameters"].items():
            value, posterior = estimate["estimate"], fit["parameters"][key]
            z = (posterior["q50"] - value) / posterior["sd"]
            ratio = posterior["sd"] / estimate.get("se", float("nan"))
            print(f"{name:34s} {key:22s} {value:10.4f} {posterior['q50']:10.4f} {z:6.2f} {ratio:6.2f}")
            assert abs(z) < FAR, (name, key)


def main() -> None:
    """Run the checks."""
    numpyro.enable_x64()
    for name in ("sleepstudy", "sleepstudy_uncorrelated", "penicillin", "pastes"):
        check_marginalised(name)
    check_crossed()
    compare()


if __name__ == "__main__":
    main()
