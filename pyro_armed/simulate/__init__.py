"""Data with known truth.

Every function takes ``seed``, leaves the global random state alone and returns a frozen dataclass that holds
the data and the truth behind them.
"""

from pyro_armed.simulate._acquisition import GroupImages, group_logits
from pyro_armed.simulate._cells import cells
from pyro_armed.simulate._cohort import Cohort, cohort
from pyro_armed.simulate._designs import crossed, nested, within_between
from pyro_armed.simulate._images import SiteImages, site_images
from pyro_armed.simulate._mixed import MixedData, MixedModelData, mixed_model
from pyro_armed.simulate._phantoms import phantoms
from pyro_armed.simulate._spirals import ConfoundedSpirals, Spirals, confounded_spirals, spirals

__all__ = [
    "Cohort",
    "ConfoundedSpirals",
    "GroupImages",
    "MixedData",
    "MixedModelData",
    "SiteImages",
    "Spirals",
    "cells",
    "cohort",
    "confounded_spirals",
    "crossed",
    "group_logits",
    "mixed_model",
    "nested",
    "phantoms",
    "site_images",
    "spirals",
    "within_between",
]
