"""Predictions: the posterior's draws pushed through the model, in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_armed.design import Encoded
from pyro_armed.errors import ArgumentError
from pyro_armed.local import local_parameters
from pyro_armed.new_groups import check_mode, extend_effects
from pyro_armed.posterior import Chain, Posterior, with_row_axis
from pyro_armed.training import single_thread

__all__ = ["KINDS", "Evaluated", "evaluated_chunks", "predict_draws"]

KINDS = ("mean", "response", "linear")
_ELEMENTS = 10_000_000


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


@torch.no_grad()
def evaluated_chunks(
    posterior: Posterior, encoded: Encoded, mode: str, *, seed: int, draws: int | None = None
) -> Iterator[Evaluated]:
    """Linear predictors for all draws, some at a time.

    Parameters
    ----------
    posterior : Posterior
        Stored draws.
    encoded : Encoded
        Rows.
    mode : str
        What to do for new groups.
    seed : int
        Seed of the new groups' effects.
    draws : int, optional
        Draws of each chain to use, evenly spaced; None: all.

    Yields
    ------
    Evaluated

    Raises
    ------
    UnseenGroupError, ArgumentError
        See `pyro_armed.new_groups.check_mode`.
    """
    check_mode(mode, encoded.new_groups)
    sizes = {group: len(labels) for group, labels in encoded.new_groups.items()}
    batch = replace(encoded.batch, rows=None)
    generator = torch.Generator().manual_seed(seed)
    with single_thread(batch):
        for position, chain in enumerate(posterior.chains):
            module = chain.module.eval()
            with local_parameters():
                hidden = module.hidden(batch)
            kept = _thinned(chain, draws)
            values = with_row_axis(module, {name: value[kept] for name, value in chain.values.items()})
            values = extend_effects(module, values, sizes, mode, generator)
            width = max(1, _ELEMENTS // max(1, batch.size * module.spec.n_predictors))
            for start in range(0, len(kept), width):
                part = {name: value[start : start + width] for name, value in values.items()}
                etas = {p.parameter: module.linear_predictor(p, part, batch, hidden) for p in module.spec.predictors}
                yield Evaluated(position, start, etas, part, chain)


def predict_draws(
    posterior: Posterior, encoded: Encoded, mode: str, *, kind: str = "mean", seed: int, draws: int | None = None
) -> Tensor:
    """Predictions for each row and draw.

    Parameters
    ----------
    posterior : Posterior
        Stored draws.
    encoded : Encoded
        Rows.
    mode : str
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

    Raises
    ------
    ArgumentError
        For an unknown kind or number of draws.
    """
    if kind not in KINDS:
        raise ArgumentError(f"kind={kind!r} is not one of {', '.join(map(repr, KINDS))}.")
    chains: list[list[Tensor]] = [[] for _ in posterior.chains]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part in evaluated_chunks(posterior, encoded, mode, seed=seed, draws=draws):
            chains[part.chain].append(_prediction(part, encoded, kind))
    return torch.stack([torch.cat(parts) for parts in chains])


def _prediction(part: Evaluated, encoded: Encoded, kind: str) -> Tensor:
    if kind == "linear":
        return part.etas["mu"]
    module = part.chain_object.module
    auxiliaries = module.auxiliaries(part.etas, part.values)
    if kind == "mean":
        return module.spec.family.mean(part.etas["mu"], encoded.batch.trials, **auxiliaries)
    return module.response_distribution(part.etas, part.values, encoded.batch).sample()


def _thinned(chain: Chain, draws: int | None) -> Tensor:
    if draws is None:
        return torch.arange(chain.n_draws)
    if not isinstance(draws, int) or isinstance(draws, bool) or draws < 1:
        raise ArgumentError(f"draws={draws!r} must be a whole number of at least 1.")
    if draws > chain.n_draws:
        raise ArgumentError(f"draws={draws} is more than the {chain.n_draws} draws that fit() stored for each chain.")
    return torch.linspace(0, chain.n_draws - 1, draws).round().long()
