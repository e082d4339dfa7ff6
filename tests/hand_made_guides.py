"""Structured guides of small models, and grouped rows with known truth to fit them to."""

import numpy as np
from hand_made import design, frame, module_of
from scipy.special import expit

from pyro_armed.structured import StructuredGuide
from pyro_armed.structured_fit import fit_structured


def guide_of(formula, family="gaussian", data=None, **options):
    module = module_of(design(formula, frame(8, 6) if data is None else data, family, **options))
    return StructuredGuide(module, module.data)


def fitted(formula, family="gaussian", data=None, seed=0, **options):
    guide = guide_of(formula, family, data)
    return guide, fit_structured(guide, seed=seed, progressbar=False, **options)


def grouped(seed=3, groups=12, rows=6):
    rng = np.random.default_rng(seed)
    code = np.repeat(np.arange(groups), rows)
    data = frame(groups, rows)
    eta = 0.4 + 1.1 * rng.normal(size=groups)[code]
    data["y"] = eta + rng.normal(size=len(data))
    data["b"] = (rng.uniform(size=len(data)) < expit(eta)).astype(int)
    return data
