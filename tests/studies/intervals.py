"""Rows of new groups, no network: coverage of 50, 80, 95 % intervals (gaussian), or (bernoulli) whether the
calibration error is one that a right model has at times, by `diagnostics.calibration` and by rows alone.
"""

import argparse
import warnings

import numpy as np
import pandas as pd

import pyro_armed as pa
from pyro_armed.metrics import expected_calibration_error


def simulated(random, groups, rows, prefix, slope, family):
    group = np.repeat(np.arange(groups), rows)
    x = random.normal(size=len(group))
    eta = 0.5 + slope * x + (random.normal(size=groups) * 0.8)[group]
    if family == "gaussian":
        y = eta + random.normal(size=len(eta))
    else:
        y = (random.uniform(size=len(eta)) < 1 / (1 + np.exp(-eta))).astype(int)
    return pd.DataFrame({"x": x, "g": [f"{prefix}{k}" for k in group], "y": y})


def at_least(error, probability, responses):
    """Share of simulated responses whose calibration error is at least as large."""
    errors = [expected_calibration_error(probability, y, replicates=0).value for y in responses]
    return np.mean(np.asarray(errors) >= error)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family", choices=("gaussian", "bernoulli"))
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    found = []
    for seed in range(options.seeds):
        random = np.random.default_rng(1000 + seed)
        slope = random.normal()
        train = simulated(random, 30, 10, "t", slope, options.family)
        new = simulated(random, 400, 5, "n", slope, options.family)
        model = pa.ARMED("y ~ x + (1 | g)", train, family=options.family)
        model.fit(restarts=1, draws=500, seed=seed, progressbar=False, log_likelihood=False)
        scores = model.evaluate(new, new_groups="marginal", seed=seed).set_index("metric")["value"]
        if options.family == "gaussian":
            found.append([scores[f"coverage_{level}"] for level in (50, 80, 95)])
        else:
            how = {"new_groups": "marginal", "seed": seed}
            p = model.predict(new, **how)["predictions"]["y"].mean(("chain", "draw")).to_numpy()
            # Rows of a group share its effect, and all rows the parameters.
            joint = pa.diagnostics.calibration(model, new, **how).attrs["p"]
            tossed = (random.uniform(size=(200, len(p))) < p).astype(int)
            found.append([joint >= 0.05, at_least(scores["ece"], p, tossed) >= 0.05])
        print(f"seed {seed}:", *found[-1], flush=True)
    print("mean over data sets", np.mean(found, axis=0).round(4))
