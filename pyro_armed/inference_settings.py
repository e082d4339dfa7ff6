"""What inference is told: the arguments of `ARMED.fit`, and what every restart starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch

from pyro_armed.adversary import Adversary
from pyro_armed.batch import Batch
from pyro_armed.building import NetworkPlan
from pyro_armed.devices import checked_device
from pyro_armed.errors import ArgumentError
from pyro_armed.spec import ModelSpec
from pyro_armed.training import TrainingSettings

__all__ = ["InferenceSettings", "Ingredients"]

INFERENCES = ("svi", "nuts")
GUIDES = ("structured", "mean_field")


@dataclass(frozen=True)
class InferenceSettings:
    """The arguments of `ARMED.fit` that concern inference; see there.

    Raises
    ------
    ArgumentError
        For values that cannot be used.
    """

    inference: str = "svi"
    guide: str = "structured"
    restarts: int = 4
    draws: int = 500
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    early_stopping: bool = True
    compile: str = "auto"
    schedule: str = "plateau"
    device: Any = None
    warmup: int = 500
    seed: int = 0
    progressbar: bool = True

    def __post_init__(self) -> None:
        _one_of("inference", self.inference, INFERENCES)
        _one_of("guide", self.guide, GUIDES)
        for name in ("restarts", "draws", "warmup"):
            object.__setattr__(self, name, _whole(name, getattr(self, name), 1))
        object.__setattr__(self, "seed", _whole("seed", self.seed, 0))
        object.__setattr__(self, "device", checked_device(self.device))
        self.training(network=False)

    def training(self, network: bool) -> TrainingSettings:
        """Settings of the SVI loop."""
        return TrainingSettings(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=(0.01 if network else 0.02) if self.learning_rate is None else self.learning_rate,
            early_stopping=self.early_stopping,
            compile=self.compile,
            schedule=self.schedule,
        )

    def trains_marginally(self, ingredients: Ingredients) -> bool:
        """Whether a network may be trained by the marginal likelihood, as far as the settings go."""
        open_ = self.epochs is None and self.batch_size is None and self.learning_rate is None
        plain = ingredients.adversary is None and not ingredients.fixed_effects_weight
        unforced = self.early_stopping and self.schedule == "plateau" and self.compile == "auto"
        here = self.guide == "structured" and self.device == torch.device("cpu")
        return self.inference == "svi" and open_ and plain and unforced and here

    def chain_seed(self, restart: int) -> int:
        """Seed of one restart."""
        return self.seed * 1009 + restart


@dataclass(frozen=True)
class Ingredients:
    """What every restart starts from.

    Attributes
    ----------
    spec : ModelSpec
        The model's structure.
    priors : mapping of str to Distribution
        The user's priors.
    plan : NetworkPlan or None
        The network.
    data : Batch
        Training rows.
    adversary : Adversary or None
        Settings of the adversary.
    fixed_effects_weight : float
        Weight of the loss of the prediction without group effects.
    """

    spec: ModelSpec
    priors: Mapping[str, Any]
    plan: NetworkPlan | None
    data: Batch
    adversary: Adversary | None = None
    fixed_effects_weight: float = 0.0


def _whole(name: str, value: Any, least: int) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or not least <= int(value) < 2**48:
        raise ArgumentError(f"{name}={value!r} must be a whole number of at least {least}.")
    return int(value)


def _one_of(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ArgumentError(f"{name}={value!r} is not one of {', '.join(map(repr, known))}.")
