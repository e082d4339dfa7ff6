"""Scores of predictions against observed responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from torch import Tensor

from pyro_armed import metrics
from pyro_armed.batch import Batch
from pyro_armed.design import Encoded
from pyro_armed.errors import DataError
from pyro_armed.families import Family
from pyro_armed.new_groups import Mode, mode_of
from pyro_armed.posterior import Chain, Posterior
from pyro_armed.predict import Evaluated, evaluated_rows, extended_chains
from pyro_armed.scores import COVERAGES, ScoredRows, Scores, join, kind_of, score_table
from pyro_armed.seeds import seeded, stream
from pyro_armed.spec import ModelSpec

__all__ = [
    "clusters_of",
    "evaluate",
    "pointwise",
    "score_rows",
]

_PREDICTIVE_DRAWS = 2000
_ELEMENTS = 10_000_000

Floats = NDArray[np.float64]


def evaluate(
    posterior: Posterior, encoded: Encoded, mode: str | Mode, *, seed: int, draws: int | None = None
) -> pd.DataFrame:
    """Score the posterior predictive distribution of each row.

    Parameters
    ----------
    posterior : Posterior
        Stored draws.
    encoded : Encoded
        Rows with their response. Scores are weighted means where the rows have weights.
    mode : str or Mode
        What to do for new groups, as in `pyro_armed.new_groups`.
    seed : int
        Seed of new groups' effects, predictive draws and the bootstrap.
    draws : int, optional
        Draws of each chain to use, evenly spaced; None: all.

    Returns
    -------
    pandas.DataFrame
        Columns ``metric``, ``value``, ``se``; ``attrs`` has ``n_rows``, ``n_draws``, ``new_groups``, ``seed``
        and, where a score is NaN, the reason under ``notes``.

        - ``nlpd``: mean over rows of -log p(y_i), with p(y_i) the mean density over the draws of all chains
          (and over new groups' effects): each row on its own, not the rows of a group jointly.
        - numeric responses: ``rmse`` of the expected response, ``crps``, and ``coverage_50``,
          ``coverage_80``, ``coverage_95`` of central intervals, which are calibrated at 0.5, 0.8, 0.95 for
          counts too (`pyro_armed.metrics.coverage`). A binomial response is scored as a count.
        - binary responses: ``auroc``, ``brier`` and ``ece`` of the mean probability.
        - categorical and ordinal responses: ``accuracy`` and ``brier``, summed over levels.

        Standard errors allow for rows of one group that depend on each other: each is the largest of those
        with the groups of each grouping factor as clusters, and of that with independent rows (see
        `pyro_armed.metrics.widest`). Of a handful of groups they still are rough.

    Raises
    ------
    UnseenGroupError, ArgumentError, DataError
        For new labels under ``"error"``, an unknown mode, too many draws, or rows without a response.

    Notes
    -----
    At most 2000 predictive draws are made for ``crps`` and ``coverage``. Rows are taken some at a time, so
    that memory does not grow with their number times the draws.
    """
    rows = score_rows(posterior, encoded, mode, seed=seed, draws=draws)
    return score_table(rows, posterior.chains[0].module.spec.family, mode_of(mode).name, seed=seed)


def score_rows(
    posterior: Posterior, encoded: Encoded, mode: str | Mode, *, seed: int, draws: int | None = None
) -> ScoredRows:
    """The scores that `evaluate` takes the mean of; arguments and errors are the same.

    Returns
    -------
    ScoredRows
    """
    scores, weights = _score(posterior, encoded, mode, seed, draws)
    spec, batch = posterior.chains[0].module.spec, encoded.batch
    codes = {name: np.asarray(batch.codes[name].cpu().numpy()) for name in spec.effect_groups}
    labels = {name: [*spec.group(name).labels, *encoded.new_groups.get(name, [])] for name in codes}
    used = len(posterior.chains) * (posterior.n_draws if draws is None else draws)
    return ScoredRows(scores, _numpy(batch.response), weights, codes, labels, used)


def pointwise(
    posterior: Posterior, encoded: Encoded, mode: str | Mode, *, seed: int, draws: int | None = None
) -> pd.DataFrame:
    """Scores of each row, for comparing two models row by row.

    Parameters
    ----------
    posterior, encoded, mode, seed, draws
        As for `evaluate`.

    Returns
    -------
    pandas.DataFrame
        One row for each row of the data, indexed by its position there (``__obs__``): ``nlpd``;
        ``squared_error`` of the expected response or of the probabilities (the Brier score); ``crps`` and
        ``covered_50``, ``covered_80``, ``covered_95`` for numeric responses; ``expected`` response, or
        probability of the second outcome; ``correct`` for categorical and ordinal responses; ``weight`` where
        rows have weights.

    Raises
    ------
    UnseenGroupError, ArgumentError, DataError
        As for `evaluate`.
    """
    scores, weights = _score(posterior, encoded, mode, seed, draws)
    columns = {"nlpd": scores.nlpd, "squared_error": scores.squared_error}
    columns |= {n: getattr(scores, n) for n in ("crps", "expected", "correct") if len(getattr(scores, n))}
    if len(scores.covered):
        columns |= {f"covered_{p * 100:.0f}": scores.covered[:, i] for i, p in enumerate(COVERAGES)}
    if weights is not None:
        columns["weight"] = weights
    index = encoded.index if len(encoded.index) == encoded.batch.size else np.arange(encoded.batch.size)
    return pd.DataFrame(columns, index=pd.Index(index, name="__obs__"))


def _score(
    posterior: Posterior, encoded: Encoded, mode: str | Mode, seed: int, draws: int | None
) -> tuple[Scores, Floats | None]:
    """Scores of all rows, some at a time; and the rows' weights."""
    batch = encoded.batch
    if batch.response is None or not batch.size:
        raise DataError("Evaluation needs rows with their response; there are none.")
    chains = extended_chains(posterior, encoded, mode, seed=seed, draws=draws)
    size = max(1, _ELEMENTS // min(len(chains) * chains[0].n_draws, _PREDICTIVE_DRAWS))
    parts = []
    with seeded(stream(seed, "responses")):
        for rows in torch.arange(batch.size).split(size):
            parts.append(_score_rows(chains, batch.select(rows)))
    return join(parts), None if batch.weights is None else _numpy(batch.weights)


def _score_rows(chains: Sequence[Chain], batch: Batch) -> Scores:
    """Scores of some rows in one pass over the draws."""
    family = chains[0].module.spec.family
    kind = kind_of(family)
    kept = _evenly_spaced(chains[0].n_draws, max(1, _PREDICTIVE_DRAWS // len(chains)))
    density, total, count = np.full(batch.size, -np.inf), np.zeros(()), 0
    responses = []
    for part in evaluated_rows(chains, batch):
        module = part.chain_object.module
        log_prob = module.response_distribution(part.etas, part.values, batch).log_prob(batch.response)
        density = np.logaddexp(density, logsumexp(_numpy(log_prob), axis=0))
        total = total + _numpy(_expected(family, part, batch)).sum(axis=0)
        count += len(log_prob)
        if kind == "numeric":
            responses.append(_drawn(part, batch, kept))
    mean, y = total / count, _numpy(batch.response)
    drawn = np.concatenate(responses) if responses else None
    empty = np.empty(0)
    return Scores(
        nlpd=np.log(count) - density,
        squared_error=metrics.squared_errors(mean, y),
        crps=empty if drawn is None else metrics.crps(drawn, y),
        covered=np.empty((0, len(COVERAGES))) if drawn is None else _covered(drawn, y),
        expected=empty if kind == "levels" else mean,
        correct=metrics.correct(mean, y) if kind == "levels" else empty,
    )


def _drawn(part: Evaluated, batch: Batch, kept: Tensor) -> Floats:
    """Drawn responses for those of the posterior's draws that are kept."""
    here = kept[(kept >= part.start) & (kept < part.start + len(part.etas["mu"]))] - part.start
    if not len(here):
        return np.empty((0, batch.size))
    etas = {name: eta[here] for name, eta in part.etas.items()}
    values = {name: value[here] for name, value in part.values.items()}
    return _numpy(part.chain_object.module.response_distribution(etas, values, batch).sample())


def _evenly_spaced(n_draws: int, most: int) -> Tensor:
    return torch.linspace(0, n_draws - 1, min(n_draws, most), dtype=torch.float64).round().long()


def _covered(drawn: Floats, y: Floats) -> Floats:
    return np.stack([metrics.coverage(drawn, y, probability) for probability in COVERAGES], axis=1)


def _expected(family: Family, part: Evaluated, batch: Batch) -> Tensor:
    """The expected response on the scale of the response: a count for a binomial one."""
    auxiliaries = part.chain_object.module.auxiliaries(part.etas, part.values)
    mean = family.mean(part.etas["mu"], batch.trials, **auxiliaries)
    if family.response != "binomial" or batch.trials is None:
        return mean
    return mean * batch.trials


def _numpy(tensor: Any) -> Floats:
    return np.asarray(tensor.detach().cpu().double().numpy())


def clusters_of(spec: ModelSpec, batch: Batch) -> list[NDArray[np.int64]]:
    """Codes of the rows for each grouping factor with effects of which there are two groups or more.

    Parameters
    ----------
    spec : ModelSpec
        The model's structure.
    batch : Batch
        Rows.

    Returns
    -------
    list of numpy.ndarray, shape (N,)
    """
    codes = [np.asarray(batch.codes[name].cpu().numpy()) for name in spec.effect_groups]
    return [one for one in codes if len(np.unique(one)) > 1]
