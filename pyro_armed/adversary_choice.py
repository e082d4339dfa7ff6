"""The adversary's weight, chosen by what it costs and what it hides on groups that are left out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from pyro_armed.adversary import Adversary
from pyro_armed.cross_validation._data import encode, take
from pyro_armed.cross_validation._folds import Grouped, grouped_rows
from pyro_armed.cross_validation._predict import Fold, fitted_folds
from pyro_armed.diagnostics import leakage
from pyro_armed.diagnostics._groups import only_group
from pyro_armed.errors import ArgumentError, ConvergenceWarning
from pyro_armed.evaluation import pointwise
from pyro_armed.recipe import made_on
from pyro_armed.seeds import stream

__all__ = ["AdversaryChoice", "choose_adversary"]

_WEIGHTS = (0.0, 0.1, 0.5, 2.0)


@dataclass(frozen=True, eq=False)
class AdversaryChoice:
    """Weights side by side, and the one to use. Prints itself; `plots.adversary_choice` draws it.

    Attributes
    ----------
    table : pandas.DataFrame
        One row for each weight: ``weight`` (0: no adversary); ``nlpd``, the mean over left-out groups of
        their rows' mean negative log predictive density; its standard error ``se``; ``worse`` and
        ``worse_se``, by how much it is above the lowest, group by group; ``leakage``, the mean share of the
        way from chance to 1 that a fresh probe's accuracy goes; ``leaks``, in how many folds it is above
        chance's interval; ``chosen``.
    groups : pandas.DataFrame
        ``weight``, ``fold``, ``group``, ``nlpd``: what the means are over.
    adversary : Adversary or None
        The one to use; None: off.
    words : str
        The choice in a sentence.
    """

    table: pd.DataFrame
    groups: pd.DataFrame
    adversary: Adversary | None
    words: str

    def __str__(self) -> str:
        return f"{self.table.to_string(index=False, float_format=lambda v: f'{v:.3f}')}\n\n{self.words}"

    __repr__ = __str__


def choose_adversary(
    model: Any,
    data: pd.DataFrame,
    weights: Sequence[float] = _WEIGHTS,
    *,
    adversary: Adversary | None = None,
    group: str | None = None,
    target: float | None = None,
    given_response: bool = True,
    folds: int = 4,
    seed: int = 0,
    progressbar: bool = True,
    **fit: Any,
) -> AdversaryChoice:
    """Choose the adversary's weight by the density of groups that are left out, under a target for leakage.

    Whole groups are left out, fold by fold; each weight's model is fitted to the others. On the left-out
    groups the predictive density is taken with ``new_groups="marginal"``, on the training rows a fresh probe
    measures `diagnostics.leakage`. Among the weights whose leakage is at most ``target`` the smallest is
    chosen whose density is not worse than the best by more than one standard error of the difference over
    groups. "Off" is always among the candidates.

    Parameters
    ----------
    model : ARMED or callable
        The specification, with a network; or a function that takes rows and returns a model.
    data : pandas.DataFrame
        All training rows.
    weights : sequence of float
        Candidates; 0, off, is added.
    adversary : Adversary, optional
        The other settings; None: the model's own adversary, or the defaults.
    group : str, optional
        Grouping factor to leave out and to hide; None: the model's only one.
    target : float, optional
        Largest leakage, in [0, 1]: 0 at chance, 1 where the probe is always right. None: any.
    given_response : bool
        Whether leakage is what features tell beyond the response; see `diagnostics.leakage`.
    folds : int
        Number of folds; groups are shared out among them.
    seed : int
        Seed of folds, fits and probes; all weights get the same.
    progressbar : bool
        Whether to show progress.
    **fit
        Arguments of `ARMED.fit`, such as ``guide="mean_field"``.

    Returns
    -------
    AdversaryChoice

    Raises
    ------
    ArgumentError
        For models without a network or group effects, weights below 0, fewer groups than folds, and other
        settings that cannot be used.

    Notes
    -----
    It fits folds x weights models; fits that have not converged are not warned of one by one. The rule of
    one standard error is that of Breiman et al., Classification and Regression Trees, 1984.

    Examples
    --------
    >>> import pyro_armed as pa
    >>> frame = pa.simulate.confounded_spirals(4, 25, seed=0).frame
    >>> network = pa.networks.MLP(hidden=(4,))
    >>> model = pa.ARMED("y ~ x1 + x2 + (1 | group)", frame, family="bernoulli", network=network)
    >>> quick = dict(guide="mean_field", restarts=1, draws=20, epochs=5, progressbar=False)
    >>> choice = pa.choose_adversary(model, frame, weights=[1.0], folds=2, **quick)
    >>> choice.table["weight"].tolist()
    [0.0, 1.0]
    """
    candidates = _weights(weights)
    if not isinstance(data, pd.DataFrame):
        raise ArgumentError(f"data must be a data frame, not {type(data).__name__}.")
    if target is not None and (isinstance(target, (bool, str)) or not 0.0 <= target <= 1.0):
        raise ArgumentError(f"target={target!r} must be a number in [0, 1], or None.")
    whole = made_on(model, data)
    if whole._plan is None:
        raise ArgumentError("choose_adversary needs a network; pass network=... to the model.")
    grouped = grouped_rows(whole, data, only_group(whole.module, group))
    settings = adversary or whole.adversary or Adversary(1.0)
    settings = replace(settings, groups=settings.groups or grouped.group)
    parts, leaks = [], []
    bar = tqdm(total=folds * len(candidates) if isinstance(folds, int) else None, disable=not progressbar)
    with bar, warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for weight in candidates:
            specification = _with(model, _adversary(settings, weight))
            for fold in fitted_folds(specification, data, grouped, "cluster", folds, seed, False, fit):
                parts.append(_densities(fold, data, grouped, seed).assign(weight=weight, fold=fold.number))
                probe = stream(seed, "leakage", fold.number)
                found = leakage(fold.model, factors=grouped.group, given_response=given_response, seed=probe)
                leaks.append((weight, _excess(found), bool(found["leaks"].mean() > 0.5)))
                bar.update()
    groups = pd.concat(parts, ignore_index=True)[["weight", "fold", "group", "nlpd"]]
    wide = groups.pivot_table(index=["fold", "group"], columns="weight", values="nlpd", sort=False)
    table = _table(wide, pd.DataFrame(leaks, columns=["weight", "leakage", "leaks"]))
    weight, words = _choice(table, wide, target)
    table["chosen"] = table["weight"] == weight
    return AdversaryChoice(table, groups, _adversary(settings, weight), words)


def _weights(weights: Sequence[float]) -> list[float]:
    try:
        values = {0.0, *(Adversary(weight).weight for weight in weights)}
    except TypeError as error:
        raise ArgumentError(f"weights={weights!r} must be numbers, such as (0.1, 0.5, 2).") from error
    return sorted(values)


def _adversary(settings: Adversary, weight: float) -> Adversary | None:
    return replace(settings, weight=weight) if weight else None


def _with(model: Any, adversary: Adversary | None) -> Callable[[pd.DataFrame], Any]:
    """The specification with another adversary, and no linear path that only "off" would have."""
    changes: dict[str, Any] = {"adversary": adversary}
    if "formula" in (getattr(model, "_arguments", None) or {}) and model._arguments["linear_path"] is None:
        changes["linear_path"] = False
    return lambda rows: made_on(model, rows, **changes)


def _densities(fold: Fold, data: pd.DataFrame, grouped: Grouped, seed: int) -> pd.DataFrame:
    """Mean negative log density of each left-out group's rows; columns ``group`` and ``nlpd``."""
    encoded = encode(fold.model, take(data, grouped.rows[fold.rows]), "baseline")
    scores = pointwise(fold.model._fitted(), encoded, "marginal", seed=stream(seed, "density", fold.number))
    count = scores["weight"].to_numpy() if "weight" in scores else np.ones(len(scores))
    codes = grouped.codes[fold.rows]
    sums = pd.DataFrame({"total": scores["nlpd"].to_numpy() * count, "count": count}).groupby(codes).sum()
    sums = sums[sums["count"] > 0]
    labels = pd.Series([grouped.labels[code] for code in sums.index], dtype=object)
    return pd.DataFrame({"group": labels, "nlpd": (sums["total"] / sums["count"]).to_numpy()})


def _excess(found: pd.DataFrame) -> float:
    """The share of the way from chance to 1 that the probe's accuracy goes."""
    share = (found["accuracy"] - found["chance"]) / (1.0 - found["chance"]).clip(lower=1e-9)
    return float(share.mean())


def _table(wide: pd.DataFrame, leaks: pd.DataFrame) -> pd.DataFrame:
    root = np.sqrt(len(wide))
    difference = wide.sub(wide[wide.mean().idxmin()], axis=0)
    per_weight = leaks.groupby("weight")
    table = pd.DataFrame(
        {
            "nlpd": wide.mean(),
            "se": wide.std(ddof=1) / root,
            "worse": difference.mean(),
            "worse_se": difference.std(ddof=1) / root,
            "leakage": per_weight["leakage"].mean(),
            "leaks": per_weight["leaks"].sum(),
        }
    )
    return table.rename_axis("weight").reset_index()


def _choice(table: pd.DataFrame, wide: pd.DataFrame, target: float | None) -> tuple[float, str]:
    """The weight, and why."""
    allowed = table if target is None else table[table["leakage"] <= target]
    if allowed.empty:
        least = table.loc[table["leakage"].idxmin()]
        return float(least["weight"]), (
            f"No weight keeps leakage at {target:g} or below; weight {least['weight']:g} leaks least "
            f"({least['leakage']:.2f}). Try larger weights."
        )
    some = wide[allowed["weight"]]
    worse = some.sub(some[some.mean().idxmin()], axis=0)
    near = worse.columns[worse.mean() <= worse.std(ddof=1) / np.sqrt(len(worse))]
    row = table.set_index("weight").loc[near.min()]
    name = "No adversary" if near.min() == 0 else f"Weight {near.min():g}"
    limit = "" if target is None else f" among those with leakage up to {target:g}"
    return float(near.min()), (
        f"{name}: the smallest weight{limit} within one standard error of the best density on new groups "
        f"(negative log density {row['nlpd']:.3f}, leakage {row['leakage']:.2f})."
    )
