"""Bayesian mixed-effects deep learning on Pyro."""

from pyro_armed import (
    baselines,
    datasets,
    diagnostics,
    distributed,
    effects,
    families,
    networks,
    plots,
    priors,
    simulate,
)
from pyro_armed.adversary import Adversary
from pyro_armed.adversary_choice import choose_adversary
from pyro_armed.armed import ARMED, load
from pyro_armed.cross_validation import cross_conformal, cross_predict, cross_validate
from pyro_armed.effects import RandomEffects
from pyro_armed.spec import Reconstruction

__version__ = "0.1.0"

__all__ = [
    "ARMED",
    "Adversary",
    "RandomEffects",
    "Reconstruction",
    "baselines",
    "choose_adversary",
    "cross_conformal",
    "cross_predict",
    "cross_validate",
    "datasets",
    "diagnostics",
    "distributed",
    "effects",
    "families",
    "load",
    "networks",
    "plots",
    "priors",
    "simulate",
]
