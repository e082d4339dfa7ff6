"""Predictions: the posterior's draws pushed through the model, in chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_armed.batch import Batch
from pyro_armed.design import Encoded
from pyro_armed.errors import ArgumentError
from pyro_armed.local import local_parameters
from pyro_armed.module import MixedEffectsModule
from pyro_armed.new_groups import Mode, extend_chain, mode_of
from pyro_armed.posterior import Chain, Posterior
from pyro_armed.seeds import generator_for, seeded, stream
from pyro_armed.training import single_thread

__all__ = [
    "KINDS",
    "Evaluated",
    "evaluated_chunks",
    "evaluated_rows",
    "extended_chains",
    "predict_draws",
]

KINDS = ("mean", "response", "linear")
_ELEMENTS = 10_000_000
# Draws of each chain that are used by default where each takes a pass of the network.
DRAWS_WITHIN = 50


@dataclass(frozen=True)
class Evaluated:
    """Some draws of one chain, evaluated on some rows.

    Attributes
    ----------
    chain, start : int
        The chain and its first draw here.
    etas : dict of str to Tensor, shape (S, N) or (S, N, R)
        Linear predictors.
    values : dict of str to Tensor
        The draws, with the effects of new groups.
    chain_object : Chain
        Where they come from.
    """

    chain: int
    start: int
    etas: dict[str, Tensor]
    values: dict[str, Tensor]
    chain_object: Chain


def evaluated_chunks(
    posterior: Posterior, encoded: Encoded, mode: str | Mode, *, seed: int, draws: int | None = None
) -> Iterator[Evaluated]:
    """Linear predictors for all draws, some at a time.

    Parameters
    ----------
    posterior : Posterior
        Stored draws.
    encoded : Encoded
        Rows.
    mode : str or Mode
        What to do for new groups.
    seed : int
        Seed of the new groups' effects.
    draws : int, optional
        Draws of each chain to use, evenly spaced; None: all, or 50 where group effects within the network
        make each draw a pass of its own.

    Yields
    ------
    Evaluated

    Raises
    ------
    UnseenGroupError, ArgumentError
        See `pyro_armed.new_groups.mode_of` and `Mode.check`.
    """
    yield from evaluated_rows(
        extended_chains(posterior, encoded, mode, seed=seed, draws=draws), encoded.batch
    )


@torch.no_grad()
def extended_chains(
    posterior: Posterior, encoded: Encoded, mode: str | Mode, *, seed: int, draws: int | None = None
) -> list[Chain]:
    """The chains that predictions are made from: some draws, with the effects of new groups.

    Parameters
    ----------
    posterior, encoded, mode, seed, draws
        As for `evaluated_chunks`.

    Returns
    -------
    list of Chain
        Group effects have shape (S, C + new, ...).

    Raises
    ------
    UnseenGroupError, ArgumentError
        See `pyro_armed.new_groups.mode_of` and `Mode.check`.
    """
    mode = mode_of(mode)
    mode.check(encoded)
    chains = []
    for position, chain in enumerate(posterior.chains):
        if (kept := _thinned(chain, draws)) is not None:
            chain = Chain(chain.module, {name: value[kept] for name, value in chain.values.items()})
        generator = generator_for(seed, "new groups", position)
        chains.append(extend_chain(chain, encoded, mode, generator))
    return chains


@torch.no_grad()
def evaluated_rows(chains: Sequence[Chain], batch: Batch) -> Iterator[Evaluated]:
    """Linear predictors of some rows, for all draws of the chains.

    Parameters
    ----------
    chains : sequence of Chain
        From `extended_chains`.
    batch : Batch
        Rows.

    Yields
    ------
    Evaluated
    """
    batch = replace(batch, rows=None)
    with single_thread(batch):
        for position, chain in enumerate(chains):
            module = chain.module.eval()
            within = bool(module.spec.layers)
            with local_parameters():
                hidden = None if within else module.hidden(batch)
            start = 0
            for values in chain.chunks(_width(module, batch.size)):
                if within:
                    hidden = module.hidden(batch, values)
                etas = {
                    p.parameter: module.linear_predictor(p, values, batch, hidden)
                    for p in module.spec.predictors
                }
                yield Evaluated(position, start, etas, values, chain)
                start += len(etas["mu"])


def _width(module: MixedEffectsModule, n_rows: int) -> int:
    """Draws at a time such that the largest intermediate tensor has about `_ELEMENTS` elements."""
    spec = module.spec
    effects = max((block.size for block in spec.blocks), default=1)
    return max(1, _ELEMENTS // (max(1, n_rows) * max(spec.n_predictors * effects, len(spec.levels))))


def predict_draws(
    posterior: Posterior,
    encoded: Encoded,
    mode: str | Mode,
    *,
    kind: str = "mean",
    seed: int,
    draws: int | None = None,
) -> Tensor:
    """Predictions for each row and draw.

    Parameters
    ----------
    posterior : Posterior
        Stored draws.
    encoded : Encoded
        Rows.
    mode : str or Mode
        What to do for new groups.
    kind : {"mean", "response", "linear"}
        Expected response, a drawn response, or the linear predictor of the mean.
    seed : int
        Seed of all draws.
    draws : int, optional
        Draws of each chain to use.

    Returns
    -------
    Tensor, shape (chains, S, N) or (chains, S, N, K)
        All that is held: everything else is made for some draws at a time.

    Raises
    ------
    ArgumentError
        For an unknown kind or number of draws.
    """
    if kind not in KINDS:
        raise ArgumentError(f"kind={kind!r} is not one of {', '.join(map(repr, KINDS))}.")
    shape = (len(posterior.chains), posterior.n_draws if draws is None else draws)
    filled: Tensor | None = None
    with seeded(stream(seed, "responses")):
        for part in evaluated_chunks(posterior, encoded, mode, seed=seed, draws=draws):
            predicted = _prediction(part, encoded, kind)
            if filled is None:
                filled = predicted.new_empty(*shape, *predicted.shape[1:])
            filled[part.chain, part.start : part.start + len(predicted)] = predicted
    return filled  # type: ignore[return-value]


def _prediction(part: Evaluated, encoded: Encoded, kind: str) -> Tensor:
    if kind == "linear":
        return part.etas["mu"]
    module = part.chain_object.module
    auxiliaries = module.auxiliaries(part.etas, part.values)
    if kind == "mean":
        return module.spec.family.mean(part.etas["mu"], encoded.batch.trials, **auxiliaries)
    return module.response_distribution(part.etas, part.values, encoded.batch).sample()


def _thinned(chain: Chain, draws: int | None) -> Tensor | None:
    if draws is None and chain.module.spec.layers:
        draws = min(DRAWS_WITHIN, chain.n_draws)
    if draws is None:
        return None
    if not isinstance(draws, int) or isinstance(draws, bool) or draws < 1:
        raise ArgumentError(f"draws={draws!r} must be a whole number of at least 1.")
    if draws > chain.n_draws:
        raise ArgumentError(
            f"draws={draws} is more than the {chain.n_draws} draws that fit() stored for each chain."
        )
    return torch.linspace(0, chain.n_draws - 1, draws, dtype=torch.float64).round().long()
