"""The classifier q(group | x): small networks, each trained on some rows and judged on others.

In torch, because boosted trees could be kept in a file only as a pickle.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from pyro_armed.batch import minibatches
from pyro_armed.seeds import generator_for

__all__ = ["log_probabilities", "train_classifier"]

_BATCH = 256
_MOST_STEPS = 1500
_CHECK_EVERY = 50  # steps, at least one pass over the rows
_PATIENCE = 5  # checks without a better held-out loss
_CHUNK = 4_000_000  # elements of rows x groups at a time


def train_classifier(
    network: nn.Module,
    inputs: Tensor,
    codes: Tensor,
    fitting: Tensor,
    held_out: Tensor,
    *,
    seed: int,
    bar: tqdm,
) -> None:
    """Minimise the cross-entropy; keep the weights that were best on the held-out rows.

    Parameters
    ----------
    network : nn.Module
        Maps inputs (B, K) to logits (B, C); changed in place.
    inputs : Tensor, shape (N, K)
        Standardised columns.
    codes : Tensor, shape (N,)
        Groups, 0, ..., C - 1.
    fitting, held_out : Tensor
        Positions of rows.
    seed : int
        Seed of the shuffles.
    bar : tqdm
        Is moved on by one for each step.
    """
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=1e-2, fused=True)
    check = max(_CHECK_EVERY, -(-len(fitting) // _BATCH))
    best, kept, stale = _loss(network, inputs, codes, held_out), copy.deepcopy(network.state_dict()), 0
    for step, chosen in enumerate(_batches(len(fitting), max(_MOST_STEPS, check), seed), start=1):
        rows = fitting[chosen]
        network.train()
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(network(inputs[rows]), codes[rows]).backward()
        optimizer.step()
        bar.update()
        if step % check:
            continue
        if (loss := _loss(network, inputs, codes, held_out)) < best:
            best, kept, stale = loss, copy.deepcopy(network.state_dict()), 0
        elif (stale := stale + 1) >= _PATIENCE:
            break
    network.load_state_dict(kept)
    network.eval()


def _batches(n_rows: int, steps: int, seed: int) -> Iterator[Tensor]:
    generator = generator_for(seed, "membership minibatches")
    done = 0
    while True:
        for rows in minibatches(n_rows, _BATCH, generator):
            if done == steps:
                return
            yield rows
            done += 1


def _loss(network: nn.Module, inputs: Tensor, codes: Tensor, rows: Tensor) -> float:
    total = 0.0
    for chosen, part in log_probabilities(network, inputs, rows):
        total -= float(part.gather(1, codes[chosen, None]).sum())
    return total / len(rows)


@torch.no_grad()
def log_probabilities(network: nn.Module, inputs: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Logarithms of q(c | x), some rows at a time: rows x groups never exists as a whole.

    Parameters
    ----------
    network : nn.Module
        The classifier.
    inputs : Tensor, shape (N, K)
        Standardised columns.
    rows : Tensor
        Positions of rows.

    Yields
    ------
    chosen : Tensor, shape (B,)
        The next of the positions.
    part : Tensor, shape (B, C)
    """
    network.eval()
    n_groups = network(inputs[:1]).shape[1]
    for chosen in rows.split(max(1, _CHUNK // n_groups)):
        yield chosen, functional.log_softmax(network(inputs[chosen]), dim=1)
