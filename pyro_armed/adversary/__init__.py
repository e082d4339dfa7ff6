"""The adversary: a classifier of groups from features, trained against the network by gradient reversal.

It keeps group information out of the network. It is an auxiliary term of the training loss only and never
enters a log density.
"""

from pyro_armed.adversary._classifier import (
    AdversaryTerms,
    GroupClassifier,
    adversary_loss,
    chance_accuracy,
    gradient_reversal,
    label_columns,
)
from pyro_armed.adversary._kernel import group_dependence, group_shares
from pyro_armed.adversary._settings import Adversary

__all__ = [
    "Adversary",
    "AdversaryTerms",
    "GroupClassifier",
    "adversary_loss",
    "chance_accuracy",
    "gradient_reversal",
    "group_dependence",
    "group_shares",
    "label_columns",
]
