"""Cells under a microscope, in batches: two classes that differ in shape and grain."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from pyro_armed.simulate._acquisition import GroupImages, ellipse, grid, simulate_images

Floats = NDArray[np.float64]
# The body's mean radius, the log of its mean elongation with the sd for a score of 1, the grain's amplitude.
_RADIUS, _ELONGATION, _SPREAD, _GRAIN = 0.50, 0.45, 0.22, 0.12


def cells(
    n_batches: int = 10,
    cells_per_batch: int = 150,
    *,
    unseen: int = 5,
    size: int = 28,
    separation: float = 1.5,
    strength: float = 1.0,
    rate_sd: float = 1.5,
    confounding: float = 0.6,
    jitter: float = 0.5,
    seed: int = 0,
) -> GroupImages:
    """Simulate cell images, round and elongated ones, in batches with their own illumination.

    The label comes first, with the batch's rate; cells of class 1 are more elongated and have a coarser
    grain; then come the batch's illumination (a gradient), contrast, brightness, blur and noise.

    Parameters
    ----------
    n_batches, cells_per_batch : int
        Batches to train with, and cells of each.
    unseen : int
        Further batches; at them contrast and rate are independent.
    size, separation, strength, rate_sd, confounding, jitter, seed
        As in `phantoms`, with elongation in the place of the ventricles' size.

    Returns
    -------
    GroupImages
        Images and truth; ``mask`` is the cell body.

    Raises
    ------
    ArgumentError
        If an argument is out of range.

    Examples
    --------
    >>> data = cells(2, 10, unseen=1, seed=0)
    >>> data.images.shape, sorted(set(data.groups.tolist()))
    ((30, 28, 28), ['batch00', 'batch01', 'batch02'])
    """
    return simulate_images(
        _bodies,
        {"n_batches": n_batches, "cells_per_batch": cells_per_batch},
        "batch",
        unseen=unseen,
        size=size,
        separation=separation,
        strength=strength,
        rate_sd=rate_sd,
        confounding=confounding,
        jitter=jitter,
        seed=seed,
    )


def _bodies(rng: np.random.Generator, z: Floats, side: int) -> tuple[Floats, Floats]:
    """Cells (N, side, side) of standardised elongation z, and how far pixels belong to the body."""
    count = len(z)
    down, right = grid(side)
    half = np.exp(0.5 * np.clip(_ELONGATION + _SPREAD * z, -0.1, 1.2))
    radius = _RADIUS * np.exp(0.10 * rng.standard_normal(count))
    angle = rng.uniform(0.0, np.pi, count)
    at = 0.05 * rng.standard_normal((2, count))
    body = ellipse(down, right, (at[0], at[1]), (radius * half, radius / half), angle)
    turn = rng.uniform(0.0, 2 * np.pi, count)
    away = 0.2 * radius * rng.uniform(0.0, 1.0, count)
    nucleus = ellipse(
        down,
        right,
        (at[0] + away * np.cos(turn), at[1] + away * np.sin(turn)),
        (0.38 * radius, 0.34 * radius),
        angle,
    )
    fine = gaussian_filter(rng.standard_normal(body.shape), (0.0, 0.7, 0.7))
    coarse = gaussian_filter(rng.standard_normal(body.shape), (0.0, 1.4, 1.4))
    share = (1 / (1 + np.exp(-z)))[:, None, None]
    grain = share * coarse / coarse.std() + (1 - share) * fine / fine.std()
    image = 0.15 + body * (0.4 + _GRAIN * grain) + 0.3 * nucleus
    return image, body
