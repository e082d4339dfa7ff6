"""Prediction intervals, and sets of levels: the posterior's own, or calibrated on whole groups.

Conformal prediction turns any predictive distribution into intervals that cover with a given probability,
whether or not the model is right. Rows of one group depend on each other, so the unit is the group: the
groups of the calibration rows and the new group have to be exchangeable, and the rows within each group.
"""

from pyro_armed.conformal._predictive import Predictive, check_level, predictive
from pyro_armed.conformal._regions import (
    INTERVALS,
    conformal_regions,
    posterior_regions,
    regions_of,
)
from pyro_armed.conformal._scores import (
    Regions,
    conformity,
    group_threshold,
    in_range,
    least_groups,
    regions_at,
)

__all__ = [
    "INTERVALS",
    "Predictive",
    "Regions",
    "check_level",
    "conformal_regions",
    "conformity",
    "group_threshold",
    "in_range",
    "least_groups",
    "posterior_regions",
    "predictive",
    "regions_at",
    "regions_of",
]
