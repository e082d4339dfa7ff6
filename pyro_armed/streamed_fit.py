"""Inference of models of rows in files: the mean-field guide, minibatch by minibatch."""

from __future__ import annotations

from dataclasses import replace

import torch

from pyro_armed.building import build_adversary, build_module
from pyro_armed.design import StreamedDesign
from pyro_armed.devices import elsewhere
from pyro_armed.draws import draw_tables
from pyro_armed.effect_tables import HELD, effect_numbers
from pyro_armed.errors import ArgumentError
from pyro_armed.guides import MeanFieldGuide
from pyro_armed.inference import FittedChain, InferenceResult, Trained, assembled
from pyro_armed.inference_settings import InferenceSettings, Ingredients
from pyro_armed.local import local_parameters
from pyro_armed.module import MixedEffectsModule
from pyro_armed.objective import Objective
from pyro_armed.seeds import generator_for
from pyro_armed.streaming import RowStream
from pyro_armed.training import TrainingSettings, no_validation, single_thread, train

__all__ = ["chain_from", "check_streamed", "infer_streamed", "start", "streamed_settings"]

BATCH = 4096


def check_streamed(settings: InferenceSettings) -> None:
    """Refuse what needs all rows at once.

    Parameters
    ----------
    settings : InferenceSettings
        The arguments of `ARMED.fit`.

    Raises
    ------
    ArgumentError
        For NUTS and the structured guide.
    """
    mend = "or read the rows into a data frame: pandas.read_parquet(...)"
    if settings.inference != "svi":
        raise ArgumentError(f"inference={settings.inference!r} needs all rows in memory; use 'svi', {mend}.")
    if settings.guide != "mean_field":
        raise ArgumentError(
            f"guide={settings.guide!r} needs all rows in memory; pass guide='mean_field', whose intervals "
            f"are too narrow, {mend}."
        )


def streamed_settings(settings: InferenceSettings, network: bool) -> TrainingSettings:
    """Settings of the SVI loop, with larger minibatches than for rows in memory."""
    training = settings.training(network)
    return training if training.batch_size is not None else replace(training, batch_size=BATCH)


def infer_streamed(
    ingredients: Ingredients, settings: InferenceSettings, design: StreamedDesign
) -> InferenceResult:
    """Train and draw, one restart after another.

    Parameters
    ----------
    ingredients : Ingredients
        The model, and a sample of its rows.
    settings : InferenceSettings
        How.
    design : StreamedDesign
        Where the rows come from.

    Returns
    -------
    InferenceResult
        Draws of the effects are held up to 50 million numbers; see `Chain.tables`.

    Raises
    ------
    ArgumentError
        See `check_streamed`.
    """
    check_streamed(settings)
    training = streamed_settings(settings, ingredients.plan is not None)
    dtype = None if ingredients.plan is None else ingredients.plan.dtype
    feed = RowStream(design, training.rows_per_step(design.n_rows), dtype, device=settings.device)
    fitted = []
    with local_parameters(), no_validation():
        for restart in range(settings.restarts):
            seed = settings.chain_seed(restart)
            objective = start(ingredients, seed)
            label = f"SVI {restart + 1}/{settings.restarts}" if settings.restarts > 1 else "SVI"
            with single_thread(feed.data), elsewhere([objective], ingredients.data, settings.device):
                result = train(
                    objective,
                    feed.data,
                    training,
                    seed=seed,
                    progressbar=settings.progressbar,
                    label=label,
                    feed=feed,
                )
            one = Trained(objective.guide, result, objective.adversary)
            fitted.append(chain_from(ingredients, settings, objective.module, seed, one))
    return assembled(ingredients, settings, fitted)


def start(ingredients: Ingredients, seed: int) -> Objective:
    """Model, guide and adversary of a restart before training.

    Parameters
    ----------
    ingredients : Ingredients
        The model.
    seed : int
        Seed of the first weights.

    Returns
    -------
    Objective
    """
    data = ingredients.data
    module = build_module(ingredients.spec, ingredients.priors, ingredients.plan, data, seed)
    guide = MeanFieldGuide(module, data, generator_for(seed, "start"))
    head = build_adversary(ingredients.adversary, module, data, seed)
    return Objective(module, guide, head, ingredients.fixed_effects_weight)


@torch.no_grad()
def chain_from(
    ingredients: Ingredients,
    settings: InferenceSettings,
    module: MixedEffectsModule,
    seed: int,
    trained: Trained,
) -> FittedChain:
    """Draws of a trained guide without a pass over the rows; there is no k-hat.

    Parameters
    ----------
    ingredients : Ingredients
        The model.
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
    chain = draw_tables(module, trained.guide, settings.draws, seed=seed)
    chain.trace = trained.result.elbo
    tables = chain.tables
    numbers = effect_numbers(trained.guide) * settings.draws * settings.restarts
    if tables is not None and numbers <= HELD:
        codes = {group.name: torch.arange(group.size) for group in module.spec.groups}
        chain.values, chain.tables = chain.values | tables.draw(module, chain.values, codes), None
    chain.quality = {"converged": torch.tensor(float(trained.result.converged))}
    trained.record(chain)
    elbo = trained.result.final * ingredients.spec.n_rows
    return FittedChain(chain, trained.guide, elbo, trained.result.converged, None)
