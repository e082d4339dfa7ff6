"""Scores of rows that are read some at a time: one number of each row and score is all that is kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd

from pyro_armed.errors import ArgumentError, DataError
from pyro_armed.evaluation import score_rows
from pyro_armed.membership import Membership
from pyro_armed.parquet import ParquetRows
from pyro_armed.scores import ScoredRows, joined_scores, score_table
from pyro_armed.seeds import stream

__all__ = ["evaluate_frames", "frames_of"]

# Draws of predictions that are held at a time.
_NUMBERS = 20_000_000


def frames_of(model: Any, rows: ParquetRows) -> Iterator[pd.DataFrame]:
    """Successive rows of Parquet, so many that the draws of their predictions fit into memory.

    Parameters
    ----------
    model : ARMED
        A fitted model.
    rows : ParquetRows
        The files.

    Yields
    ------
    pandas.DataFrame

    Raises
    ------
    ArgumentError
        For a model with within_between, which needs all rows of a group at once.
    """
    if getattr(getattr(model._design, "_columns", None), "split", None) is not None:
        raise ArgumentError(
            "The model splits columns into within and between, which takes all rows of a group at once: "
            "read the file whole, or cut it between groups."
        )
    posterior = model._any_posterior()
    size = max(1, _NUMBERS // (posterior.n_draws * len(posterior.chains)))
    for table in rows.tables(rows.schema.names, size=size):
        yield table.to_pandas()


def evaluate_frames(
    model: Any,
    frames: Iterable[pd.DataFrame],
    *,
    new_groups: str = "error",
    support: Any = None,
    unseen_levels: str = "error",
    seed: int = 0,
) -> pd.DataFrame:
    """`ARMED.evaluate` of successive rows.

    Parameters
    ----------
    model : ARMED
        A fitted model of a formula.
    frames : iterable of pandas.DataFrame
        The rows, with their response. The first get the random numbers that they would get alone.
    new_groups, support, unseen_levels, seed
        As for `ARMED.predict`.

    Returns
    -------
    pandas.DataFrame
        Columns ``metric``, ``value``, ``se``; standard errors are those of all rows together, groups known by
        their labels.

    Raises
    ------
    ArgumentError
        For ``"membership"``, which looks at all rows of a new group at once.
    DataError
        Without rows, or where they cannot be used.

    Examples
    --------
    >>> import pyro_armed as pa
    >>> frame = pa.simulate.mixed_model(8, 20, seed=0).frame
    >>> model = pa.ARMED("y ~ x1 + (1 | group)", frame)
    >>> _ = model.fit(restarts=1, draws=50, progressbar=False)
    >>> found = evaluate_frames(model, [frame.head(100), frame.tail(60)])["value"]
    >>> bool(abs(found[0] - model.evaluate(frame)["value"][0]) < 1e-9)
    True
    """
    if new_groups == Membership.name:
        raise ArgumentError(
            "new_groups='membership' looks at all rows of a new group at once: read the file whole, or cut "
            "it between groups."
        )

    def scored() -> Iterator[ScoredRows]:
        for number, frame in enumerate(frames):
            own = model._holding(frame, None, support)
            encoded = own._encode(frame, response=True, unseen_levels=unseen_levels)
            if not encoded.batch.size:  # rows with missing values may be dropped
                continue
            draws_seed = stream(seed, "rows", number) if number else seed
            mode = own._mode(new_groups, support)
            yield score_rows(own._fitted(), encoded, mode, seed=draws_seed)

    parts = list(scored())
    if not parts:
        raise DataError("Evaluation needs rows with their response; there are none.")
    return score_table(joined_scores(parts), model.spec.family, new_groups, seed=seed)
