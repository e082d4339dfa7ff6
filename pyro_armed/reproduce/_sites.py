"""What the applications with sites measure and draw besides their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyro_armed import diagnostics, plots
from pyro_armed.armed import ARMED
from pyro_armed.baselines import Fitted, Rows, Task
from pyro_armed.reproduce._application import Problem
from pyro_armed.seeds import stream

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SiteTruth", "measures", "pictures", "split", "standardised"]

_ROWS = 50  # for the mean effect of a site
_DRAWS = 10
_MIXED = ("random effects", "ARMED", "randomised groups")
_COLUMNS = ["split", "metric", "value"]


@dataclass(frozen=True, eq=False)
class SiteTruth:
    """What is known besides the task.

    Attributes
    ----------
    effects : mapping of str to pandas.Series
        True effects of the groups by name, indexed by label: ``logit`` on the linear predictor, others within
        the network. Empty where nobody knows them.
    mask : numpy.ndarray or None
        Where the structure lies that bears the label, for the rows of ``task.seen``, shape (N, H, W).
    within : mapping of str to str
        For names in ``effects``, the variable in the posterior.
    """

    effects: Mapping[str, pd.Series]
    mask: NDArray[np.bool_] | None = None
    within: Mapping[str, str] | None = None


def standardised(images: NDArray[Any]) -> NDArray[np.float32]:
    """Each image with a mean of 0 and an sd of 1, as is usual where scanners set the scale, (N, H, W)."""
    centred = images - images.mean((1, 2), keepdims=True)
    return np.asarray(centred / np.maximum(images.std((1, 2), keepdims=True), 1e-6), dtype=np.float32)


def split(
    seed: int, groups: NDArray[Any], seen: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Rows to train with, two thirds of each seen group, and the others of these, masks (N,)."""
    order = np.random.default_rng(stream(seed, "split")).random(len(groups))
    of_group = pd.Series(order).groupby(np.asarray(groups))
    # A group of one row is to train with.
    train = 3 * of_group.rank().to_numpy() <= np.maximum(2 * of_group.transform("size").to_numpy(), 3)
    return seen & train, seen & ~train


def site_effects(model: ARMED, task: Task, seed: int) -> pd.Series:
    """Each group's mean effect on the linear predictor, over the same rows as if they came from it, (C,)."""
    pool = task.seen if task.unseen is None else task.unseen
    rows = np.random.default_rng(stream(seed, "effect rows")).permutation(len(pool))[:_ROWS]
    values = {}
    for label in task.labels:
        groups = {name: of[rows] for name, of in pool.groups.items()}
        groups[task.group] = np.full(len(rows), label)
        made = model.predict(pool.x[rows], groups=groups, kind="linear", draws=_DRAWS, seed=seed)
        (variable,) = (v for v in made["predictions"].data_vars.values() if "__obs__" in v.dims)
        values[label] = float(variable.mean())
    return pd.Series(values)


def pictured(model: ARMED, task: Task, seed: int) -> pd.DataFrame:
    """What each group does to pictures: ``gain`` and ``offset``, indexed by the group's label, (C, 2).

    The same rows are reconstructed as if they came from each group, and each group's pictures are regressed
    on the mean of all groups' pictures. Scales and biases of single channels need not say this: a network can
    put the same contrast into several of its layers.
    """
    pool = task.seen if task.unseen is None else task.unseen
    rows = np.random.default_rng(stream(seed, "picture rows")).permutation(len(pool))[:_ROWS]
    made = []
    for label in task.labels:
        groups = {name: of[rows] for name, of in pool.groups.items()} | {
            task.group: np.full(len(rows), label)
        }
        rebuilt = model.reconstruct(pool.x[rows], groups=groups, draws=_DRAWS, seed=seed)["mixed"]
        made.append(np.asarray(rebuilt, dtype=float).ravel())
    mean = np.mean(made, axis=0)
    lines = [np.polyfit(mean, pixels, 1) for pixels in made]
    return pd.DataFrame(lines, index=task.labels, columns=["gain", "offset"])


def measures(problem: Problem, name: str, fitted: Fitted, seed: int) -> pd.DataFrame | None:
    """Leakage of the features, the group effects beside their truth, saliency in the right place.

    Rows of the table: ("features", "leakage") is the accuracy of a fresh probe of the group given the
    response, beside ("features", "leakage, chance") and its 97.5 % ("features", "leakage, limit").
    The features' indices of Davies and Bouldin and of Calinski and Harabasz tell how far groups lie apart.
    ("effects", "r(logit)") correlates groups' effects with their truth, ("effects", "moved") is how far the
    posterior means of the groups' intercepts are from the prior's, in its sds (root mean square).
    ("effects", "r(gain)") and "r(offset)" are those of `pictured`; with ", parameter" of a single parameter.
    ("saliency", "in structure") is the share of HiResCAM in the structure, beside its share of the pixels.
    """
    model, task, truth = fitted.model, problem.task, problem.truth
    if model is None or name == "group as input":
        return None
    rows: list[tuple[str, str, float]] = []
    seen = task.seen
    if not model.spec.groups:
        rows += _probed(model, task, seed)
    else:
        found = diagnostics.leakage(
            model, seen.x, seen.y, groups=seen.groups, factors=task.group, given_response=True, seed=seed
        ).iloc[0]
        rows += _leakage_rows(found["accuracy"], found["chance"], found["high"])
    points, labels = diagnostics.latents(model, seen.x, groups=seen.groups), seen.groups[task.group]
    rows.append(("features", "Davies-Bouldin", diagnostics.davies_bouldin(points, labels)))
    rows.append(("features", "Calinski-Harabasz", diagnostics.calinski_harabasz(points, labels)))
    if name in _MIXED:
        rows += _effects(model, task, truth, seed)
    if truth.mask is not None:
        heat = diagnostics.saliency(model, seen.x, groups=seen.groups)
        near = truth.mask
        rows.append(("saliency", "in structure", float((heat * near).sum() / max(heat.sum(), 1e-12))))
        rows.append(("saliency", "structure's area", float(near.mean())))
    return pd.DataFrame(rows, columns=_COLUMNS)


def _leakage_rows(accuracy: float, chance: float, high: float) -> list[tuple[str, str, float]]:
    names = ("leakage", "leakage, chance", "leakage, limit")
    return [("features", name, float(v)) for name, v in zip(names, (accuracy, chance, high), strict=True)]


def _probed(model: ARMED, task: Task, seed: int) -> list[tuple[str, str, float]]:
    """Leakage of a model that has no grouping factor of its own."""
    import torch

    from pyro_armed.diagnostics._leakage import probe_accuracy

    seen = task.seen
    features = torch.as_tensor(diagnostics.latents(model, seen.x, groups=seen.groups))
    levels = np.unique(task.train.y)
    y = torch.as_tensor(np.searchsorted(levels, seen.y))
    columns = torch.nn.functional.one_hot(y, len(levels)).float()
    found = probe_accuracy(features, torch.as_tensor(task.codes(seen)), (columns, y), seed=seed)
    return _leakage_rows(found[1], found[2], found[4])


def _effects(model: ARMED, task: Task, truth: SiteTruth, seed: int) -> list[tuple[str, str, float]]:
    rows = []
    posterior = model.idata["posterior"]
    intercept = f"1|{task.group}"
    if intercept in posterior:
        moved = posterior[intercept].mean(("chain", "draw")) / posterior[f"{intercept}_sigma"].mean()
        rows.append(("effects", "moved", float((moved**2).mean()) ** 0.5))
    looks = pictured(model, task, seed) if model.spec.reconstruction is not None else pd.DataFrame()
    within = truth.within or {}
    for effect, true in truth.effects.items():
        estimates: dict[str, pd.Series] = {}
        if effect == "logit":
            estimates[effect] = site_effects(model, task, seed)
        elif effect in looks:
            estimates[effect] = looks[effect]
        if model.spec.layers and effect in within:
            variable = posterior[within[effect]].mean(("chain", "draw"))
            values = variable.to_numpy().reshape(len(task.labels), -1)[:, 0]
            estimates[f"{effect}, parameter"] = pd.Series(values, index=task.labels)
        for name, estimate in estimates.items():
            pair = np.corrcoef(estimate.to_numpy(), true.reindex(estimate.index).to_numpy())
            rows.append(("effects", f"r({name})", float(pair[0, 1])))
    return rows


def _some(rows: Rows, count: int, labels: NDArray[Any]) -> NDArray[np.int64]:
    """Positions of some rows, each of another group as far as there are enough, both responses in turn."""
    found: list[int] = []
    levels = np.unique(rows.y)
    for i in range(count):
        same = (labels == np.unique(labels)[i % len(np.unique(labels))]) & (rows.y == levels[i % len(levels)])
        candidates = np.setdiff1d(np.flatnonzero(same), found)
        found.append(int(candidates[0] if len(candidates) else np.setdiff1d(np.arange(len(rows)), found)[0]))
    return np.array(found)


def pictures(
    problem: Problem, fitted: Mapping[str, Fitted], seed: int, *, shown: Sequence[str] = ()
) -> dict[str, Figure]:
    """Rows as if from each group, latents without and with the full model, and for images the saliency."""
    task, figures = problem.task, {}
    seen, labels = task.seen, task.seen.groups[task.group]
    full = fitted["ARMED"].model if "ARMED" in fitted else None
    plain = fitted["conventional"].model if "conventional" in fitted else None
    spaces = {
        title: diagnostics.latents(model, seen.x, groups=seen.groups)
        for title, model in (("conventional", plain), ("ARMED, fixed effects", full))
        if model is not None
    }
    if spaces:
        figures["latents"] = plots.latents(spaces, labels, figure=plots.new_figure())
    if full is None:
        return figures
    few = _some(seen, 4, labels)
    figures["counterfactual_groups"] = plots.counterfactual_groups(
        full, seen.x[few], task.group, labels=list(shown) or None, draws=_DRAWS, figure=plots.new_figure()
    )
    if seen.x.ndim > 2:
        six = _some(seen, 6, labels)
        for stem, model in (("saliency_conventional", plain), ("saliency", full)):
            if model is not None:
                heat = diagnostics.saliency(
                    model, seen.x[six], groups={name: of[six] for name, of in seen.groups.items()}
                )
                figures[stem] = plots.saliency(seen.x[six], heat, figure=plots.new_figure())
    return figures
