"""The network's features, and how far they tell groups apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray

from pyro_armed.diagnostics._access import fitted
from pyro_armed.diagnostics._rows import encoded_rows
from pyro_armed.errors import ArgumentError
from pyro_armed.local import local_parameters

__all__ = ["calinski_harabasz", "davies_bouldin", "latents"]

Floats = NDArray[np.floating[Any]]


@torch.no_grad()
def latents(model: Any, data: Any = None, *, groups: Any = None, random: bool = False) -> Floats:
    """The network's last hidden activations, of an autoencoder its latent values.

    Parameters
    ----------
    model : ARMED
        Fitted, with a network that ends in a linear layer.
    data : DataFrame or array-like, optional
        Rows; None: the training rows. For a model from arrays the inputs x.
    groups : mapping of str to array-like, optional
        Group labels, for a model from arrays.
    random : bool
        Whether each row's group effects within the network are included, at their posterior means. Else the
        features are those of the fixed effects, which the adversary sees.

    Returns
    -------
    numpy.ndarray, shape (N, F)
        Of the restart with the best ELBO.

    Raises
    ------
    ArgumentError
        Without such a network, and where there are no group effects within it to include.

    Examples
    --------
    >>> import pyro_armed as pa
    >>> data = pa.simulate.mixed_model(4, 10, seed=0)
    >>> model = pa.ARMED("y ~ x1 + (1 | group)", data.frame, network=pa.networks.MLP(hidden=(4,)))
    >>> budget = {"epochs": 800, "learning_rate": 0.03, "early_stopping": False}
    >>> _ = model.fit(**budget, restarts=1, draws=5, progressbar=False)
    >>> latents(model).shape
    (40, 4)
    """
    model = fitted(model, "latents")
    module = model.module
    if not module.spec.n_features:
        raise ArgumentError("latents needs a network that ends in a linear layer, whose inputs they are.")
    if random and not module.spec.layers:
        raise ArgumentError(
            "random=True is for group effects within the network, of which this model has none; give "
            "random_effects=[pa.effects.ScaleBias(...)]."
        )
    batch = encoded_rows(model, data, groups=groups).batch
    values = None
    if random:
        chain = next(one for one in model._fitted().chains if one.module is module)
        sizes = {layer.group: module.spec.group(layer.group).size for layer in module.spec.layers}
        for group, size in sizes.items():
            if bool((batch.codes[group] >= size).any()):
                raise ArgumentError(f"random=True is for groups of the training data; {group!r} has others.")
        names = [name for layer in module.spec.layers for name in layer.names]
        values = {name: chain.values[name].mean(0) for name in names}
    with local_parameters():
        features = module.eval().hidden(batch, values)[0]
    return np.asarray(features.cpu().numpy())


def davies_bouldin(points: ArrayLike, groups: ArrayLike) -> float:
    """Davies and Bouldin's index of separation between groups: the lower, the further apart they are.

    The mean over groups of the largest ratio (s_i + s_j) / d_ij, with s the mean distance of a group's points
    from their centre and d the distance of the centres (IEEE TPAMI 1(2), 1979).

    Parameters
    ----------
    points : array-like, shape (N, F)
        Such as `latents`.
    groups : array-like, shape (N,)
        Labels.

    Returns
    -------
    float
        Infinite where two centres coincide.

    Raises
    ------
    ArgumentError
        For shapes that do not fit and fewer than two groups.

    Examples
    --------
    >>> davies_bouldin([[0.0], [2.0], [10.0], [12.0]], ["a", "a", "b", "b"])
    0.2
    """
    values, codes, count = _checked(points, groups)
    centres = _means(values, codes, count)
    spread = _means(np.linalg.norm(values - centres[codes], axis=1)[:, None], codes, count)[:, 0]
    # Group by group: a matrix of all pairs would not fit into memory for many groups.
    worst = []
    for i in range(count):
        distance = np.linalg.norm(centres - centres[i], axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = (spread + spread[i]) / distance
        worst.append(np.nanmax(np.delete(ratio, i)))
    return float(np.mean(worst))


def calinski_harabasz(points: ArrayLike, groups: ArrayLike) -> float:
    """Calinski and Harabasz's index of separation between groups: the higher, the further apart they are.

    Variance between groups over that within, each over its degrees of freedom (Communications in Statistics
    3(1), 1974): the F statistic of the group, over all features together.

    Parameters
    ----------
    points : array-like, shape (N, F)
        Such as `latents`.
    groups : array-like, shape (N,)
        Labels.

    Returns
    -------
    float
        Infinite where groups have no spread.

    Raises
    ------
    ArgumentError
        For shapes that do not fit, fewer than two groups, and as many groups as rows.

    Examples
    --------
    >>> calinski_harabasz([[0.0], [2.0], [10.0], [12.0]], ["a", "a", "b", "b"])
    50.0
    """
    values, codes, count = _checked(points, groups)
    if count == len(values):
        raise ArgumentError("groups has a group for each row; give some more rows than groups.")
    centres = _means(values, codes, count)
    within = float(((values - centres[codes]) ** 2).sum())
    between = float((np.bincount(codes)[:, None] * (centres - values.mean(0)) ** 2).sum())
    if within == 0.0:
        return float("inf")
    return between * (len(values) - count) / (within * (count - 1))


def _checked(points: ArrayLike, groups: ArrayLike) -> tuple[Floats, NDArray[np.int64], int]:
    values, codes = np.asarray(points, dtype=float), pd.factorize(np.asarray(groups))[0]
    if values.ndim != 2 or len(values) != len(codes) or not np.isfinite(values).all():
        raise ArgumentError(
            f"points must be finite numbers with one row for each of the {len(codes)} groups' labels, not of "
            f"shape {values.shape}."
        )
    if (codes < 0).any():
        raise ArgumentError("groups has missing labels; leave those rows out.")
    count = int(codes.max(initial=-1)) + 1
    if count < 2:
        raise ArgumentError("groups has fewer than two groups, between which there is nothing to tell apart.")
    return values, codes, count


def _means(values: Floats, codes: NDArray[np.int64], count: int) -> Floats:
    """Means of each group's rows, shape (C, F)."""
    total = np.zeros((count, values.shape[1]))
    np.add.at(total, codes, values)
    return total / np.bincount(codes, minlength=count)[:, None]
