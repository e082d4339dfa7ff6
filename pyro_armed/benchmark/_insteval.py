"""Processor time to the held-out density of lme4 and of GPBoost: ratings of 1128 lecturers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from pyro_armed import datasets
from pyro_armed.armed import ARMED
from pyro_armed.benchmark._measure import Summary, row, table
from pyro_armed.benchmark._peers import (
    FORMULA,
    GROUP,
    PeerFit,
    gpboost,
    gpboost_found,
    gpboost_tuned,
    lme4,
    lme4_found,
)
from pyro_armed.benchmark._structured import timed_fit
from pyro_armed.networks import MLP

__all__ = ["TOLERANCE", "Contest", "insteval", "split_rows"]

# Densities per row that differ by less count as equal.
TOLERANCE = 0.002
_TEST_SHARE = 0.2
Peer = Callable[[pd.DataFrame, pd.DataFrame], PeerFit]


@dataclass(frozen=True)
class Contest:
    """One of the library's models against one peer.

    Attributes
    ----------
    case, peer : str
        Names for the table.
    target : str
        What the ratio of times should be.
    hidden : tuple of int
        Units of the network's layers; none: a linear predictor.
    epochs : sequence of int or None
        Lengths of training to try, in this order; the first to reach the density counts. None: the default.
    """

    case: str
    peer: str
    target: str
    hidden: tuple[int, ...]
    epochs: Sequence[int | None]


CONTESTS = (
    Contest("linear predictor", "lme4", "<= 5", (), (None,)),
    Contest("MLP of 16 + 16", "GPBoost", "<= 1", (16, 16), (None,)),
    Contest("MLP of 16 + 16", "GPBoost, trees by cross-validation", "", (16, 16), (None,)),
)


def insteval(quick: bool, seed: int) -> pd.DataFrame:
    """Time of a fit that reaches a peer's held-out density, over the time of the peer's fit.

    Parameters
    ----------
    quick : bool
        Some of the lecturers, one round.
    seed : int
        Seed of the split and of the fits.

    Returns
    -------
    pandas.DataFrame
        See `run`; where a peer is not installed, its row says so.
    """
    peers: dict[str, tuple[Callable[[], bool], Peer, str]] = {
        "lme4": (lme4_found, lme4, "not installed: R with the package lme4"),
        "GPBoost": (gpboost_found, gpboost, "not installed: the Python package gpboost"),
        "GPBoost, trees by cross-validation": (
            gpboost_found,
            gpboost_tuned,
            "not installed: the Python package gpboost",
        ),
    }
    lines = []
    for contest in CONTESTS:
        found, peer, missing = peers[contest.peer]
        facts: dict[str, Any] = {"to": contest.peer, "target": contest.target}
        if not found():
            lines.append(row("insteval", "time to density", contest.case, **facts, note=missing))
            continue
        train, test = split_rows(datasets.load("insteval"), seed, lecturers=40 if quick else None)
        if quick:
            contest = replace(contest, epochs=(1,))
        lines.append(_against(contest, peer, train, test, 1 if quick else 3, seed, facts))
    return table(lines)


def split_rows(
    frame: pd.DataFrame, seed: int, lecturers: int | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows to train with, and a fifth held out, of lecturers that training has.

    Parameters
    ----------
    frame : pandas.DataFrame
        All rows.
    seed : int
        Seed of the split.
    lecturers : int, optional
        How many to keep; None: all.

    Returns
    -------
    tuple of pandas.DataFrame
    """
    if lecturers is not None:
        frame = frame[frame[GROUP].isin(frame[GROUP].unique()[:lecturers])]
    held_out = np.random.default_rng(seed).random(len(frame)) < _TEST_SHARE
    train, test = frame[~held_out], frame[held_out]
    for name in test.columns.difference(["y"]):
        test = test[test[name].isin(train[name])] if name != "s" else test
    return train, test


def _against(
    contest: Contest,
    peer: Peer,
    train: pd.DataFrame,
    test: pd.DataFrame,
    rounds: int,
    seed: int,
    facts: dict[str, Any],
) -> dict[str, Any]:
    rivals = [peer(train, test)]
    aim = rivals[0].nlpd + TOLERANCE
    for epochs in contest.epochs:
        ours = [_ours(contest, train, test, epochs, seed)]
        if ours[0].nlpd <= aim:
            break
    note = f"log density {-ours[0].nlpd:.4f}, {contest.peer} {-rivals[0].nlpd:.4f}"
    if len(contest.epochs) > 1:
        note += f"; {'no limit of' if epochs is None else epochs} epochs"
    if ours[0].nlpd > aim:
        note = f"not reached: {note}"
        return row("insteval", "time to density", contest.case, **facts, note=note, failed=True)
    for number in range(1, rounds):
        rivals.append(peer(train, test))
        ours.append(_ours(contest, train, test, epochs, seed + number))
    ratios = [mine.seconds / rival.seconds for mine, rival in zip(ours, rivals, strict=True)]
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    summary = Summary(float(middle), float(low), float(high))
    return row("insteval", "time to density", contest.case, summary, **facts, note=note)


def _ours(
    contest: Contest, train: pd.DataFrame, test: pd.DataFrame, epochs: int | None, seed: int
) -> PeerFit:
    """The library's fit, the making of the model included."""
    start = time.process_time()
    model = ARMED(FORMULA, train, network=MLP(hidden=contest.hidden) if contest.hidden else None)
    making = time.process_time() - start
    seconds, _ = timed_fit(model, restarts=1, epochs=epochs, seed=seed)
    scores = model.evaluate(test, seed=seed).set_index("metric")["value"]
    return PeerFit(making + seconds, float(scores["nlpd"]))
