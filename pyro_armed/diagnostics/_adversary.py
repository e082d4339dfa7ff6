"""How the adversary fared in training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from pyro_armed.diagnostics._access import dataset_of, idata_of
from pyro_armed.errors import ArgumentError

__all__ = ["adversary", "adversary_words", "record_adversary"]

_WINDOWS = 20
_LOW, _HIGH = 0.05, 0.9


def adversary(model: Any) -> pd.DataFrame:
    """The adversary's accuracy in training beside chance, and whether it is saturated.

    Parameters
    ----------
    model : ARMED or ArviZ object
        Fitted by SVI with an adversary.

    Returns
    -------
    pandas.DataFrame
        One row for each grouping factor and restart: ``group``, ``chain``, ``chance`` (the accuracy of always
        naming the most frequent group, or, where it sees the response, the most frequent one of each class),
        ``highest`` and ``final`` accuracy, ``verdict`` and ``words``. ``verdict`` is ``"at chance"`` where it
        has never been clearly above chance, ``"near one"`` where it ends near 1, else ``"between"``.

    Raises
    ------
    ArgumentError
        Where there was no adversary.

    Notes
    -----
    Accuracies are means over a twentieth of the steps, on the rows that the classifier is trained with.
    Clearly above chance is a twentieth of the way from chance to 1, near one nine tenths of it. The whole
    course is in ``sample_stats``: ``adversary_accuracy|GROUP``. The network's own adversary can be fooled
    where a fresh classifier is not: see `leakage`.

    Examples
    --------
    >>> import pyro_armed as pa
    >>> data = pa.simulate.confounded_spirals(4, 50, seed=0)
    >>> model = pa.ARMED(
    ...     "y ~ x1 + x2 + probe1 + probe2 + (1 | group)",
    ...     data.frame,
    ...     family="bernoulli",
    ...     network=pa.networks.MLP(hidden=(4,)),
    ...     adversary=pa.Adversary(weight=0.5),
    ... )
    >>> _ = model.fit(restarts=1, draws=10, epochs=40, early_stopping=False, progressbar=False)
    >>> adversary(model)[["group", "chain"]].values.tolist()
    [['group', 0]]
    """
    stats = dataset_of(idata_of(model), "sample_stats")
    prefix = "adversary_accuracy|"
    names = [str(name) for name in stats.data_vars if str(name).startswith(prefix)]
    if not names:
        raise ArgumentError("The model was fitted without an adversary; pass adversary=pa.Adversary(...).")
    rows = []
    for name in names:
        group = name.removeprefix(prefix)
        chances = stats[f"adversary_chance|{group}"].to_numpy()
        for chain, trace in enumerate(stats[name].to_numpy()):
            rows.append((group, chain, *_judged(group, trace[~np.isnan(trace)], float(chances[chain]))))
    return pd.DataFrame(rows, columns=["group", "chain", "chance", "highest", "final", "verdict", "words"])


def adversary_words(model: Any) -> str:
    """What `adversary` found, one sentence for each grouping factor; empty without an adversary."""
    if not any(str(name).startswith("adversary_") for name in dataset_of(idata_of(model), "sample_stats")):
        return ""
    sentences = []
    for _, part in adversary(model).groupby("group", sort=False):
        worst = part[part["verdict"] == part["verdict"].mode().iloc[0]].iloc[0]
        count = f" ({(part['verdict'] == worst['verdict']).sum()} of {len(part)} restarts)"
        sentences.append(worst["words"] + (count if len(part) > 1 else ""))
    return " ".join(sentences)


def record_adversary(idata: Any) -> str:
    """Write `adversary_words` into the attribute ``adversary`` of an ArviZ object and of its posterior."""
    words = adversary_words(idata)
    if words:
        idata.attrs["adversary"] = words
        idata["posterior"].attrs["adversary"] = words
    return words


def _judged(group: str, trace: np.ndarray, chance: float) -> tuple[float, float, float, str, str]:
    means = np.array([part.mean() for part in np.array_split(trace, min(_WINDOWS, len(trace)))])
    highest, final = float(means.max()), float(means[-1])

    def above(value: float) -> float:
        return (value - chance) / max(1.0 - chance, 1e-9)

    found = f"The adversary names {group} with accuracy {final:.2f} (chance {chance:.2f})"
    if above(highest) < _LOW:
        return chance, highest, final, "at chance", (
            f"{found} and never did better: its weight is too large from the start (try warmup=), it learns "
            "too slowly, or the features do not tell the groups; weight=0 shows which."
        )  # fmt: skip
    if above(final) > _HIGH:
        return chance, highest, final, "near one", f"{found}: its weight is too small to change the network."
    return chance, highest, final, "between", f"{found}."
