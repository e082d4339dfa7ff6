"""Bayesian mixed-effects deep learning on Pyro."""

from pyro_armed import datasets, diagnostics, families, networks, plots, priors, simulate
from pyro_armed.adversary import Adversary
from pyro_armed.adversary_choice import choose_adversary
from pyro_armed.armed import ARMED, load
from pyro_armed.cross_validation import cross_conformal, cross_predict, cross_validate
from pyro_armed.effects import RandomEffects

__version__ = "0.1.0"

__all__ = [
    "ARMED",
    "Adversary",
    "RandomEffects",
    "choose_adversary",
    "cross_conformal",
    "cross_predict",
    "cross_validate",
    "datasets",
    "diagnostics",
    "families",
    "load",
    "networks",
    "plots",
    "priors",
    "simulate",
]
