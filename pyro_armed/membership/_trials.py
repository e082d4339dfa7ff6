"""Seen groups in the role of new ones: what their held-out rows say, and whose effects predict them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyro_armed.membership._evidence import Evidence, Reference, Tempering, none_features
from pyro_armed.membership._none import Trials
from pyro_armed.membership._scores import Scorer
from pyro_armed.seeds import stream

__all__ = ["Subsets", "draw_subsets", "make_trials"]

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]

_REPEATS = 8  # subsets of each group's held-out rows
_SCORED = 10_000  # rows over all groups whose responses are looked at
_SCORED_OF_A_GROUP = 50
_MEMBERS = 20  # seen groups at most that a trial's prediction mixes
# Share of the trials in which the rows' own group is among the candidates. Labels that training did not have
# are mostly of groups that it did not have.
_RETURNING = 0.1


@dataclass(frozen=True)
class Subsets:
    """Random subsets of the held-out rows of seen groups.

    Attributes
    ----------
    own : numpy.ndarray, shape (E,)
        The group of each subset, by its place among the candidates.
    evidence : Evidence
        Of E subsets.
    """

    own: Codes
    evidence: Evidence


def draw_subsets(rows: Floats, own: Codes, seed: int) -> Subsets:
    """Subsets of many sizes.

    Parameters
    ----------
    rows : numpy.ndarray, shape (N, C)
        Log likelihood ratios of held-out rows.
    own : numpy.ndarray, shape (N,)
        Their groups 0, ..., C - 1, at least two of each.
    seed : int
        Seed of the choice.

    Returns
    -------
    Subsets
        Sizes are uniform on the log scale, from one to all but one.
    """
    rng = np.random.default_rng(stream(seed, "membership subsets"))
    groups, sums, counts = [], [], []
    for group in range(rows.shape[1]):
        here = np.flatnonzero(own == group)
        for _ in range(_REPEATS):
            size = min(len(here) - 1, int(np.exp(rng.uniform(0.0, np.log(len(here))))))
            sums.append(rows[rng.choice(here, size, replace=False)].sum(0))
            groups.append(group)
            counts.append(float(size))
    return Subsets(np.array(groups), Evidence(np.array(sums), np.array(counts)))


def make_trials(
    subsets: Subsets,
    tempering: Tempering,
    reference: Reference,
    scorer: Scorer,
    candidates: Codes,
    held_out: list[Codes],
) -> Trials:
    """Each subset once as a stranger's and once as a returning group's.

    Parameters
    ----------
    subsets : Subsets
        Of held-out rows.
    tempering, reference
        Learned from them.
    scorer : Scorer
        Looks at the responses.
    candidates : numpy.ndarray, shape (C,)
        Codes of the groups.
    held_out : list of numpy.ndarray
        Positions of each group's held-out rows, in random order.

    Returns
    -------
    Trials
    """
    own, evidence = subsets.own, subsets.evidence
    strangers = evidence.without(own)
    apart, at_home = tempering.weights(strangers), tempering.weights(evidence)
    most = int(np.clip(_SCORED // len(candidates), 5, _SCORED_OF_A_GROUP))
    member = np.full((2, len(own), most), np.nan)
    for group, positions in enumerate(held_out):
        rows = positions[:most]
        trials = np.flatnonzero(own == group)
        weights = np.stack([apart[trials], at_home[trials]])
        members = np.sort(np.argsort(-weights.mean((0, 1)), kind="stable")[:_MEMBERS])
        some_group = scorer.marginal(rows)
        # Relative to "some group", so that no density underflows: the mixture is only about their ratio.
        relative = np.exp(np.minimum(scorer.member(rows, candidates[members]) - some_group[:, None], 500.0))
        chosen = weights[:, :, members]
        chosen = chosen / np.maximum(chosen.sum(-1, keepdims=True), 1e-300)
        member[:, trials, : len(rows)] = chosen @ relative.T
    return Trials(
        features=np.concatenate(
            [
                none_features(strangers, apart, reference),
                none_features(evidence, at_home, reference, own),
            ]
        ),
        member=np.concatenate(list(member)),
        importance=np.repeat([1.0 - _RETURNING, _RETURNING], len(own)),
        groups=len(candidates),
    )
