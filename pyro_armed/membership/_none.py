"""The probability that a new group is like none of the seen ones.

Seen groups play strangers: without its own column, the evidence of a group's held-out rows is what a new
group's would be, and the responses of its rows say which prediction is better, that with the effects of the
groups that it resembles or that with effects of some group, Normal(0, Sigma). The probability of "none" is a
logistic function of the evidence whose coefficients maximise the log density of those responses under the
mixture of both: stacking with weights that depend on covariates (Yao, Vehtari, Simpson, Gelman, Bayesian
Analysis 13(3), 2018; Yao, Pirs, Vehtari, Gelman, Bayesian Analysis 17(4), 2022). Asking instead only whether
the rows are a stranger's would send a group to "none" that differs from a seen one, however little.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

__all__ = ["NoneProbability", "Trials"]

Floats = NDArray[np.float64]
# Without evidence that the seen groups help, "none" has a probability of .88.
_CENTRE = np.array([2.0, 0.5, 0.0, 0.0])
_RIDGE = 0.05


@dataclass(frozen=True)
class Trials:
    """Seen groups in the role of new ones, and how well the two predictions do.

    Attributes
    ----------
    features : numpy.ndarray, shape (E, K)
        From `none_features`.
    member : numpy.ndarray, shape (E, M)
        Predictive density of M rows with the effects of the weighted seen groups, divided by that with the
        effects of some group; NaN where a group has fewer rows.
    importance : numpy.ndarray, shape (E,)
        Weight of each trial.
    groups : int
        Groups that the trials come from: how much data they are.
    """

    features: Floats
    member: Floats
    importance: Floats
    groups: int


@dataclass(frozen=True)
class NoneProbability:
    """Logistic in the standardised features of the evidence.

    Attributes
    ----------
    center, scale, low, high : numpy.ndarray, shape (K,)
        Mean, sd and range of the features in the trials. Beyond the range the number of rows and the entropy
        count as at its ends; deviation counts in full upwards.
    coefficients : numpy.ndarray, shape (K + 1,)
        Intercept first. That of the deviation is not below zero: a group that is less like the seen ones is
        not more likely one of them.
    """

    center: Floats
    scale: Floats
    low: Floats
    high: Floats
    coefficients: Floats

    @classmethod
    def fit(cls, trials: Trials) -> NoneProbability:
        """Maximise the mean log density of the mixture, with a ridge towards "none".

        Parameters
        ----------
        trials : Trials
            Held-out rows.

        Returns
        -------
        NoneProbability
        """
        features = trials.features
        high = features.max(0)
        high[0] = np.inf
        start = cls(
            features.mean(0), np.maximum(features.std(0), 1e-6), features.min(0), high, _CENTRE.copy()
        )
        design = start._design(features)
        importance = trials.importance / trials.importance.sum()

        def loss(coefficients: Floats) -> float:
            none = expit(design @ coefficients)[:, None]
            density = (1.0 - none) * trials.member + none
            gain = np.nanmean(np.log(np.maximum(density, 1e-300)), axis=1) @ importance
            ridge = _RIDGE * ((coefficients - _CENTRE) ** 2).sum() / trials.groups
            return float(ridge - gain)

        free = (None, None)
        found = minimize(loss, _CENTRE, bounds=[free, (0.0, None), free, free])
        return cls(start.center, start.scale, start.low, start.high, found.x)

    def __call__(self, features: Floats) -> Floats:
        """Probabilities, shape (E,), for features of shape (E, K)."""
        return np.asarray(expit(self._design(features) @ self.coefficients))

    def _design(self, features: Floats) -> Floats:
        clipped = np.clip(features, self.low, self.high)
        return np.column_stack([np.ones(len(features)), (clipped - self.center) / self.scale])
