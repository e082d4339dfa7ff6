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

__all__ = ["update_effects"]


@torch.no_grad()
def update_effects(
    spec: ModelSpec, posterior: Posterior, known: Batch, new: Encoded, *, seed: int
) -> Posterior:
    """The posterior with the effects of some groups drawn again.

    Parameters
    ----------
    spec : ModelSpec
        The model's structure.
    posterior : Posterior
        Stored draws.
    known : Batch
        The rows that these are conditioned on.
    new : Encoded
        More rows, with their response. Effects of all groups that occur in them are drawn together, given the
        rows of these groups in both batches, the global variables and the effects of all other groups.
    seed : int
        Seed of the draws.

    Returns
    -------
    Posterior
        Its attribute ``updated_rows`` counts the rows of all updates.

    Raises
    ------
    ArgumentError
        For a model without group effects.
    UnseenGroupError
        For groups that training did not have.
    """
    if spec.layers:
        raise ArgumentError(
            "update() draws the effects of the predictor again, which depend on those within the network "
            "(ScaleBias); fit a new model."
        )
    if not spec.blocks:
        raise ArgumentError("update() draws group effects again, and this model has none; fit a new model.")
    _refuse_new(new)
    free = {block.group: torch.unique(new.batch.codes[block.group]) for block in spec.blocks}
    concerned = torch.zeros(known.size, dtype=torch.bool)
    for group, codes in free.items():
        concerned |= torch.isin(known.codes[group], codes)
    rows = known.select(concerned.nonzero()[:, 0]).joined(new.batch)
    generator = generator_for(seed, "update")
    chains = [_redrawn(chain, rows, free, generator) for chain in posterior.chains]
    count = posterior.attributes.get("updated_rows", 0) + new.batch.size
    return Posterior(chains, {**posterior.attributes, "updated_rows": count})


def _redrawn(chain: Chain, rows: Batch, free: Mapping[str, Tensor], generator: torch.Generator) -> Chain:
    drawn = draw_free_effects(chain, rows, free, generator)
    values = dict(chain.values)
    for block in chain.module.spec.blocks:
        for name in (block.effect_name(term) for term in block.terms):
            values[name] = values[name].index_copy(1, free[block.group], drawn[name])
    return Chain(chain.module, values, chain.stats, chain.trace, chain.quality)


def _refuse_new(encoded: Encoded) -> None:
    for group, labels in encoded.new_groups.items():
        if len(labels):
            shown = ", ".join(repr(label) for label in labels[:5]) + (", ..." if len(labels) > 5 else "")
            raise UnseenGroupError(
                f"Group '{group}' has labels that training did not have: {shown}. update() is for known "
                "groups; for new ones pass these rows to predict(..., new_groups='adapt', support=...)."
            )
