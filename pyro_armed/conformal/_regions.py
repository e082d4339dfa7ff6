"""Intervals and sets of a fitted model."""

from __future__ import annotations

import warnings

import numpy as np

from pyro_armed.conformal._predictive import check_level, predictive
from pyro_armed.conformal._scores import Regions, conformity, group_threshold, least_groups, regions_at
from pyro_armed.design import Encoded
from pyro_armed.errors import ArgumentError, ArmedWarning, DataError
from pyro_armed.new_groups import Mode
from pyro_armed.posterior import Posterior
from pyro_armed.seeds import stream
from pyro_armed.spec import ModelSpec

__all__ = ["INTERVALS", "conformal_regions", "posterior_regions", "regions_of"]

INTERVALS = ("posterior", "conformal")


def regions_of(
    posterior: Posterior,
    encoded: Encoded,
    mode: Mode,
    calibration: Encoded | None,
    *,
    level: float,
    seed: int,
) -> Regions:
    """`conformal_regions` where there are calibration rows, else `posterior_regions`.

    Parameters
    ----------
    posterior, encoded, mode, calibration, level, seed
        As for these.

    Returns
    -------
    Regions
    """
    if calibration is None:
        return posterior_regions(posterior, encoded, mode, level=level, seed=seed)
    return conformal_regions(posterior, encoded, mode, calibration, level=level, seed=seed)


def posterior_regions(
    posterior: Posterior, encoded: Encoded, mode: Mode, *, level: float, seed: int
) -> Regions:
    """Equal-tailed intervals, or the fewest levels of that probability, of the posterior predictive.

    Parameters
    ----------
    posterior : Posterior
        Stored draws.
    encoded : Encoded
        Rows.
    mode : Mode
        What to do for new groups.
    level : float
        Probability of the intervals, between 0 and 1.
    seed : int
        Seed of new groups' effects and predictive draws.

    Returns
    -------
    Regions

    Raises
    ------
    ArgumentError
        For a level that is not between 0 and 1.
    """
    check_level(level)
    found = predictive(posterior, encoded, mode, level=level, seed=seed)
    if not len(found.probability):
        return Regions(found.low, found.high)
    order = np.argsort(-found.probability, axis=1, kind="stable")
    ranked = np.take_along_axis(found.probability, order, axis=1)
    needed = ranked.cumsum(axis=1) - ranked < level  # what stands before a level does not suffice
    members = np.empty(order.shape, dtype=bool)
    np.put_along_axis(members, order, needed, axis=1)
    return Regions(members=members)


def conformal_regions(
    posterior: Posterior, encoded: Encoded, mode: Mode, calibration: Encoded, *, level: float, seed: int
) -> Regions:
    """Intervals or sets that cover a row of a new group with a given probability, be the model right or not.

    Parameters
    ----------
    posterior : Posterior
        Stored draws.
    encoded : Encoded
        Rows to predict.
    mode : Mode
        What to do for new groups, here and in the calibration rows.
    calibration : Encoded
        Rows with their response, of groups that training did not have.
    level : float
        Probability of the intervals, between 0 and 1.
    seed : int
        Seed of new groups' effects and predictive draws.

    Returns
    -------
    Regions
        Infinite intervals, or sets of all levels, where there are fewer than `least_groups` groups.

    Raises
    ------
    ArgumentError, DataError
        For a level that is not between 0 and 1, a model without group effects, and calibration groups that
        training had.

    Warns
    -----
    ArmedWarning
        Where there are too few groups, and where rows are of groups that training or calibration had.

    Notes
    -----
    A number scores ``conformity``, its distance from the predictive median in units of the predictive
    interval's half on its side, which leaves the intervals as wide and as skewed as the model says; a level
    scores one minus its probability. With K calibration groups of n_k rows, the threshold is the ``level``
    quantile of the scores with weight 1 / (n_k (K + 1)) each and weight 1 / (K + 1) at infinity (Lee,
    Barber, Willett, arXiv 2306.06342; pooling in Dunn, Wasserman, Ramdas, JASA 118, 2023). If the
    calibration groups and the new group are exchangeable, as are the rows of a group, a row of the new group
    is covered with probability at least ``level`` and, without ties, at most ``level`` + 1 / (K + 1) for
    groups of one size. This is an average over new groups and over calibration data: it does not hold for
    each group on its own, nor for seen groups.
    """
    check_level(level)
    spec = posterior.chains[0].module.spec
    group = _calibration_factor(spec, calibration)
    codes = calibration.batch.codes[group].cpu().numpy()
    known = predictive(posterior, calibration, mode, level=level, seed=stream(seed, "calibration"))
    response = calibration.batch.response.double().cpu().numpy()  # type: ignore[union-attr]
    threshold = group_threshold(conformity(known, response), codes, level)
    count, needed = len(np.unique(codes)), least_groups(level)
    if count < needed:
        warnings.warn(
            f"{count} calibration groups of '{group}' are too few for level={level}: the intervals are "
            f"infinite, and sets have all levels. At least {needed} groups are needed.",
            ArmedWarning,
            stacklevel=4,
        )
    _warn_of_known_groups(spec, encoded, calibration, group)
    return regions_at(predictive(posterior, encoded, mode, level=level, seed=seed), threshold, spec.family)


def _calibration_factor(spec: ModelSpec, calibration: Encoded) -> str:
    """The first grouping factor none of whose calibration groups were trained on."""
    names = spec.effect_groups
    if not names:
        raise ArgumentError(
            "intervals='conformal' needs a model with group effects; add '(1 | group)' to the formula."
        )
    for name in names:
        if bool((calibration.batch.codes[name] >= spec.group(name).size).all()):
            return name
    codes = calibration.batch.codes[names[0]].unique().tolist()
    known = [spec.group(names[0]).labels[code] for code in codes if code < spec.group(names[0]).size]
    shown = ", ".join(map(repr, known[:5])) + (", ..." if len(known) > 5 else "")
    raise DataError(
        f"Calibration groups of '{names[0]}' were trained on: {shown}. Hold whole groups out of the training "
        "data and pass these as calibration=."
    )


def _warn_of_known_groups(spec: ModelSpec, encoded: Encoded, calibration: Encoded, group: str) -> None:
    """Say of how many rows the guarantee is not meant."""
    codes = encoded.batch.codes[group].cpu().numpy()
    size = spec.group(group).size
    used = set(calibration.new_groups[group])
    known = [code for code, label in enumerate(encoded.new_groups[group], size) if label in used]
    rows = int(((codes < size) | np.isin(codes, known)).sum())
    if rows:
        warnings.warn(
            f"{rows} of {len(codes)} rows are of groups of '{group}' that training or calibration had; "
            "conformal intervals are guaranteed for rows of new groups only.",
            ArmedWarning,
            stacklevel=5,
        )
