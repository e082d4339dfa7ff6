"""From a specification and rows to posterior draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pyro_armed.batch import Batch
from pyro_armed.building import build_adversary, build_module
from pyro_armed.devices import elsewhere
from pyro_armed.draws import draw_chain, draw_tables, without_row_axis
from pyro_armed.effect_tables import HELD, effect_numbers
from pyro_armed.gaussian_conditional import has_gaussian_conditional
from pyro_armed.global_draws import draw_effects
from pyro_armed.guides import MeanFieldGuide
from pyro_armed.importance import pareto_smooth
from pyro_armed.inference_settings import InferenceSettings, Ingredients
from pyro_armed.local import local_parameters
from pyro_armed.marginal_training import can_train_marginally, train_marginally
from pyro_armed.module import MixedEffectsModule
from pyro_armed.objective import AdversaryHead, Objective
from pyro_armed.pooled_rows import PooledRows, pool_rows
from pyro_armed.posterior import Chain, Posterior
from pyro_armed.sampling import CONDITIONS_ON, sample_nuts
from pyro_armed.seeds import generator_for
from pyro_armed.structured import JointGuide, StructuredGuide
from pyro_armed.structured_fit import FEW_ESTIMATES, fit_structured
from pyro_armed.training import TrainingResult, no_validation, single_thread, train_restarts

__all__ = ["FittedChain", "InferenceResult", "Trained", "assembled", "infer", "mean_field_chain"]


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


@dataclass(frozen=True)
class FittedChain:
    """One restart.

    Attributes
    ----------
    chain : Chain
        Its draws.
    guide : object
        Its guide.
    elbo : float
        ELBO of the data set.
    converged : bool
        Whether the ELBO stopped rising.
    khat : float or None
        Pareto k of the guide; None where it would take a pass of the network for each draw.
    notes : dict
        What else to say about it in the exported attributes.
    """

    chain: Chain
    guide: Any
    elbo: float
    converged: bool
    khat: float | None
    notes: dict[str, Any] = field(default_factory=dict)


def infer(ingredients: Ingredients, settings: InferenceSettings) -> InferenceResult:
    """Run the inference that the settings ask for.

    Parameters
    ----------
    ingredients : Ingredients
        Model and data.
    settings : InferenceSettings
        How.

    Returns
    -------
    InferenceResult
    """
    if settings.inference == "nuts":
        return _nuts(ingredients, settings)
    with single_thread(ingredients.data), local_parameters(), no_validation():
        return assembled(ingredients, settings, _restarts(ingredients, settings))


def assembled(
    ingredients: Ingredients, settings: InferenceSettings, fitted: Sequence[FittedChain]
) -> InferenceResult:
    """The posterior of some restarts, and what is to be said of it.

    Parameters
    ----------
    ingredients : Ingredients
        Model and data.
    settings : InferenceSettings
        How they were fitted.
    fitted : sequence of FittedChain
        One for each restart.

    Returns
    -------
    InferenceResult
    """
    best = max(fitted, key=lambda one: one.elbo if math.isfinite(one.elbo) else -math.inf)
    attributes = {
        "inference": "svi",
        "guide": settings.guide,
        "seed": settings.seed,
        "restarts": len(fitted),
        "early_stopping": settings.training(network=False).watched,
        "network": ingredients.plan is not None,
        "elbo": best.elbo,
        "converged": all(one.converged for one in fitted),
        **_worst_khat(fitted),
        **_joined_notes([one.notes for one in fitted]),
    }
    posterior = Posterior([one.chain for one in fitted], attributes)
    return InferenceResult(posterior, best.chain.module, best.guide)


def _worst_khat(fitted: Sequence[FittedChain]) -> dict[str, float]:
    known = [one.khat for one in fitted if one.khat is not None]
    return {"khat": max(known)} if known else {}


def _joined_notes(notes: list[dict[str, Any]]) -> dict[str, Any]:
    """Notes of all restarts as one: what holds for each, and the worst figures."""
    joined: dict[str, Any] = dict(notes[0])
    if "importance_corrected" in joined:
        joined["importance_corrected"] = all(one["importance_corrected"] for one in notes)
        joined["importance_ess"] = min(one["importance_ess"] for one in notes)
    if "khat_by_group_max" in joined:
        joined["khat_by_group_max"] = max(one["khat_by_group_max"] for one in notes)
    return joined


def _nuts(ingredients: Ingredients, settings: InferenceSettings) -> InferenceResult:
    """NUTS; a network is trained by SVI first, and the best restart's is kept."""
    guide = None
    if ingredients.plan is None:
        module = build_module(ingredients.spec, ingredients.priors, None, ingredients.data, settings.seed)
    else:
        trained = infer(ingredients, replace(settings, inference="svi", guide="mean_field"))
        module, guide = trained.module, trained.guide
    given, hidden = _given_network(module, guide, ingredients.data)
    posterior = sample_nuts(
        given,
        ingredients.data,
        hidden,
        draws=settings.draws,
        warmup=settings.warmup,
        chains=settings.restarts,
        seed=settings.chain_seed(0),
        progressbar=settings.progressbar,
    )
    for number, chain in enumerate(posterior.chains):
        chain.module = module
        if given is not module:
            drawn = _drawn_within(
                module, guide, ingredients.data, settings.draws, settings.chain_seed(number)
            )
            chain.values |= drawn
    posterior.attributes |= {"seed": settings.seed, **_conditions(module)}
    return InferenceResult(posterior, module, None)


def _given_network(
    module: MixedEffectsModule, guide: MeanFieldGuide | None, data: Batch
) -> tuple[MixedEffectsModule, Any]:
    """The model of the response given the network, and the network's pass over all rows.

    Effects within the network are taken at the means that training has found: their exact posterior would
    take a pass of the network over all rows for each evaluation.
    """
    module.eval()
    with torch.no_grad(), local_parameters():
        if guide is None or not module.spec.network_sites:
            return module, module.hidden(data)
        return module.given_network(), module.hidden(data, guide.centers())


def _drawn_within(
    module: MixedEffectsModule, guide: Any, data: Batch, draws: int, seed: int
) -> dict[str, Tensor]:
    """Draws of the effects within the network, independent of all else, from the guide of training."""
    values = draw_chain(module, guide, data, draws, seed=seed, weights=False).values
    return {name: values[name] for name in module.spec.network_sites if name in values}


def _conditions(module: MixedEffectsModule) -> dict[str, str]:
    """What the posterior takes as known, in words for the attributes."""
    if module.network is None:
        return {}
    notes = {"conditions_on": CONDITIONS_ON}
    if module.spec.layers:
        notes["conditions_on"] += ", and the group effects within its layers, at their SVI means"
        notes["effects_within_layers"] = (
            "mean-field Gaussians of the SVI phase, drawn independently of everything else"
        )
    if module.spec.reconstruction is not None:
        notes["reconstruction"] = f"{module.spec.reconstruction.likelihood} likelihood in the SVI phase"
    return notes


def _restarts(ingredients: Ingredients, settings: InferenceSettings) -> list[FittedChain]:
    """All restarts: trained together, then one after another."""
    seeds = [settings.chain_seed(restart) for restart in range(settings.restarts)]
    modules = [
        build_module(ingredients.spec, ingredients.priors, ingredients.plan, ingredients.data, seed)
        for seed in seeds
    ]
    trained: list[Trained] = []
    rows = _pooled(ingredients, settings, modules[0])
    if settings.trains_marginally(ingredients) and can_train_marginally(modules[0], rows):
        trained = _train_marginally(rows, settings, modules)
    elif settings.guide == "mean_field" or ingredients.plan is not None:
        label = "SVI" if settings.guide == "mean_field" else "network"
        trained = _train_mean_field(ingredients, settings, modules, seeds, label)
    if settings.guide == "mean_field":
        own = zip(modules, seeds, trained, strict=True)
        return [mean_field_chain(ingredients, settings, *one) for one in own]
    fitted = []
    for restart, (module, seed) in enumerate(zip(modules, seeds, strict=True)):
        label = f"posterior {restart + 1}/{settings.restarts}"
        one = trained[restart] if trained else None
        fitted.append(_structured(rows, settings, module, seed, label, one))
    return fitted


def _pooled(ingredients: Ingredients, settings: InferenceSettings, module: MixedEffectsModule) -> PooledRows:
    """Training rows, those as one that the structured guide need not tell apart."""
    if settings.guide == "structured" and has_gaussian_conditional(module):
        return pool_rows(ingredients.data)
    return PooledRows(ingredients.data)


@dataclass(frozen=True)
class Trained:
    """A network after training.

    Attributes
    ----------
    guide : MeanFieldGuide or None
        The guide that it was trained with; None: the effects were integrated out.
    result : TrainingResult
        The course of training.
    head : AdversaryHead or None
        The adversary.
    theta : Tensor, shape (P,), or None
        Where training has left the global variables, unconstrained.
    """

    guide: Any
    result: TrainingResult
    head: AdversaryHead | None
    theta: Tensor | None = None

    def record(self, chain: Chain) -> None:
        """Note how the adversary fared."""
        if self.head is None:
            return
        for i, group in enumerate(self.head.groups):
            chain.watched[f"adversary_accuracy|{group}"] = self.result.adversary[:, i]
            chain.quality[f"adversary_chance|{group}"] = torch.tensor(self.head.chance[i])


def _train_mean_field(
    ingredients: Ingredients,
    settings: InferenceSettings,
    modules: Sequence[MixedEffectsModule],
    seeds: Sequence[int],
    label: str,
) -> list[Trained]:
    data = ingredients.data
    objectives = []
    for module, seed in zip(modules, seeds, strict=True):
        guide = MeanFieldGuide(module, data, generator_for(seed, "start"))
        head = build_adversary(ingredients.adversary, module, data, seed)
        objectives.append(Objective(module, guide, head, ingredients.fixed_effects_weight))
    training = settings.training(ingredients.plan is not None)
    with elsewhere(objectives, data, settings.device) as moved:
        results = train_restarts(
            objectives, moved, training, seeds, progressbar=settings.progressbar, label=label
        )
    pairs = zip(objectives, results, strict=True)
    return [Trained(one.guide, result, one.adversary) for one, result in pairs]


def _train_marginally(
    rows: PooledRows, settings: InferenceSettings, modules: Sequence[MixedEffectsModule]
) -> list[Trained]:
    """Networks by the marginal likelihood, one restart after another."""
    trained = []
    for number, module in enumerate(modules):
        label = f"network {number + 1}/{len(modules)}"
        found = train_marginally(module, rows, progressbar=settings.progressbar, label=label)
        result = TrainingResult(found.trace, found.converged, found.trace.new_empty(len(found.trace), 0))
        trained.append(Trained(None, result, None, found.theta))
    return trained


def mean_field_chain(
    ingredients: Ingredients,
    settings: InferenceSettings,
    module: MixedEffectsModule,
    seed: int,
    trained: Trained,
) -> FittedChain:
    """Draws of a trained mean-field guide; those of effects up to 50 million numbers, see `Chain.tables`.

    Parameters
    ----------
    ingredients : Ingredients
        Model and data.
    settings : InferenceSettings
        Number of draws and restarts.
    module : MixedEffectsModule
        The restart's model.
    seed : int
        Seed of the draws.
    trained : Trained
        Its guide, and the course of training.

    Returns
    -------
    FittedChain
    """
    guide, result = trained.guide, trained.result
    held = effect_numbers(guide) * settings.draws * settings.restarts <= HELD
    weighed = held and not module.spec.network_sites
    if held:
        chain = draw_chain(module, guide, ingredients.data, settings.draws, seed=seed, weights=weighed)
    else:
        chain = draw_tables(module, guide, settings.draws, seed=seed)
    chain.trace = result.elbo
    chain.quality = {"converged": torch.tensor(float(result.converged))}
    khat = None
    if weighed:
        _, chain.quality["khat"] = pareto_smooth(chain.stats["log_weight"])
        khat = float(chain.quality["khat"])
    trained.record(chain)
    return FittedChain(chain, guide, result.final * ingredients.spec.n_rows, result.converged, khat)


def _structured(
    rows: PooledRows,
    settings: InferenceSettings,
    module: MixedEffectsModule,
    seed: int,
    label: str,
    trained: Trained | None,
) -> FittedChain:
    """All but the network's body, which stays where training has left it."""
    data, n_rows = rows.batch, rows.batch.n_rows
    inside = None if trained is None else trained.guide
    given, hidden = _given_network(module, inside, data)
    guide = StructuredGuide(given, data, hidden, rows.within)
    fit = fit_structured(
        guide,
        seed=seed,
        draws=settings.draws,
        compile=settings.compile,
        start=None if trained is None else trained.theta,
        progressbar=settings.progressbar,
        label=label,
    )
    globals_: Any = fit.draws
    values, ratios = draw_effects(guide, globals_.theta, seed=seed)
    drawn = {} if given is module else _drawn_within(module, inside, data, settings.draws, seed)
    chain = Chain(module, without_row_axis(given, values), {"log_weight": globals_.log_weight}, fit.elbo)
    chain.values |= drawn
    notes: dict[str, Any] = {
        "importance_corrected": globals_.corrected,
        "importance_ess": globals_.effective_size,
    }
    if trained is not None:
        notes |= _conditions(module)
        # Estimates for the finished guide are no steps; where the trace alone says if training was long
        # enough, the own steps of the guide, at a higher level, would have it rising.
        own = settings.early_stopping and len(fit.elbo) > FEW_ESTIMATES
        steps = fit.elbo if own else fit.elbo[:0]
        chain.trace = torch.cat([trained.result.elbo, steps])
        trained.record(chain)
    if ratios.shape[1]:
        _, by_group = pareto_smooth(ratios.T)
        notes["khat_by_group_max"] = float(by_group.max())
        chain.quality[f"khat|{guide.conditional.groups[0]}"] = by_group
    converged = fit.converged and (trained is None or trained.result.converged)
    chain.quality |= {"khat": torch.tensor(globals_.khat), "converged": torch.tensor(float(converged))}
    elbo = float(fit.elbo[-25:].mean()) * n_rows + float(module.log_prior_of_weights().detach())
    whole: Any = guide
    if given is not module and inside is not None:
        whole = JointGuide(guide, inside.restricted(module.spec.network_sites))
    return FittedChain(chain, whole, elbo, converged, globals_.khat, notes)
