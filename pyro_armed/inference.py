"""From a specification and rows to posterior draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pyro_armed.adversary import Adversary
from pyro_armed.batch import Batch
from pyro_armed.building import NetworkPlan, build_adversary, build_module
from pyro_armed.draws import draw_chain
from pyro_armed.errors import ArgumentError
from pyro_armed.guides import MeanFieldGuide
from pyro_armed.module import MixedEffectsModule
from pyro_armed.objective import Objective
from pyro_armed.posterior import Posterior
from pyro_armed.spec import ModelSpec
from pyro_armed.training import TrainingSettings, train

__all__ = ["InferenceResult", "InferenceSettings", "infer"]

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
    warmup: int = 500
    seed: int = 0
    progressbar: bool = True

    def __post_init__(self) -> None:
        _one_of("inference", self.inference, INFERENCES)
        _one_of("guide", self.guide, GUIDES)
        for name in ("restarts", "draws", "warmup"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ArgumentError(f"{name}={value!r} must be a whole number of at least 1.")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise ArgumentError(f"seed={self.seed!r} must be a whole number of at least 0.")

    def training(self, network: bool) -> TrainingSettings:
        """Settings of the SVI loop."""
        return TrainingSettings(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate or (0.01 if network else 0.02),
            early_stopping=self.early_stopping,
        )


@dataclass(frozen=True)
class InferenceResult:
    """What inference leaves behind.

    Attributes
    ----------
    posterior : Posterior
        Draws of all chains.
    module : MixedEffectsModule
        The model of the best chain.
    guide : object
        Its guide; None after NUTS.
    """

    posterior: Posterior
    module: MixedEffectsModule
    guide: Any


def infer(
    spec: ModelSpec,
    priors: Mapping[str, Any],
    plan: NetworkPlan | None,
    data: Batch,
    settings: InferenceSettings,
    *,
    adversary: Adversary | None = None,
    fixed_effects_weight: float = 0.0,
    dtype: torch.dtype = torch.float64,
) -> InferenceResult:
    """Run the inference that the settings ask for.

    Parameters
    ----------
    spec : ModelSpec
        The model's structure.
    priors : mapping of str to Distribution
        The user's priors.
    plan : NetworkPlan, optional
        The network.
    data : Batch
        Training rows.
    settings : InferenceSettings
        How.
    adversary : Adversary, optional
        Settings of the adversary.
    fixed_effects_weight : float
        Weight of the loss of the prediction without group effects.
    dtype : torch.dtype
        Type of the parameters.

    Returns
    -------
    InferenceResult
    """
    training = settings.training(plan is not None)
    chains, guides, finals, converged = [], [], [], []
    for restart in range(settings.restarts):
        seed = settings.seed * 1009 + restart
        module = build_module(spec, priors, plan, data, dtype, seed)
        guide = MeanFieldGuide(module, data, torch.Generator().manual_seed(seed))
        head = build_adversary(adversary, spec, data, seed)
        objective = Objective(module, guide, head, fixed_effects_weight)
        label = f"SVI {restart + 1}/{settings.restarts}"
        result = train(objective, data, training, seed=seed, progressbar=settings.progressbar, label=label)
        chain = draw_chain(module, guide, data, settings.draws, seed=seed)
        chain.trace = result.elbo
        chains.append(chain)
        guides.append(guide)
        finals.append(result.final)
        converged.append(result.converged)
    best = max(range(len(finals)), key=finals.__getitem__)
    attributes = {
        "inference": "svi",
        "guide": settings.guide,
        "seed": settings.seed,
        "restarts": settings.restarts,
        "elbo": max(finals) * spec.n_rows,
        "converged": all(converged),
    }
    return InferenceResult(Posterior(chains, attributes), chains[best].module, guides[best])


def _one_of(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ArgumentError(f"{name}={value!r} is not one of {', '.join(map(repr, known))}.")
