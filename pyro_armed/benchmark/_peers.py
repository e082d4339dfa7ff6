"""Other people's mixed models, if they are installed: lme4 in R, and GPBoost."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
import warnings
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd

__all__ = [
    "PeerFit",
    "gpboost",
    "gpboost_found",
    "gpboost_tuned",
    "lme4",
    "lme4_found",
    "normal_nlpd",
]

RESPONSE, GROUP = "y", "d"
FIXED = ("studage", "lectage", "service", "dept")
FORMULA = f"{RESPONSE} ~ {' + '.join(FIXED)} + (1 | {GROUP})"

_R_SCRIPT = r"""
suppressMessages(library(lme4))
given <- commandArgs(trailingOnly = TRUE)
factors <- strsplit(given[5], ",")[[1]]
read <- function(path) {
  frame <- read.csv(path, colClasses = "character")
  frame$y <- as.numeric(frame$y)
  frame
}
train <- read(given[1]); test <- read(given[2])
for (name in factors) {
  train[[name]] <- factor(train[[name]])
  test[[name]] <- factor(test[[name]], levels(train[[name]]))
}
before <- proc.time()
fit <- lmer(as.formula(given[4]), train)
spent <- sum((proc.time() - before)[1:2])
effects <- ranef(fit, condVar = TRUE)$d
variance <- attr(effects, "postVar")[1, 1, match(test$d, rownames(effects))]
found <- data.frame(mean = predict(fit, test), sd = sqrt(sigma(fit)^2 + variance), seconds = spent)
write.csv(found, given[3], row.names = FALSE)
"""


@dataclass(frozen=True)
class PeerFit:
    """What a peer reached.

    Attributes
    ----------
    seconds : float
        Processor time of its fit alone, one thread.
    nlpd : float
        Mean negative log predictive density of the held-out rows.
    """

    seconds: float
    nlpd: float


def normal_nlpd(y: np.ndarray, mean: np.ndarray, sd: np.ndarray) -> float:
    """Mean negative log density of rows (N,) under Gaussians.

    Examples
    --------
    >>> round(normal_nlpd(np.zeros(2), np.zeros(2), np.ones(2)), 4)
    0.9189
    """
    return float(np.mean(0.5 * np.log(2 * np.pi * sd**2) + 0.5 * ((y - mean) / sd) ** 2))


@cache
def lme4_found() -> bool:
    """Whether R is there, with lme4."""
    if shutil.which("Rscript") is None:
        return False
    asked = ["Rscript", "-e", "quit(status = !requireNamespace('lme4', quietly = TRUE))"]
    return subprocess.run(asked, capture_output=True).returncode == 0


def lme4(train: pd.DataFrame, test: pd.DataFrame) -> PeerFit:
    """``lmer`` of FORMULA, timed in R, so that R's start and the reading of files do not count.

    Parameters
    ----------
    train, test : pandas.DataFrame
        Rows; every group of the test rows is in training.

    Returns
    -------
    PeerFit

    Raises
    ------
    RuntimeError
        Where R fails.
    """
    columns = [RESPONSE, GROUP, *FIXED]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("train.csv", "test.csv", "found.csv")]
        train[columns].to_csv(paths[0], index=False)
        test[columns].to_csv(paths[1], index=False)
        done = subprocess.run(
            ["Rscript", "-e", _R_SCRIPT, *map(str, paths), FORMULA, ",".join([GROUP, *FIXED])],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        if done.returncode:
            raise RuntimeError(f"lme4 failed: {' '.join(done.stderr.split())[-300:]}")
        found = pd.read_csv(paths[2])
    nlpd = normal_nlpd(test[RESPONSE].to_numpy(float), found["mean"].to_numpy(), found["sd"].to_numpy())
    return PeerFit(float(found["seconds"].iloc[0]), nlpd)


def gpboost_found() -> bool:
    """Whether GPBoost can be imported."""
    return find_spec("gpboost") is not None


def gpboost_tuned(train: pd.DataFrame, test: pd.DataFrame) -> PeerFit:
    """As `gpboost`, the number of trees chosen by cross-validation, whose time counts."""
    return gpboost(train, test, None)


def gpboost(train: pd.DataFrame, test: pd.DataFrame, rounds: int | None = 100) -> PeerFit:
    """Boosted trees with a random intercept, GPBoost's defaults.

    Parameters
    ----------
    train, test : pandas.DataFrame
        Rows.
    rounds : int, optional
        Number of trees; None: up to 1000, by four-fold cross-validation that stops 20 trees after the best.

    Returns
    -------
    PeerFit
    """
    gpb = import_module("gpboost")
    train, test = train.astype(dict.fromkeys(FIXED, str)), test.astype(dict.fromkeys(FIXED, str))
    groups, categories = train[GROUP].to_numpy(str), {name: list(train[name].unique()) for name in FIXED}
    x, x_test = (
        np.column_stack([pd.Categorical(rows[name], categories[name]).codes for name in FIXED]).astype(float)
        for rows in (train, test)
    )
    start = time.process_time()
    model = gpb.GPModel(group_data=groups, likelihood="gaussian", num_parallel_threads=1)
    data = gpb.Dataset(x, train[RESPONSE].to_numpy(float), categorical_feature=list(range(len(FIXED))))
    options = {"verbose": -1, "num_threads": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that categories are used as asked for
        if rounds is None:
            tried = gpb.cv(
                params={**options, "metric": "mse"},
                train_set=data,
                gp_model=model,
                num_boost_round=1000,
                early_stopping_rounds=20,
                nfold=4,
                seed=0,
                verbose_eval=False,
            )
            rounds = len(next(iter(tried.values())))
        booster = gpb.train(params=options, train_set=data, gp_model=model, num_boost_round=rounds)
    seconds = time.process_time() - start
    found = booster.predict(
        data=x_test, group_data_pred=test[GROUP].to_numpy(str), predict_var=True, pred_latent=False
    )
    sd = np.sqrt(np.asarray(found["response_var"]))
    return PeerFit(seconds, normal_nlpd(test[RESPONSE].to_numpy(float), found["response_mean"], sd))
