"""Variance of random intercepts from binary rows: ``grid`` of MC-GMENN (IJCAI 2024), and ``coverage``."""

import argparse
import warnings

import numpy as np
import pandas as pd

import pyro_armed as pa

GROUPS = (100, 1000, 10_000)
VARIANCES = (0.1, 1.0, 10.0)


def simulated(groups, rows, variance, seed):
    random = np.random.default_rng(seed)
    group = random.permutation(np.arange(rows) % groups)
    x = random.normal(size=(rows, 2))
    effects = random.normal(size=groups) * variance**0.5
    eta = 0.3 + x @ [0.5, -0.5] + effects[group]
    y = (random.uniform(size=rows) < 1 / (1 + np.exp(-eta))).astype(int)
    return pd.DataFrame({"y": y, "a": x[:, 0], "b": x[:, 1], "g": group})


def sds(groups, rows, variance, seed, draws=500):
    model = pa.ARMED("y ~ a + b + (1 | g)", simulated(groups, rows, variance, seed), family="bernoulli")
    idata = model.fit(restarts=1, draws=draws, log_likelihood=False, progressbar=False, seed=seed)
    return idata.posterior["1|g_sigma"].to_numpy().ravel(), idata.posterior.attrs["khat"]


def grid(seeds, rows):
    errors = []
    for seed in range(seeds):
        for groups in GROUPS:
            for variance in VARIANCES:
                draws, khat = sds(groups, rows, variance, seed, draws=300)
                estimate = np.median(draws) ** 2
                errors.append(abs(estimate - variance) / variance)
                low, high = np.quantile(draws, [0.05, 0.95]) ** 2
                print(
                    f"seed {seed} groups {groups} variance {variance}: {estimate:.3f} "
                    f"[{low:.3f}, {high:.3f}] relative error {errors[-1]:.3f} k-hat {khat:.2f}",
                    flush=True,
                )
    print(f"mean relative error {np.mean(errors):.3f} over {len(errors)} fits")


def coverage(seeds):
    for variance in VARIANCES:
        covered = 0
        for seed in range(seeds):
            low, high = np.quantile(sds(50, 500, variance, 1000 + seed)[0], [0.05, 0.95])
            covered += low <= variance**0.5 <= high
        print(f"50 groups x 10 rows, variance {variance}: {covered} of {seeds} covered", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", choices=("grid", "coverage"))
    parser.add_argument("--seeds", type=int, help="data sets; 1 for the grid and 100 for coverage if omitted")
    parser.add_argument("--rows", type=int, default=100_000, help="rows of each data set of the grid")
    options = parser.parse_args()
    if options.study == "grid":
        grid(options.seeds or 1, options.rows)
    else:
        coverage(options.seeds or 100)
