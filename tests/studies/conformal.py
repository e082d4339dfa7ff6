"""Coverage of 90 % conformal intervals and sets for rows of new groups, where the model is wrong.

``noise``: a model of Gaussian noise and effects, where both are Student t with 2.5 degrees of freedom.
``sets``: linear predictors of three levels, where the truth is a sine of which training has only a part.
"""

import argparse
import warnings

import numpy as np
import pandas as pd

import pyro_armed as pa

LEVEL, TRAIN, NEW, ROWS = 0.9, 20, 200, 6
CALIBRATION = (20, 50, 200)


def simulated(random, study, groups, prefix):
    """Groups of 1 to 11 rows, 6 on average."""
    group = np.repeat(np.arange(groups), random.integers(1, 2 * ROWS, groups))
    narrow = study == "sets" and prefix == "t"
    x = random.normal(size=len(group)) * (0.5 if narrow else 1.0)
    effects = random.standard_t(2.5, groups)[group]
    if study == "noise":
        y = 0.5 + x + 0.8 * effects + random.standard_t(2.5, len(x))
    else:
        utilities = np.stack([np.zeros(len(x)), 3 * np.sin(2 * x) + effects, -1 - effects], axis=1)
        y = (utilities + random.gumbel(size=utilities.shape)).argmax(axis=1)
    return pd.DataFrame({"y": y, "x": x, "g": [f"{prefix}{k}" for k in group]})


def regions(model, study, new, calibration, seed):
    """Whether each row is covered, and the width of its interval or the size of its set."""
    how = {"intervals": "posterior"} if calibration is None else {"intervals": "conformal"}
    found = model.predict(new, new_groups="marginal", calibration=calibration, level=LEVEL, seed=seed, **how)[
        "predictions"
    ]
    y = new["y"].to_numpy()
    if study == "sets":
        members = found["in_set"].to_numpy()
        return members[np.arange(len(y)), y], members.sum(axis=1)
    low, high = found["lower"].to_numpy(), found["upper"].to_numpy()
    return (y >= low) & (y <= high), high - low


def of_data_set(study, seed):
    """Coverage of a row of a new group, and mean width, by the number of calibration groups."""
    random = np.random.default_rng(seed)
    family = "gaussian" if study == "noise" else "categorical"
    model = pa.ARMED("y ~ x + (1 | g)", simulated(random, study, TRAIN, "t"), family=family)
    model.fit(restarts=1, draws=200, log_likelihood=False, progressbar=False, seed=seed)
    found = {}
    for count in (0, *CALIBRATION):
        calibration = simulated(random, study, count, "c") if count else None
        new = simulated(random, study, NEW, "n")
        covered, width = regions(model, study, new, calibration, seed)
        # The promise is for a row of a new group, whatever its size.
        found[count] = pd.Series(covered).groupby(new["g"]).mean().mean(), np.mean(width)
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", choices=("noise", "sets"))
    parser.add_argument("--seeds", type=int, default=100)
    options = parser.parse_args()
    each = [of_data_set(options.study, seed) for seed in range(options.seeds)]
    print(f"{options.study}, level {LEVEL}, {options.seeds} data sets of {TRAIN} groups")
    for count in (0, *CALIBRATION):
        covered, width = np.array([found[count] for found in each]).T
        se = covered.std(ddof=1) / len(covered) ** 0.5
        name = f"{count} calibration groups" if count else "the posterior's own"
        print(f"{name:25s} coverage {covered.mean():.3f} (se {se:.3f}), mean width {width.mean():.2f}")
