"""Capital or small letter, in fonts of which some are new: real images with genuine groups."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from pyro_armed.adversary import Adversary
from pyro_armed.baselines import Rows, Task
from pyro_armed.datasets import letters
from pyro_armed.effects import RandomEffects
from pyro_armed.networks import CNN
from pyro_armed.reproduce._application import Application, Problem
from pyro_armed.reproduce._sites import SiteTruth, measures, pictures, split

__all__ = ["LETTERS"]

_FIT = {"epochs": 20, "batch_size": 64, "learning_rate": 3e-3}
_QUICK = {"epochs": 2, "batch_size": 64, "learning_rate": 3e-3, "draws": 10}
_ADVERSARY = Adversary(weight=0.5, hidden=(16,), warmup=0.5, learning_rate=0.01)


def _network() -> nn.Module:
    return CNN(channels=(8, 16), hidden=(8,), activation="elu")


def _problem(seed: int, quick: bool, files: Sequence[Path]) -> Problem:
    data = letters(12 if quick else 120, seed=seed)
    train, test = split(seed, data.groups, data.seen)

    def rows(which: NDArray[np.bool_]) -> Rows:
        return Rows(data.images[which], data.labels[which], {"font": data.groups[which]})

    task = Task(
        train=rows(train),
        seen=rows(test),
        unseen=rows(~data.seen),
        group="font",
        network=_network,
        random_effects=[RandomEffects("font", slopes="features")],
        adversary=_ADVERSARY,
        fit=_QUICK if quick else _FIT,
        draws=10 if quick else 30,
    )
    words = (
        f"Letters whose capital has the small letter's shape, in {len(task.labels)} fonts, and in "
        f"{20 - len(task.labels)} other fonts (unseen); which of both is it?"
    )
    return Problem(task, truth=SiteTruth({}), words=words, simulated=False)


LETTERS = Application(
    name="letters",
    title="Capital or small letter in 13 fonts that Matplotlib ships, and in 7 new ones",
    problem=_problem,
    measures=measures,
    pictures=pictures,
    shown=(
        ("seen", "auroc"),
        ("unseen", "auroc"),
        ("seen", "accuracy"),
        ("unseen", "accuracy"),
        ("features", "leakage"),
        ("features", "leakage, limit"),
        ("effects", "moved"),
    ),
    note=(
        "Leakage: accuracy of a fresh probe of the font given the label, and the limit of chance (97.5 %). "
        "Effects: how far the intercepts moved from the prior, in its sds."
    ),
)
