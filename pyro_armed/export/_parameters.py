"""Draws of parameters, with Bambi's names and dimensions."""

from __future__ import annotations

import numpy as np
import pyro
import torch
import xarray as xr

from pyro_armed.batch import Batch
from pyro_armed.draws import DRAWS, without_row_axis
from pyro_armed.errors import ArgumentError
from pyro_armed.export._running import check_chains, evaluating
from pyro_armed.export._tables import Table, to_numpy
from pyro_armed.module import MixedEffectsModule, group_plate
from pyro_armed.passes import RECONSTRUCTION
from pyro_armed.posterior import Chain, Posterior
from pyro_armed.priors import corr_name
from pyro_armed.seeds import seeded, stream
from pyro_armed.spec import FEATURES, INTERCEPT, EffectBlock, ModelSpec, Predictor, Term

__all__ = ["posterior_dataset", "prior_chain", "prior_dataset", "sample_stats_dataset"]

RECONSTRUCTION_SIGMA = f"{RECONSTRUCTION}_sigma"


def posterior_dataset(posterior: Posterior) -> xr.Dataset:
    """All parameters on the data's scale.

    Parameters
    ----------
    posterior : Posterior
        Draws of all chains.

    Returns
    -------
    xarray.Dataset
        Dimensions (chain, draw, ...), float64: common effects (the intercept first), auxiliary parameters,
        sds of the group effects, correlations, group effects.

    Raises
    ------
    ArgumentError
        Where there is no chain, or chains differ in their number of draws.
    """
    check_chains(posterior)
    table = Table(len(posterior.chains), posterior.n_draws)
    reports = [chain.report() for chain in posterior.chains]
    for name, dims in _parameter_dims(table, posterior.chains[0].module).items():
        table.add(name, dims, np.stack([to_numpy(report[name]) for report in reports]))
    return table.dataset()


def prior_dataset(module: MixedEffectsModule, draws: int, seed: int) -> xr.Dataset:
    """Draws from the prior, laid out like the posterior.

    Parameters
    ----------
    module : MixedEffectsModule
        The model.
    draws : int
        Number of draws S.
    seed : int
        Seed; the global random state is put back.

    Returns
    -------
    xarray.Dataset
        Dimensions (chain, draw, ...) with one chain.

    Examples
    --------
    >>> from pyro_armed import families, simulate
    >>> from pyro_armed.design import FormulaDesign
    >>> from pyro_armed.priors import PriorTable
    >>> frame = simulate.mixed_model(8, 20, seed=0).frame
    >>> spec = FormulaDesign(["y ~ x1 + (1 | group)"], frame, families.get("gaussian")).spec
    >>> prior = prior_dataset(MixedEffectsModule(spec, PriorTable(spec)), 10, seed=0)
    >>> list(prior.data_vars)
    ['Intercept', 'x1', 'sigma', '1|group_sigma', '1|group']
    >>> prior["1|group"].sizes["group__factor_dim"]
    8
    """
    return posterior_dataset(Posterior([prior_chain(module, draws, seed)]))


def prior_chain(module: MixedEffectsModule, draws: int, seed: int) -> Chain:
    """Draws from the prior as a `Chain`.

    A network's own weights have no prior: they stay what they are.

    Parameters
    ----------
    module : MixedEffectsModule
        The model.
    draws : int
        Number of draws S.
    seed : int
        Seed; the global random state is put back.

    Returns
    -------
    Chain

    Raises
    ------
    ArgumentError
        For less than one draw.
    """
    if not isinstance(draws, int) or isinstance(draws, bool) or draws < 1:
        raise ArgumentError(f"prior_draws={draws!r} must be a whole number of at least 1.")
    nobody = Batch(size=0, n_rows=module.spec.n_rows)
    with (
        evaluating(module),
        seeded(stream(seed, "prior"), [module.priors.device]),
        pyro.plate(DRAWS, draws, dim=-2),
    ):
        values = module.sample_latents(nobody)
    return Chain(module, without_row_axis(module, values))


def sample_stats_dataset(posterior: Posterior) -> xr.Dataset:
    """Statistics of each draw, and the course of training.

    Parameters
    ----------
    posterior : Posterior
        Draws of all chains.

    Returns
    -------
    xarray.Dataset
        Each entry of ``chain.stats`` with dimensions (chain, draw), NaN for chains that lack it; each of
        ``chain.quality`` with (chain), or (chain, district__factor_dim) for ``khat|district``; ``elbo``
        (chain, step), the ELBO per row, and each of ``chain.watched``, NaN after a chain's last step.
    """
    check_chains(posterior)
    table = Table(len(posterior.chains), posterior.n_draws)
    for name in dict.fromkeys(name for chain in posterior.chains for name in chain.stats):
        absent = torch.full((posterior.n_draws,), torch.nan)
        values = [chain.stats.get(name, absent).detach().cpu().numpy() for chain in posterior.chains]
        table.add(name, (), np.stack(values))
    spec = posterior.chains[0].module.spec
    for name in dict.fromkeys(name for chain in posterior.chains for name in chain.quality):
        if any(name not in chain.quality for chain in posterior.chains):
            continue
        _, _, group = name.partition("|")
        of_groups = posterior.chains[0].quality[name].dim() > 0
        dims = (table.dim(group_plate(group), spec.group(group).labels),) if of_groups else ()
        values = [to_numpy(chain.quality[name]) for chain in posterior.chains]
        table.add(name, dims, np.stack(values), lead=("chain",))
    traces = {"elbo": [chain.trace for chain in posterior.chains]}
    for name in posterior.chains[0].watched:
        traces[name] = [chain.watched[name] for chain in posterior.chains]
    if steps := max(map(len, traces["elbo"])):
        for name, each in traces.items():
            padded = [np.pad(to_numpy(v), (0, steps - len(v)), constant_values=np.nan) for v in each]
            table.add(name, (table.dim("step", range(steps)),), np.stack(padded), lead=("chain",))
    return table.dataset()


def _parameter_dims(table: Table, module: MixedEffectsModule) -> dict[str, tuple[str, ...]]:
    """Dimensions after (chain, draw) of each parameter, in the order of the dataset."""
    spec, priors = module.spec, module.priors
    dims: dict[str, tuple[str, ...]] = {}
    for predictor in spec.predictors:
        dims |= _common_dims(table, module, predictor)
    for name in spec.family.auxiliaries:
        if name in priors:
            shape = priors[name].raw.event_shape
            dims[name] = tuple(table.dim(f"{name}_dim", range(size)) for size in shape)
    if RECONSTRUCTION_SIGMA in priors:
        dims[RECONSTRUCTION_SIGMA] = ()
    effects = [(block, term) for block in spec.blocks for term in block.terms]
    for block, term in effects:
        vector = _effect_dims(table, block, term)
        dims[f"{block.effect_name(term)}_sigma"] = vector + _outcome_dims(table, spec, block.parameter)
    for block in spec.blocks:
        if block.correlated:
            dims[corr_name(spec, block)] = _corr_dims(table, block)
    for block, term in effects:
        group = spec.group(block.group)
        factor = table.dim(group_plate(group.name), group.labels)
        tail = _effect_dims(table, block, term) + _outcome_dims(table, spec, block.parameter)
        dims[block.effect_name(term)] = (factor, *tail)
    for layer in spec.layers:
        dims |= {f"{name}_sigma": () for name in layer.names}
        group = spec.group(layer.group)
        factor = table.dim(group_plate(group.name), group.labels)
        channel = table.dim(f"{layer.layer}__channel_dim", range(layer.channels))
        dims |= dict.fromkeys(layer.names, (factor, channel))
    return dims


def _common_dims(
    table: Table, module: MixedEffectsModule, predictor: Predictor
) -> dict[str, tuple[str, ...]]:
    outcome = _outcome_dims(table, module.spec, predictor.parameter)
    dims = {predictor.common_name(INTERCEPT): outcome} if predictor.intercept else {}
    for term in predictor.terms:
        name = predictor.common_name(term.name)
        if name in module.priors:
            dims[name] = ((table.dim(f"{name}_dim", term.labels),) if term.is_vector else ()) + outcome
    if (name := predictor.common_name(FEATURES)) in module.priors:
        dims[name] = (table.dim("feature", range(module.spec.n_features)), *outcome)
    return dims


def _outcome_dims(table: Table, spec: ModelSpec, parameter: str) -> tuple[str, ...]:
    """The dimension of a categorical response's levels but the first."""
    if parameter != "mu" or spec.n_predictors == 1:
        return ()
    return (table.dim(f"{spec.response}_reduced_dim", spec.levels[1:]),)


def _effect_dims(table: Table, block: EffectBlock, term: Term) -> tuple[str, ...]:
    """The dimension of a group effect that is a vector; with its full name where another has other labels."""
    if term.name == FEATURES:
        return (table.dim("feature", range(term.size)),)
    if not term.is_vector:
        return ()
    return (table.dim(f"{term.name}__expr_dim", term.labels, f"{block.effect_name(term)}__expr_dim"),)


def _corr_dims(table: Table, block: EffectBlock) -> tuple[str, ...]:
    labels = [
        label
        for term in block.terms
        for label in ([f"{term.name}[{part}]" for part in term.labels] if term.is_vector else [term.name])
    ]
    first = table.dim(f"{block.group}__effect_dim", labels, f"{block.key}__effect_dim")
    return first, table.dim(f"{first}_bis", labels)
