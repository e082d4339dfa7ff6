"""Guides and objectives of small models, and grouped rows with known truth to fit them to."""

import numpy as np
import torch
from hand_made import design, frame, module_of
from scipy.special import expit
from torch import nn

import pyro_armed as pa
from pyro_armed.building import build_adversary
from pyro_armed.guides import MeanFieldGuide
from pyro_armed.objective import Objective
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


def objective_of(formula="y ~ x + (1 | g)", family="gaussian", data=None, adversary=None, network=None):
    made = design(formula, frame() if data is None else data, family, network=network is not None)
    module = module_of(made, network, None if network is None else "2", 3)
    guide = MeanFieldGuide(module, module.data, torch.Generator().manual_seed(0))
    return Objective(module, guide, build_adversary(adversary, module, module.data, 0))


def networked_objective():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    return objective_of(
        "b ~ x + z + (1 | g)", "bernoulli", adversary=pa.Adversary(0.5, weight_decay=0.1), network=network
    )
