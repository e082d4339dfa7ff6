"""Scores of predictions: pure functions of NumPy arrays, each row's score apart from their mean."""

from pyro_armed.metrics._calibration import expected_calibration_error, interval_calibration_error
from pyro_armed.metrics._estimates import Estimate, auroc, mean_score, rmse, widest
from pyro_armed.metrics._rows import correct, coverage, crps, log_predictive_density, squared_errors

__all__ = [
    "Estimate",
    "auroc",
    "correct",
    "coverage",
    "crps",
    "expected_calibration_error",
    "interval_calibration_error",
    "log_predictive_density",
    "mean_score",
    "rmse",
    "squared_errors",
    "widest",
]
