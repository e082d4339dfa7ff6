"""Head phantoms: slices of simulated heads, whose ventricles bear the label, from several scanners."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyro_armed.simulate._acquisition import GroupImages, ellipse, grid, simulate_images

Floats = NDArray[np.float64]
# Intensities, and the ventricle's mean half length with the sd of its log for a size of 1.
_SKULL, _BRAIN, _CORE, _VENTRICLE = 0.9, 0.55, 0.75, 0.15
_LENGTH, _SPREAD = 0.22, 0.25


def phantoms(
    n_sites: int = 12,
    images_per_site: int = 120,
    *,
    unseen: int = 6,
    size: int = 32,
    separation: float = 1.2,
    strength: float = 1.0,
    rate_sd: float = 2.0,
    confounding: float = 0.6,
    jitter: float = 1.0,
    seed: int = 0,
) -> GroupImages:
    """Simulate slices of heads, healthy and ill, from scanners of several sites.

    The label comes first, with the site's rate; the ventricles of the ill are larger; the scanner does the
    rest. What an image says of the label is therefore the same at all sites, and a site adds its log odds: an
    intercept. Everybody's head differs in size, tilt, tissue and brightness.

    Parameters
    ----------
    n_sites, images_per_site : int
        Sites to train with, and images of each.
    unseen : int
        Further sites; at them contrast and rate are independent.
    size : int
        Pixels of a side, at least 16.
    separation : float
        Distance between the labels' mean sizes of the ventricles in sds. The best classifier that sees the
        sizes and no site has an AUROC of Phi(separation / sqrt(2)).
    strength : float
        Size of the scanners' effects on images; 0: none.
    rate_sd : float
        sd of the sites' log odds of illness.
    confounding : float
        Correlation of the log odds with the log contrast among the sites to train with.
    jitter : float
        How far contrast and brightness vary between images of one scanner, as a share of how far they do
        between scanners.
    seed : int
        Same seed, same data.

    Returns
    -------
    GroupImages
        Images and truth; sites to train with come first.

    Raises
    ------
    ArgumentError
        If an argument is out of range.

    Examples
    --------
    >>> data = phantoms(3, 10, unseen=1, seed=0)
    >>> data.images.shape, data.effects["seen"].tolist()
    ((40, 32, 32), [True, True, True, False])
    """
    return simulate_images(
        _heads,
        {"n_sites": n_sites, "images_per_site": images_per_site},
        "site",
        unseen=unseen,
        size=size,
        separation=separation,
        strength=strength,
        rate_sd=rate_sd,
        confounding=confounding,
        jitter=jitter,
        seed=seed,
    )


def _heads(rng: np.random.Generator, z: Floats, side: int) -> tuple[Floats, Floats]:
    """Heads (N, side, side) with ventricles of standardised size z, and how far pixels belong to these."""
    count = len(z)
    down, right = grid(side)

    def vary(centre: float, sd: float) -> Floats:
        return np.asarray(centre + sd * rng.standard_normal(count))

    tilt = vary(0.0, 0.08)
    at = (vary(0.0, 0.03), vary(0.0, 0.03))
    scale = np.exp(vary(0.0, 0.04))
    head = 0.86 * scale, 0.70 * scale
    skull = ellipse(down, right, at, head, tilt)
    brain = ellipse(down, right, at, (head[0] - 0.1, head[1] - 0.1), tilt)
    core = ellipse(down, right, at, (0.58 * scale, 0.44 * scale), tilt)
    length = _LENGTH * np.exp(_SPREAD * z + vary(0.0, 0.04))
    ventricles = np.zeros_like(skull)
    for sign in (-1.0, 1.0):
        beside = 0.17 * sign * np.exp(vary(0.0, 0.05))
        centre = (at[0] - beside * np.sin(tilt), at[1] + beside * np.cos(tilt))
        part = ellipse(down, right, centre, (length, 0.42 * length), tilt + vary(0.25, 0.05) * sign)
        ventricles = np.maximum(ventricles, part)
    tissue = vary(0.0, 0.03)[:, None, None]
    image = skull * _SKULL
    image += brain * (_BRAIN + tissue - _SKULL)
    image += core * (_CORE - _BRAIN)
    image += ventricles * (_VENTRICLE - image)
    return image, ventricles
