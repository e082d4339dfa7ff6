"""The predictive distribution of each row, as intervals need it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_armed.batch import Batch
from pyro_armed.design import Encoded
from pyro_armed.errors import ArgumentError
from pyro_armed.families import Family
from pyro_armed.new_groups import Mode
from pyro_armed.posterior import Chain, Posterior
from pyro_armed.predict import evaluated_rows, extended_chains
from pyro_armed.scores import kind_of
from pyro_armed.seeds import seeded, stream

__all__ = ["WHOLE", "Predictive", "check_level", "predictive"]

WHOLE = ("count", "binomial")
_DRAWS = 2000
_ELEMENTS = 10_000_000

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Predictive:
    """What intervals are made of, for N rows; empty where the response has no such thing.

    Attributes
    ----------
    center, low, high : numpy.ndarray, shape (N,)
        Median and central interval of the predictive distribution of a number.
    ceiling : numpy.ndarray, shape (N,)
        Largest value that the response can have.
    probability : numpy.ndarray, shape (N, K)
        Probability of each level.
    """

    center: Floats
    low: Floats
    high: Floats
    ceiling: Floats
    probability: Floats


def predictive(posterior: Posterior, encoded: Encoded, mode: Mode, *, level: float, seed: int) -> Predictive:
    """The predictive distribution of each row, new groups' effects included.

    Parameters
    ----------
    posterior, encoded, mode, level, seed
        As for `posterior_regions`.

    Returns
    -------
    Predictive
        From at most 2000 draws.
    """
    n_chains, batch = len(posterior.chains), encoded.batch
    each = min(posterior.n_draws, max(1, _DRAWS // n_chains))
    chains = extended_chains(posterior, encoded, mode, seed=seed, draws=each)
    family = chains[0].module.spec.family
    with seeded(stream(seed, "responses")):
        parts = [
            _predictive_rows(chains, batch.select(rows), family, level)
            for rows in torch.arange(batch.size).split(max(1, _ELEMENTS // (n_chains * each)))
        ]
    joined = {f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Predictive)}
    return Predictive(**joined)


def _predictive_rows(chains: Sequence[Chain], batch: Batch, family: Family, level: float) -> Predictive:
    drawn: list[Floats] = []
    total: Any = 0.0
    numeric = kind_of(family) == "numeric"
    for part in evaluated_rows(chains, batch):
        module = part.chain_object.module
        if numeric:
            drawn.append(_numpy(module.response_distribution(part.etas, part.values, batch).sample()))
        else:
            auxiliaries = module.auxiliaries(part.etas, part.values)
            total = total + _numpy(family.mean(part.etas["mu"], batch.trials, **auxiliaries)).sum(axis=0)
    none = np.empty(0)
    if not numeric:
        mean = total / sum(chain.n_draws for chain in chains)
        levels = mean if mean.ndim == 2 else np.stack([1.0 - mean, mean], axis=1)
        return Predictive(none, none, none, none, levels)
    whole = family.response in WHOLE
    tail = (1.0 - level) / 2.0
    low, center, high = np.quantile(
        np.concatenate(drawn),
        [tail, 0.5, 1.0 - tail],
        axis=0,
        method="inverted_cdf" if whole else "linear",
    )
    ceiling = np.full(batch.size, 1.0 if family.response == "unit" else math.inf)
    if family.response == "binomial" and batch.trials is not None:
        ceiling = _numpy(batch.trials)
    # Halves of no width have no scale: half a count, or next to nothing.
    least = 0.5 if whole else 1e-9 * (1.0 + np.abs(center))
    return Predictive(
        center, np.minimum(low, center - least), np.maximum(high, center + least), ceiling, np.empty((0, 0))
    )


def check_level(level: float) -> None:
    """Refuse what is not a probability.

    Parameters
    ----------
    level : float
        Probability of intervals.

    Raises
    ------
    ArgumentError
        Where it is not between 0 and 1.
    """
    number = isinstance(level, (int, float, np.floating)) and not isinstance(level, bool)
    if not number or not 0.0 < level < 1.0:
        raise ArgumentError(f"level={level!r} must be a number between 0 and 1, such as 0.9.")


def _numpy(tensor: Any) -> Floats:
    return np.asarray(tensor.detach().cpu().double().numpy())
