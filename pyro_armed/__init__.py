"""Bayesian mixed-effects deep learning on Pyro."""

from pyro_armed import datasets, families, networks, priors, simulate
from pyro_armed.adversary import Adversary
from pyro_armed.armed import ARMED
from pyro_armed.effects import RandomEffects
from pyro_armed.files import load

__version__ = "0.1.0"

__all__ = [
    "ARMED",
    "Adversary",
    "RandomEffects",
    "datasets",
    "families",
    "load",
    "networks",
    "priors",
    "simulate",
]
