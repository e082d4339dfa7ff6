"""More rows of groups that training had: their effects drawn again, all else as it is."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pyro_armed.batch import Batch
from pyro_armed.design import Encoded
from pyro_armed.errors import ArgumentError, UnseenGroupError
from pyro_armed.partial_conditional import draw_free_effects
from pyro_armed.posterior import Chain, Posterior
from pyro_armed.seeds import generator_for
from pyro_armed.spec import ModelSpec

__all__ = ["check_update", "update_effects"]


def check_update(spec: ModelSpec, encoded: Encoded) -> None:
    """Refuse rows that cannot update a posterior.

    Parameters
    ----------
    spec : ModelSpec
        The model's structure.
    encoded : Encoded
        Rows with their response.

    Raises
    ------
    ArgumentError
        For a model without group effects.
    UnseenGroupError
        For groups that training did not have.
    """
    if not spec.blocks:
        raise ArgumentError("update() draws group effects again, and this model has none; fit a new model.")
    for group, labels in encoded.new_groups.items():
        if len(labels):
            shown = ", ".join(repr(label) for label in labels[:5]) + (", ..." if len(labels) > 5 else "")
            raise UnseenGroupError(
                f"Group '{group}' has labels that training did not have: {shown}. update() is for known "
                "groups; for new ones pass these rows to predict(..., new_groups='adapt', support=...)."
            )


@torch.no_grad()
def update_effects(posterior: Posterior, known: Batch, new: Batch, *, seed: int) -> Posterior:
    """The posterior with the effects of some groups drawn again.

    Parameters
    ----------
    posterior : Posterior
        Stored draws.
    known : Batch
        The rows that it is conditioned on.
    new : Batch
        More rows. Effects of all groups that occur in them are drawn together, given the rows of these groups
        in both batches, the global variables and the effects of all other groups.
    seed : int
        Seed of the draws.

    Returns
    -------
    Posterior
    """
    free = {
        group: torch.unique(new.codes[group]) for group in {block.group: None for block in posterior.chains[0].module.spec.blocks}
    }
    concerned = torch.zeros(known.size, dtype=torch.bool)
    for group, codes in free.items():
        concerned |= torch.isin(known.codes[group], codes)
    rows = known.select(concerned.nonzero()[:, 0]).joined(new)
    generator = generator_for(seed, "update")
    chains = []
    for chain in posterior.chains:
        drawn = draw_free_effects(chain, rows, free, generator)
        chains.append(_replaced(chain, free, drawn))
    return Posterior(chains, dict(posterior.attributes))


def _replaced(chain: Chain, free: Mapping[str, Tensor], drawn: Mapping[str, Tensor]) -> Chain:
    values = dict(chain.values)
    for block in chain.module.spec.blocks:
        for term in block.terms:
            name = block.effect_name(term)
            values[name] = values[name].index_copy(1, free[block.group], drawn[name])
    return Chain(chain.module, values, chain.stats, chain.trace, chain.quality)
