"""What the applications with sites have in common: how rows become a task, and how its table is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_armed.baselines import Rows, Task

__all__ = ["LEAKAGE", "MOVED", "SCORES", "leakage_note", "site_task"]

_QUICK = {"epochs": 2, "draws": 10}

SCORES = (("seen", "auroc"), ("unseen", "auroc"), ("seen", "nlpd"), ("unseen", "nlpd"))
LEAKAGE = (("features", "leakage"), ("features", "leakage, limit"))
MOVED = "how far the intercepts moved from the prior, in its sds."


def leakage_note(group: str, response: str) -> str:
    """What the columns of leakage are, as a sentence."""
    return (
        f"Leakage: accuracy of a fresh probe of the {group} given the {response}, and the limit of chance "
        "(97.5 %)."
    )


def site_task(
    x: NDArray[Any],
    y: NDArray[Any],
    group: str,
    labels: NDArray[Any],
    parts: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    *,
    quick: bool,
    fit: Mapping[str, Any],
    **settings: Any,
) -> Task:
    """The task of some sites' rows.

    Parameters
    ----------
    x : numpy.ndarray, shape (N, ...)
        Inputs.
    y, labels : numpy.ndarray, shape (N,)
        Responses, and the rows' groups.
    group : str
        Name of the grouping factor.
    parts : pair of numpy.ndarray, shape (N,)
        Masks of the rows to train with and of the seen rows to test with, as `split` gives them; all others
        are of unseen groups.
    quick : bool
        Whether to train and predict in a size for tests.
    fit, settings
        As for `Task`.

    Returns
    -------
    Task
    """
    train, seen = parts
    others = ~(train | seen)

    def rows(which: NDArray[np.bool_]) -> Rows:
        return Rows(x[which], y[which], {group: labels[which]})

    return Task(
        train=rows(train),
        seen=rows(seen),
        unseen=rows(others) if others.any() else None,
        group=group,
        fit={**fit, **_QUICK} if quick else fit,
        **settings,
    )
