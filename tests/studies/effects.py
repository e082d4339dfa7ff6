"""Coverage of group effects' 90 % intervals with an MLP: 60 groups of 25 rows, Gaussian and Bernoulli."""

import argparse
import warnings

import numpy as np
import pandas as pd

import pyro_armed as pa

GROUPS, ROWS = 60, 25


def covered(family, seed):
    random = np.random.default_rng(seed)
    group = np.repeat(np.arange(GROUPS), ROWS)
    x = random.normal(size=(len(group), 2))
    effects = random.normal(size=GROUPS) * 0.7
    eta = np.sin(2 * x[:, 0]) + 0.5 * x[:, 1] ** 2 - 0.5 + effects[group]
    if family == "gaussian":
        y = eta + random.normal(size=len(eta)) * 0.8
    else:
        y = (random.uniform(size=len(eta)) < 1 / (1 + np.exp(-eta))).astype(int)
    data = pd.DataFrame({"y": y, "a": x[:, 0], "b": x[:, 1], "g": group})
    network = pa.networks.MLP(hidden=(16, 16))
    model = pa.ARMED("y ~ a + b + (1 | g)", data, family=family, network=network)
    idata = model.fit(restarts=1, log_likelihood=False, progressbar=False, seed=seed)
    draws = idata.posterior["1|g"].to_numpy().reshape(-1, GROUPS)
    low, high = np.quantile(draws, [0.05, 0.95], axis=0)
    return (low <= effects) & (effects <= high)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    for family in ("gaussian", "bernoulli"):
        found = []
        for seed in range(options.seeds):
            found.append(covered(family, seed).mean())
            print(f"{family} seed {seed}: {found[-1]:.3f}", flush=True)
        se = np.std(found) / max(1, len(found) - 1) ** 0.5
        print(f"{family}: {np.mean(found):.3f} (se over data sets {se:.3f})", flush=True)
