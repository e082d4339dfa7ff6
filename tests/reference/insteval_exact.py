"""The crossed model of InstEval without a sampler: add the fit ``insteval`` to ``nuts.json``.

Given the three sds, the posterior of ``y ~ service + (1 | s) + (1 | d)`` is Gaussian in its 4102
coefficients, so only the sds need Monte Carlo: importance sampling on their logarithms from a wide Student t
at the mode, each draw weighed by the exact marginal density (students eliminated, then one Cholesky of
lecturers and coefficients).
"""

from __future__ import annotations

import time
from typing import Any

import arviz as az
import numpy as np
from frames import FRAMES, codes
from nuts import store
from scipy import linalg, optimize, sparse, stats

DRAWS, INNER, DF = 1500, 20, 10
KEEP_S, KEEP_D = 18, 7


class Crossed:
    """Sums over the rows, and the exact conditional posterior at given sds (tau_s, tau_d, sigma)."""

    def __init__(self, y: np.ndarray, x: np.ndarray, s: np.ndarray, d: np.ndarray) -> None:
        self.n, self.scale, self.mean_x = len(y), float(y.std()), x.mean()
        self.y = y - y.mean()
        self.prior_sd = np.array([2.5 * self.scale, 2.5 * self.scale / x.std()])
        rows = np.arange(self.n)
        ones = np.ones(self.n)
        self.n_d = int(d.max()) + 1
        zs = sparse.csr_matrix((ones, (rows, s)))
        dense = np.c_[ones, x - self.mean_x]
        self.fixed = sparse.hstack([sparse.csr_matrix(dense), sparse.csr_matrix((ones, (rows, d)))]).tocsr()
        self.counts = np.bincount(s).astype(float)
        self.cross = (zs.T @ self.fixed).tocsr()
        self.gram = (self.fixed.T @ self.fixed).toarray()
        self.sy, self.fy = zs.T @ self.y, self.fixed.T @ self.y

    def solve(self, tau_s: float, tau_d: float, sigma: float) -> tuple[float, Any, np.ndarray, np.ndarray]:
        """Log marginal likelihood; Cholesky and mean of (intercept, slope, lecturers); own precisions."""
        own = self.counts / sigma**2 + tau_s**-2
        prior = np.r_[self.prior_sd**-2, np.full(self.n_d, tau_d**-2)]
        weighted = sparse.diags(1 / own) @ self.cross / sigma**4
        schur = self.gram / sigma**2 + np.diag(prior) - (self.cross.T @ weighted).toarray()
        right = self.fy / sigma**2 - self.cross.T @ (self.sy / own) / sigma**4
        chol = linalg.cho_factor(schur, lower=True)
        mean = linalg.cho_solve(chol, right)
        logdet = 2 * np.log(np.diag(chol[0])).sum() + np.log(own).sum() - np.log(prior).sum()
        logdet += 2 * len(own) * np.log(tau_s)
        quad = self.y @ self.y / sigma**2 - (self.sy**2 / own).sum() / sigma**4 - right @ mean
        return -0.5 * (self.n * np.log(2 * np.pi * sigma**2) + logdet + quad), chol, mean, own

    def log_density(self, logs: np.ndarray) -> float:
        """Log posterior density of the logarithms of the sds, up to a constant."""
        tau_s, tau_d, sigma = np.exp(logs)
        prior = stats.t.logpdf([tau_s, tau_d], 3, scale=2.5 * self.scale).sum()
        prior += stats.t.logpdf(sigma, 4, scale=self.scale)
        return self.solve(tau_s, tau_d, sigma)[0] + prior + logs.sum()


def hessian(f: Any, at: np.ndarray, step: float = 0.01) -> np.ndarray:
    """Second derivatives by central differences."""
    size = len(at)
    out = np.empty((size, size))
    e = np.eye(size) * step
    for i in range(size):
        for j in range(size):
            out[i, j] = f(at + e[i] + e[j]) - f(at + e[i] - e[j]) - f(at - e[i] + e[j]) + f(at - e[i] - e[j])
    return out / (4 * step**2)


def describe(values: np.ndarray, weights: np.ndarray, ess: float) -> dict[str, float]:
    """Weighted moments and quantiles."""
    order = np.argsort(values)
    cumulative = np.cumsum(weights[order]) - 0.5 * weights[order]
    quantiles = np.interp([0.05, 0.5, 0.95], cumulative, values[order])
    mean = weights @ values
    out = {"mean": float(mean), "sd": float(np.sqrt(weights @ (values - mean) ** 2))}
    out.update(zip(("q5", "q50", "q95"), map(float, quantiles), strict=True))
    return {**out, "ess_bulk": round(ess)}


def sample_sds(model: Crossed, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """Logarithms of the three sds (draws, 3), their Pareto-smoothed weights and Pareto k-hat."""
    mode = optimize.minimize(
        lambda z: -model.log_density(z),
        np.log([0.325, 0.521, 1.178]),
        method="Nelder-Mead",
        options={"xatol": 1e-4, "fatol": 1e-3},
    ).x
    covariance = np.linalg.inv(-hessian(model.log_density, mode))
    proposal = stats.multivariate_t(mode, 1.1 * covariance, df=DF, seed=rng)
    logs = proposal.rvs(DRAWS)
    smoothed, khat = az.psislw(np.array([model.log_density(z) for z in logs]) - proposal.logpdf(logs))
    weights = np.exp(smoothed - smoothed.max())
    return logs, weights / weights.sum(), float(khat)


def integrate(
    model: Crossed, logs: np.ndarray, weights: np.ndarray, kept: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means and sds of (intercept, slope, lecturers, kept students); draws (S, INNER, 2) of the first two."""
    rows = model.cross[kept].toarray()
    means = np.empty((len(logs), 2 + model.n_d + len(kept)))
    variances = np.empty_like(means)
    fixed = np.empty((len(logs), INNER, 2))
    for k, z in enumerate(logs):
        tau_s, tau_d, sigma = np.exp(z)
        _, chol, mean, own = model.solve(tau_s, tau_d, sigma)
        inverse = linalg.cho_solve(chol, np.eye(len(mean)))
        a = own[kept]
        means[k] = np.r_[mean, (model.sy[kept] - rows @ mean) / a / sigma**2]
        variances[k] = np.r_[np.diag(inverse), 1 / a + ((rows @ inverse) * rows).sum(1) / a**2 / sigma**4]
        fixed[k] = rng.multivariate_normal(mean[:2], inverse[:2, :2], INNER)
    centre = weights @ means
    return centre, np.sqrt(weights @ (variances + (means - centre) ** 2)), fixed


def main() -> None:
    """Run the importance sampler and store the fit."""
    frame = FRAMES["insteval"]()
    s, s_labels = codes(frame["s"])
    d, d_labels = codes(frame["d"])
    y, x = frame["y"].to_numpy(float), frame["service"].to_numpy(float)
    start = time.perf_counter()
    model, rng = Crossed(y, x, s, d), np.random.default_rng(20261123)
    logs, weights, khat = sample_sds(model, rng)
    ess = float(1 / (weights**2).sum())
    kept = np.arange(0, len(s_labels), KEEP_S)
    centre, sd, fixed = integrate(model, logs, weights, kept, rng)

    inner, slope = np.repeat(weights, INNER) / INNER, fixed[..., 1].ravel()
    parameters = {
        "Intercept": describe(fixed[..., 0].ravel() + y.mean() - slope * model.mean_x, inner, ess * INNER),
        "service": describe(slope, inner, ess * INNER),
    }
    for k, name in enumerate(("1|s_sigma", "1|d_sigma", "sigma")):
        parameters[name] = describe(np.exp(logs[:, k]), weights, ess)
    students, lecturers = slice(2 + model.n_d, None), slice(2, 2 + model.n_d, KEEP_D)
    effects = {
        f"1|{group}": {"group": labels, "mean": centre[part].tolist(), "sd": sd[part].tolist()}
        for group, labels, part in (("s", s_labels[::KEEP_S], students), ("d", d_labels[::KEEP_D], lecturers))
    }
    result = {
        "formula": "y ~ service + (1 | s) + (1 | d)",
        "data": "insteval",
        "family": "gaussian",
        "n": len(y),
        "groups": {"s": len(s_labels), "d": len(d_labels)},
        "method": "importance sampling of the sds, coefficients and effects integrated out",
        "script": "insteval_exact.py",
        "draws": DRAWS,
        "khat": round(khat, 3),
        "ess": round(ess),
        "seconds": round(time.perf_counter() - start, 1),
        "parameters": parameters,
        "effects": effects,
    }
    store("insteval", result)
    print("insteval", {key: result[key] for key in ("seconds", "khat", "ess")})


if __name__ == "__main__":
    main()
