"""InstEval, lecturers' random intercepts: processor time and held-out density beside lme4 (R, r-cran-lme4).

A fifth of the rows of each seed is held out. Both sides' time is that of the fit alone, data in memory; the
library's is given with everything that `fit` stores, by default and with one restart.
"""

import argparse
import subprocess
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

import pyro_armed as pa

FORMULA = "y ~ service + studage + lectage + (1 | d)"
# The plug-in density: sigma^2 plus the conditional variance of the lecturer's effect.
R_CODE = """
suppressMessages(library(lme4))
train <- read.csv(commandArgs(TRUE)[1]); test <- read.csv(commandArgs(TRUE)[2])
train$d <- factor(train$d)
start <- proc.time()
fit <- lmer({formula}, train)
used <- proc.time() - start
cat(used[["user.self"]] + used[["sys.self"]], "\\n", file = commandArgs(TRUE)[3])
effects <- ranef(fit, condVar = TRUE)$d
variance <- attr(effects, "postVar")[1, 1, ]
place <- match(as.character(test$d), rownames(effects))
out <- data.frame(mean = predict(fit, test), sd = sqrt(sigma(fit)^2 + variance[place]))
write.csv(out, commandArgs(TRUE)[4], row.names = FALSE)
"""


def numbers(frame):
    return frame.assign(**{name: frame[name].astype(float) for name in ("service", "studage", "lectage")})


def lme4(train, test):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [str(folder / file) for file in ("fit.R", "train.csv", "test.csv", "time", "out.csv")]
        Path(paths[0]).write_text(R_CODE.replace("{formula}", FORMULA))
        train.to_csv(paths[1], index=False)
        test.to_csv(paths[2], index=False)
        subprocess.run(["Rscript", *paths], check=True, capture_output=True)
        out = pd.read_csv(paths[4])
        density = stats.norm(out["mean"].to_numpy(), out["sd"].to_numpy()).logpdf(test["y"])
        return float(Path(paths[3]).read_text()), -float(np.mean(density))


def ours(train, test, seed, **options):
    start = time.process_time()
    model = pa.ARMED(FORMULA, train)
    model.fit(progressbar=False, seed=seed, **options)
    used = time.process_time() - start
    table = model.evaluate(test, seed=seed).set_index("metric")
    return used, float(table.loc["nlpd", "value"])


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    frame = numbers(pa.datasets.load("insteval"))
    ours(frame[:2000], frame[:100], 0, restarts=1, draws=50)  # imports
    for seed in range(options.seeds):
        test = np.random.default_rng(seed).uniform(size=len(frame)) < 0.2
        test &= frame["d"].isin(frame["d"][~test]).to_numpy()
        train, held_out = frame[~test], frame[test]
        r_time, r_density = lme4(train, held_out)
        for label, fit in (("fit()", {}), ("fit(restarts=1)", {"restarts": 1})):
            used, density = ours(train, held_out, seed, **fit)
            print(
                f"seed {seed} {label}: {used:.2f} s of processor, lme4 {r_time:.2f} s, ratio "
                f"{used / r_time:.1f}; nlpd {density:.4f}, lme4 {r_density:.4f}",
                flush=True,
            )
