"""A training step of the spirals model against the bare network, Pyro's own ways and the loss by hand."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pandas as pd
import pyro
import torch
from pyro.infer import SVI, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.nn import functional

from pyro_armed.armed import ARMED
from pyro_armed.benchmark._by_hand import ByHand
from pyro_armed.benchmark._measure import Rounds, interleaved, row, table
from pyro_armed.benchmark._models import BATCH, RATE, library_step, objectives, rows_of, spirals_model
from pyro_armed.compiled import compiler_found
from pyro_armed.local import local_parameters
from pyro_armed.objective import AdversaryHead, Objective
from pyro_armed.seeds import generator_for, seeded
from pyro_armed.training import no_validation

__all__ = ["BARE", "SVI_NAME", "compiled_modes", "step_table", "steps"]

BARE, SVI_NAME = "bare network", "pyro.infer.SVI"
BY_HAND, LOOP = "loss by hand", "Pyro's ELBO, torch loop"
NO_COMPILER = "no C++ compiler"
_NOTES = {
    SVI_NAME: "Pyro's defaults, no adversary",
    LOOP: "no validation, fused Adam, adversary",
    BY_HAND: "PyTorch alone, fused Adam, adversary",
}
Step = Callable[[], object]


def compiled_modes(quick: bool) -> list[str]:
    """Ways to compile a step that there are here; the quick ones take no compiler."""
    return ["trace", "inductor"] if compiler_found() and not quick else ["trace"]


def steps(quick: bool, seed: int) -> pd.DataFrame:
    """Time of a step: batch of 32 rows, network of 4-4-4 units, mean-field guide, adversary on.

    Parameters
    ----------
    quick : bool
        Few rounds, and no Inductor.
    seed : int
        Seed of data, parameters and minibatches.

    Returns
    -------
    pandas.DataFrame
        See `run`.
    """
    model = spirals_model(100 if quick else 1000, seed)
    modes = ["off", *compiled_modes(quick)]
    with _own_store(), seeded(seed), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TraceMeanField_ELBO on models with subsampling
        cases = {
            BARE: bare_step(model, seed),
            SVI_NAME: svi_step(model, seed),
            LOOP: loop_step(model, seed),
            BY_HAND: hand_step(model, seed),
            **{_name(mode): library_step(model, mode, seed=seed) for mode in modes},
        }
        found = interleaved(cases, rounds=5 if quick else 40)
    return step_table(found, modes)


def step_table(found: Rounds, modes: list[str]) -> pd.DataFrame:
    """The table of step times: each against the bare network's, and how much faster the library's are.

    Parameters
    ----------
    found : Rounds
        Times of all cases.
    modes : list of str
        Ways in which the library's step was run.

    Returns
    -------
    pandas.DataFrame
    """
    rows = []
    for case in [SVI_NAME, LOOP, BY_HAND, *map(_name, modes)]:
        target = "<= 1.2" if case == _name("inductor") else ""
        note = _NOTES.get(case, "adversary")
        ratio = found.ratio(case, BARE)
        rows.append(row("steps", "step time", case, ratio, to=BARE, target=target, note=note))
    aims = {"trace": ">= 2", "inductor": ">= 8"}
    for mode in modes:
        for to in (SVI_NAME, LOOP, BY_HAND):
            target = aims.get(mode, "") if to == SVI_NAME else ""
            ratio = found.ratio(to, _name(mode))
            rows.append(row("steps", "times faster", _name(mode), ratio, to=to, target=target))
    if not compiler_found():
        rows.append(row("steps", "step time", _name("inductor"), to=BARE, note=NO_COMPILER))
    return table(rows)


def _name(mode: str) -> str:
    return f'compile="{mode}"'


@contextmanager
def _own_store() -> Iterator[None]:
    """Give `pyro.infer.SVI` an empty global store, and put the user's back."""
    before = pyro.get_param_store().get_state()
    try:
        pyro.clear_param_store()
        yield
    finally:
        pyro.clear_param_store()
        pyro.get_param_store().set_state(before)


# --- one step of each --------------------------------------------------------------------------------------


def bare_step(model: ARMED, seed: int) -> Step:
    """The network alone: eager, cross-entropy of its own output, fused Adam."""
    (parts,) = objectives(model, 1, seed)
    network: nn.Module = copy.deepcopy(parts.module.network)  # type: ignore[assignment]
    adam = torch.optim.Adam(network.parameters(), lr=RATE, fused=True)
    inputs, response, _ = _tensors(parts)
    response, draw = response.to(inputs.dtype), _row_numbers(parts, seed)

    def step() -> None:
        rows = draw()
        adam.zero_grad()
        functional.binary_cross_entropy_with_logits(network(inputs[rows])[:, 0], response[rows]).backward()
        adam.step()

    return step


def svi_step(model: ARMED, seed: int) -> Step:
    """`pyro.infer.SVI` with the same model and guide, as a user of Pyro writes it; it fills Pyro's store."""
    (parts,) = objectives(model, 1, seed)
    adam: Any = pyro.optim.Adam({"lr": RATE})  # type: ignore[attr-defined]
    svi = SVI(parts.module, parts.guide, adam, TraceMeanField_ELBO())
    data, draw = rows_of(parts), _row_numbers(parts, seed)

    def step() -> None:
        with pyro.settings.context(module_local_params=False):
            svi.step(data.select(draw()))

    return step


def loop_step(model: ARMED, seed: int) -> Step:
    """Pyro's ELBO as a module in a loop of PyTorch's, with the adversary: what Pyro does fastest eagerly."""
    (parts,) = objectives(model, 1, seed)
    module, head, guide = parts.module, _head(parts), parts.guide
    elbo = TraceMeanField_ELBO()(module, guide)  # type: ignore[arg-type]
    adam = torch.optim.Adam(nn.ModuleList([elbo, head.classifiers]).parameters(), lr=RATE, fused=True)
    data, draw, weight = rows_of(parts), _row_numbers(parts, seed), torch.zeros((), dtype=torch.float64)

    def step() -> None:
        with local_parameters(), no_validation():
            batch = data.select(draw())
            adam.zero_grad()
            hidden: Any = module.hidden(batch)
            loss = elbo(batch, hidden) / batch.n_rows + head.loss(batch, hidden[0], weight)[0]
            loss.backward()
            adam.step()

    return step


def hand_step(model: ARMED, seed: int) -> Step:
    """The same loss without Pyro, in a loop of PyTorch's."""
    (parts,) = objectives(model, 1, seed)
    loss = ByHand(parts)
    adam = torch.optim.Adam(loss.parameters(), lr=RATE, fused=True)
    inputs, response, codes = _tensors(parts)
    draw, weight = _row_numbers(parts, seed), torch.zeros((), dtype=torch.float64)

    def step() -> None:
        rows = draw()
        adam.zero_grad()
        loss(inputs[rows], response[rows], codes[rows], weight).backward()
        adam.step()

    return step


def _row_numbers(parts: Objective, seed: int) -> Callable[[], Tensor]:
    n_rows, generator = rows_of(parts).n_rows, generator_for(seed, "minibatches")
    return lambda: torch.randint(0, n_rows, (BATCH,), generator=generator)


def _tensors(parts: Objective) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, responses and groups of all rows."""
    data = rows_of(parts)
    return data.inputs, data.response, data.codes["group"]  # type: ignore[return-value]


def _head(parts: Objective) -> AdversaryHead:
    return parts.adversary  # type: ignore[return-value]
