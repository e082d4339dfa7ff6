"""Running the model for an export without leaving a trace of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyro
import torch
from torch import nn

from pyro_armed.errors import ArgumentError
from pyro_armed.local import local_parameters
from pyro_armed.posterior import Posterior

__all__ = ["check_chains", "evaluating"]


def check_chains(posterior: Posterior) -> None:
    """Refuse a posterior without chains, or with chains of different lengths."""
    sizes = {chain.n_draws for chain in posterior.chains}
    if len(sizes) != 1:
        found = f"chains with {', '.join(map(str, sorted(sizes)))} draws" if sizes else "no chains"
        raise ArgumentError(f"posterior has {found}; give one or more chains with the same number of draws.")


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, nothing global; each submodule gets its own mode back."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        # Without validation: predictors far in a prior's tails overflow, which says what the prior implies.
        with torch.no_grad(), local_parameters(), pyro.validation_enabled(False):
            yield
    finally:
        for part, training in modes:
            part.training = training
