"""Images with simulated effects of the site that took them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyro_armed.errors import ArgumentError, DataError
from pyro_armed.simulate._checks import labels as make_labels
from pyro_armed.simulate._checks import number, positive_integer, stream

# Sizes at strength 1: sd of the log gain; sd of the offset, largest bias and mean noise as shares of the
# range of intensities.
_GAIN, _OFFSET, _BIAS, _NOISE = 0.25, 0.1, 0.25, 0.05


@dataclass(frozen=True, eq=False)
class SiteImages:
    """Images as several sites would have taken them, and the truth; made by :func:`site_images`.

    An image of site s is ``gain[s] * bias_field[s] * original + offset[s] + noise``.

    Attributes
    ----------
    images : numpy.ndarray
        Shape (N, H, W), in the original's floating-point type.
    labels : numpy.ndarray
        The labels given, shape (N,).
    site : numpy.ndarray
        The site's label of each image, shape (N,).
    original : numpy.ndarray
        The images given, shape (N, H, W).
    gain, offset, noise : pandas.Series
        Contrast, brightness and sd of the noise of each site, indexed by its label, shape (C,).
    bias_field : numpy.ndarray
        Smooth factor around 1 for each site's pixels, shape (C, H, W).
    """

    images: NDArray[Any]
    labels: NDArray[Any]
    site: NDArray[np.str_]
    original: NDArray[Any]
    gain: pd.Series
    offset: pd.Series
    noise: pd.Series
    bias_field: NDArray[np.float64]


def site_images(
    images: NDArray[Any],
    labels: NDArray[Any],
    n_sites: int = 6,
    *,
    strength: float = 1.0,
    confounding: float = 0.0,
    seed: int = 0,
) -> SiteImages:
    """Deal images out to sites and give each site its contrast, brightness, bias field and noise.

    Parameters
    ----------
    images : numpy.ndarray
        Shape (N, H, W), floating point.
    labels : numpy.ndarray
        Shape (N,).
    n_sites : int
        Number of sites, at most N.
    strength : float
        Size of the site effects; 0 leaves the images as they are. At 1 the log gain has sd 0.25, the offset
        sd 0.1 times the range of the intensities, the bias field reaches 25 % at most and the noise has an sd
        around 0.05 times the range.
    confounding : float
        0: labels are dealt out evenly. Above: the log odds of the sites differ by label with this sd, so
        that a site tells of the label.
    seed : int
        Same seed, same sites.

    Returns
    -------
    SiteImages
        The images and each site's truth.

    Raises
    ------
    DataError
        If the images are not a finite floating-point array (N, H, W), or the labels not of shape (N,).
    ArgumentError
        If another argument is out of range.

    Examples
    --------
    >>> flat = np.ones((4, 8, 8))
    >>> data = site_images(flat, np.array([0, 1, 0, 1]), n_sites=2, seed=0)
    >>> data.images.shape, sorted(data.gain.index)
    ((4, 8, 8), ['site00', 'site01'])
    """
    original, y = _check_images(images, labels)
    n_sites = positive_integer("n_sites", n_sites)
    if n_sites > len(original):
        raise ArgumentError(f"n_sites is {n_sites}, but there are only {len(original)} images.")
    strength = number("strength", strength, 0.0)
    rng = stream(seed)
    code = _deal(rng, y, n_sites, number("confounding", confounding, 0.0))
    spread = float(original.max() - original.min()) or 1.0
    gain = np.exp(strength * _GAIN * rng.standard_normal(n_sites))
    offset = strength * _OFFSET * spread * rng.standard_normal(n_sites)
    noise = strength * _NOISE * spread * rng.uniform(0.5, 1.5, n_sites)
    field = 1 + strength * _BIAS * smooth_fields(rng, n_sites, *original.shape[1:])
    # `original` is not overwritten: the product is a new array.
    result = original * (gain[:, None, None] * field)[code] + offset[code, None, None]
    result += noise[code, None, None] * rng.standard_normal(original.shape)
    names = make_labels("site", n_sites)
    index = pd.Index(names, name="site")
    return SiteImages(
        images=result.astype(original.dtype),
        labels=y,
        site=names[code],
        original=original,
        gain=pd.Series(gain, index=index, name="gain"),
        offset=pd.Series(offset, index=index, name="offset"),
        noise=pd.Series(noise, index=index, name="noise"),
        bias_field=field,
    )


def _check_images(images: Any, labels: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    original, y = np.array(images), np.array(labels)
    if original.ndim != 3 or original.size == 0 or not np.issubdtype(original.dtype, np.floating):
        raise DataError(
            f"images has to be a floating-point array (N, H, W), but has shape {original.shape} and type "
            f"{original.dtype}; reshape or convert it."
        )
    if not np.isfinite(original).all():
        raise DataError("images has values that are not finite; remove or replace them.")
    if y.shape != original.shape[:1]:
        raise DataError(
            f"labels has shape {y.shape}, but there are {len(original)} images; give one label each."
        )
    return original, y


def _deal(rng: np.random.Generator, y: NDArray[Any], n_sites: int, confounding: float) -> NDArray[np.int64]:
    """Return each image's site code, shape (N,); every site gets an image."""
    code = np.empty(len(y), dtype=np.int64)
    classes, y_code = np.unique(y, return_inverse=True)
    if confounding == 0:
        # Label by label and round robin, so that sites agree in size and in the mix of labels.
        order = np.lexsort((rng.random(len(y)), y_code))
        code[order] = np.arange(len(y)) % n_sites
        return code
    odds = np.exp(confounding * rng.standard_normal((len(classes), n_sites)))
    share = np.cumsum(odds / odds.sum(1, keepdims=True), axis=1)[y_code]
    code[:] = np.minimum((rng.random(len(y))[:, None] > share).sum(1), n_sites - 1)
    for empty in np.setdiff1d(np.arange(n_sites), code):
        code[rng.choice(np.flatnonzero(np.bincount(code, minlength=n_sites)[code] > 1))] = empty
    return code


def smooth_fields(rng: np.random.Generator, count: int, height: int, width: int) -> NDArray[np.float64]:
    """Return random quadratic surfaces within [-1, 1], shape (count, height, width)."""
    v, h = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    surfaces = np.stack([v, h, v * h, v**2 - 0.5, h**2 - 0.5])
    weight = rng.dirichlet(np.ones(len(surfaces)), count) * rng.choice([-1.0, 1.0], (count, len(surfaces)))
    return np.asarray(np.tensordot(weight, surfaces, axes=1))
