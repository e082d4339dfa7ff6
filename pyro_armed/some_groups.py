"""The posterior of some of the groups, where those of all do not fit into memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyro_armed.batch import Batch
from pyro_armed.effect_tables import HELD
from pyro_armed.errors import ArgumentError
from pyro_armed.integers import Integers
from pyro_armed.module import MixedEffectsModule
from pyro_armed.posterior import Chain, Posterior
from pyro_armed.priors import PriorTable
from pyro_armed.spec import Group, ModelSpec

__all__ = ["blocks_of", "module_of", "posterior_of", "recoded"]


def posterior_of(posterior: Posterior, codes: Mapping[str, Tensor]) -> Posterior:
    """The posterior of a model that has some of the groups only.

    Parameters
    ----------
    posterior : Posterior
        Of all groups, held or not.
    codes : mapping of str to Tensor, shape (P,)
        Which groups of each grouping factor, in their new order. All of a factor that is not named.

    Returns
    -------
    Posterior
        With P groups, and draws that are the same whichever others are asked for.

    Raises
    ------
    ArgumentError
        Where even these are too many.
    """
    spec = posterior.chains[0].module.spec
    codes = {group.name: codes.get(group.name, torch.arange(group.size)) for group in spec.groups}
    if not posterior.is_held:
        numbers = sum(len(codes[block.group]) * block.size for block in spec.blocks)
        if numbers * posterior.n_draws * len(posterior.chains) > 4 * HELD:
            raise ArgumentError(
                f"Draws of the effects of {max(map(len, codes.values()))} groups do not fit into memory; "
                "take fewer groups or rows at a time, or fit with fewer draws."
            )
    modules: dict[int, MixedEffectsModule] = {}
    chains = []
    for chain in posterior.chains:
        module = modules.setdefault(id(chain.module), module_of(chain.module, codes))
        chains.append(_chain_of(chain, module, codes))
    return Posterior(chains, dict(posterior.attributes))


def module_of(module: MixedEffectsModule, codes: Mapping[str, Tensor]) -> MixedEffectsModule:
    """The model of some of the groups; its network is the same object.

    Parameters
    ----------
    module : MixedEffectsModule
        The model.
    codes : mapping of str to Tensor, shape (P,)
        Which groups of each grouping factor.

    Returns
    -------
    MixedEffectsModule
        Without training data.
    """
    spec = module.spec.with_groups({name: _group(module.spec, name, some) for name, some in codes.items()})
    priors = PriorTable(spec, module.priors.user, module.priors.dtype)
    return MixedEffectsModule(spec, priors, module.network, module.output_layer).eval()


def recoded(batch: Batch, spec: ModelSpec, codes: Mapping[str, Tensor]) -> Batch:
    """Rows as the model of some of the groups has them.

    Parameters
    ----------
    batch : Batch
        Rows of these groups.
    spec : ModelSpec
        The model of all groups.
    codes : mapping of str to Tensor, shape (P,)
        Which groups, in ascending order.

    Returns
    -------
    Batch
    """
    found = {
        group.name: torch.searchsorted(codes[group.name], batch.codes[group.name].contiguous())
        if group.name in codes
        else batch.codes[group.name]
        for group in spec.groups
    }
    return replace(batch, codes=found)


def blocks_of(posterior: Posterior, group: str, numbers: int) -> Iterator[Tensor]:
    """Codes of successive groups, so many that their effects' draws are about ``numbers``.

    Parameters
    ----------
    posterior : Posterior
        Of all groups.
    group : str
        A grouping factor.
    numbers : int
        Draws of effects of one chain.

    Yields
    ------
    Tensor, shape (P,)
    """
    spec = posterior.chains[0].module.spec
    each = posterior.n_draws * max(1, sum(block.size for block in spec.blocks if block.group == group))
    yield from torch.arange(spec.group(group).size).split(max(1, numbers // each))


def _group(spec: ModelSpec, name: str, codes: Tensor) -> Group:
    group = spec.group(name)
    return Group(name, _taken(group.labels, codes), _taken(group.counts, codes))


def _taken(values: Sequence[Any], codes: Tensor) -> Sequence[Any]:
    if isinstance(values, Integers):
        return Integers(values.array[codes.numpy()])
    return [values[code] for code in codes.tolist()]


def _chain_of(chain: Chain, module: MixedEffectsModule, codes: Mapping[str, Tensor]) -> Chain:
    spec = chain.module.spec
    owners = {name: group.name for group in spec.groups for name in spec.effect_names(group.name)}
    values = {
        name: value[:, codes[owners[name]]] if name in owners else value
        for name, value in chain.values.items()
    }
    if chain.tables is not None:
        values |= chain.tables.draw(module, chain.values, codes)
    quality = {
        name: value[codes[name.partition("|")[2]]] if value.dim() else value
        for name, value in chain.quality.items()
    }
    return replace(chain, module=module, values=values, quality=quality, tables=None)
