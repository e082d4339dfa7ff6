"""Scores of rows, their means, and standard errors that allow for groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyro_armed import metrics
from pyro_armed.families import Family
from pyro_armed.metrics import Estimate
from pyro_armed.seeds import stream

__all__ = ["COVERAGES", "ScoredRows", "Scores", "join", "joined_scores", "kind_of", "score_table"]

COVERAGES = (0.5, 0.8, 0.95)

Floats = NDArray[np.float64]


@dataclass
class Scores:
    """One score per row, shape (N,); empty where the response has no such score."""

    nlpd: Floats
    squared_error: Floats
    crps: Floats
    covered: Floats  # (N, len(COVERAGES))
    expected: Floats  # response, or probability of the second outcome
    correct: Floats


@dataclass
class ScoredRows:
    """Scores of rows, and what a table of them needs of the rows.

    Attributes
    ----------
    scores : Scores
        One of each row.
    response : numpy.ndarray, shape (N,)
        Observed responses.
    weights : numpy.ndarray, shape (N,), or None
        Row weights.
    codes : dict of str to numpy.ndarray, shape (N,)
        The group of each row, for each grouping factor with effects.
    labels : dict of str to list
        Of these groups, in the order of their codes.
    n_draws : int
        Draws of all chains that were used.
    """

    scores: Scores
    response: Floats
    weights: Floats | None
    codes: dict[str, NDArray[np.int64]]
    labels: Mapping[str, Sequence[Any]]
    n_draws: int

    @property
    def clusters(self) -> list[NDArray[np.int64]]:
        """Codes for each grouping factor of which the rows have two groups or more."""
        return [codes for codes in self.codes.values() if len(np.unique(codes)) > 1]


def join(parts: Sequence[Scores]) -> Scores:
    """Scores of successive rows, one below the other."""
    return Scores(
        **{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Scores)}
    )


def joined_scores(parts: Iterable[ScoredRows]) -> ScoredRows:
    """Scores of successive rows as those of all; groups are known by their labels.

    Parameters
    ----------
    parts : iterable of ScoredRows
        At least one, of one model.

    Returns
    -------
    ScoredRows
    """
    kept: list[ScoredRows] = []
    known: dict[str, dict[Any, int]] = {}
    for part in parts:
        codes = {}
        for name, own in part.codes.items():
            numbers = known.setdefault(name, {})
            present, place = np.unique(own, return_inverse=True)
            found = [numbers.setdefault(part.labels[name][code], len(numbers)) for code in present]
            codes[name] = np.asarray(found, dtype=np.int64)[place]
        kept.append(ScoredRows(part.scores, part.response, part.weights, codes, {}, part.n_draws))
    first = kept[0]
    weights = (
        None
        if first.weights is None
        else np.concatenate([part.weights for part in kept if part.weights is not None])
    )
    return ScoredRows(
        join([part.scores for part in kept]),
        np.concatenate([part.response for part in kept]),
        weights,
        {name: np.concatenate([part.codes[name] for part in kept]) for name in first.codes},
        {name: list(numbers) for name, numbers in known.items()},
        first.n_draws,
    )


def score_table(rows: ScoredRows, family: Family, new_groups: str, *, seed: int) -> pd.DataFrame:
    """Means of scores and their standard errors.

    Parameters
    ----------
    rows : ScoredRows
        Scores of all rows.
    family : Family
        Of the response; says which scores there are.
    new_groups : str
        The mode, for the table's attributes.
    seed : int
        Seed of the bootstrap.

    Returns
    -------
    pandas.DataFrame
        See `evaluate`.
    """
    scores, weights, clusters, notes = rows.scores, rows.weights, rows.clusters, dict[str, str]()

    def mean(values: Floats) -> Estimate:
        return metrics.widest(lambda codes: metrics.mean_score(values, weights, codes), clusters)

    lines = {"nlpd": mean(scores.nlpd)}
    kind = kind_of(family)
    if kind == "numeric":
        lines["rmse"] = metrics.widest(
            lambda codes: metrics.rmse(scores.squared_error, weights, codes), clusters
        )
        lines["crps"] = mean(scores.crps)
        for probability, covered in zip(COVERAGES, scores.covered.T, strict=True):
            lines[f"coverage_{probability * 100:.0f}"] = mean(covered)
    elif kind == "binary":
        lines |= _binary(scores, rows.response, weights, clusters, seed, notes)
    else:
        lines["accuracy"] = mean(scores.correct)
        lines["brier"] = mean(scores.squared_error)
    table = [(name, estimate.value, estimate.se) for name, estimate in lines.items()]
    frame = pd.DataFrame(table, columns=["metric", "value", "se"])
    frame.attrs |= {
        "n_rows": len(rows.response),
        "n_draws": rows.n_draws,
        "new_groups": new_groups,
        "seed": seed,
    }
    if notes:
        frame.attrs["notes"] = notes
    return frame


def _binary(
    scores: Scores,
    y: Floats,
    weights: Floats | None,
    clusters: list[NDArray[np.int64]],
    seed: int,
    notes: dict[str, str],
) -> dict[str, Estimate]:
    p, bootstrap = scores.expected, stream(seed, "bootstrap")
    auroc = metrics.widest(lambda codes: metrics.auroc(p, y, weights, codes), clusters)
    if np.isnan(auroc.value):
        notes["auroc"] = "All rows have one outcome; the area under the curve needs both."
    brier = metrics.widest(lambda codes: metrics.mean_score(scores.squared_error, weights, codes), clusters)
    ece = metrics.widest(
        lambda codes: metrics.expected_calibration_error(p, y, weights, codes, seed=bootstrap), clusters
    )
    return {"auroc": auroc, "brier": brier, "ece": ece}


def kind_of(family: Family) -> str:
    """Which scores a response has: those of a ``"numeric"`` or ``"binary"`` one, or of ``"levels"``."""
    if family.response in ("categorical", "ordinal"):
        return "levels"
    return "binary" if family.response == "binary" else "numeric"
