"""What scanners and microscopes do to images, and how often their sites see each label."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.special import expit, logit

from pyro_armed.errors import ArgumentError
from pyro_armed.simulate._checks import labels, number, positive_integer, stream
from pyro_armed.simulate._images import smooth_fields

# Sizes at strength 1: sd of the log gain; sd of the offset, largest bias; median blur (in pixels of an image
# of 32) and noise. Images lie between 0 and 1.
_GAIN, _OFFSET, _BIAS, _BLUR, _NOISE = 0.25, 0.08, 0.25, 0.45, 0.04
# sd of the logs of blur and noise between groups.
_UNEVEN = 0.4
_NUISANCES = 4


@dataclass(frozen=True, eq=False)
class GroupImages:
    """Simulated images of several sites or batches, and the truth behind them.

    Attributes
    ----------
    images : numpy.ndarray
        Shape (N, H, W), 32-bit floats.
    labels : numpy.ndarray
        0 or 1, shape (N,).
    groups : numpy.ndarray
        The label of each image's site or batch, shape (N,).
    seen : numpy.ndarray
        Whether the group is one of those to train with, shape (N,).
    effects : pandas.DataFrame
        True parameters of each group, indexed by its label: ``seen``; ``rate``, the probability of label 1;
        ``gain`` (contrast), ``offset`` (brightness), ``blur`` (sd in pixels) and ``noise`` (sd).
    bias_field : numpy.ndarray
        Smooth factor around 1 for each group's pixels, shape (C, H, W).
    size : numpy.ndarray
        What bears the label, standardised, shape (N,): given the label it does not depend on the group.
    mask : numpy.ndarray
        Where the structure lies that bears the label, shape (N, H, W).
    clean : numpy.ndarray
        The images before the groups' effects, shape (N, H, W).
    """

    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    groups: NDArray[np.str_]
    seen: NDArray[np.bool_]
    effects: pd.DataFrame
    bias_field: NDArray[np.float64]
    size: NDArray[np.float64]
    mask: NDArray[np.bool_]
    clean: NDArray[np.float32]


@dataclass(frozen=True)
class Acquisition:
    """How groups differ, checked.

    Attributes
    ----------
    n_groups, unseen, rows : int
        Groups to train with, others, and images of each.
    strength, rate_sd, confounding, jitter : float
        See `pyro_armed.simulate.phantoms`.
    """

    n_groups: int
    unseen: int
    rows: int
    strength: float
    rate_sd: float
    confounding: float
    jitter: float

    def __post_init__(self) -> None:
        if not -1.0 <= number("confounding", self.confounding) <= 1.0:
            raise ArgumentError(f"confounding has to be in [-1, 1], but is {self.confounding!r}.")
        for name in ("strength", "rate_sd", "jitter"):
            number(name, getattr(self, name), 0.0)

    def effects(self, rng: np.random.Generator, prefix: str) -> pd.DataFrame:
        """Parameters of all groups, those to train with first."""
        parts = [self._drawn(rng, self.n_groups, self.confounding)]
        if self.unseen:
            parts.append(self._drawn(rng, self.unseen, 0.0))
        frame = pd.concat(parts, ignore_index=True)
        frame.insert(0, "seen", np.arange(len(frame)) < self.n_groups)
        frame.index = pd.Index(labels(prefix, len(frame)), name=prefix)
        return frame

    def _drawn(self, rng: np.random.Generator, count: int, confounding: float) -> pd.DataFrame:
        gain, rate, offset, blur, noise = standard_scores(rng, count, 1 + _NUISANCES).T
        rate = confounding * gain + np.sqrt(1 - confounding**2) * rate
        return pd.DataFrame(
            {
                "rate": expit(self.rate_sd * rate),
                "gain": np.exp(self.strength * _GAIN * gain),
                "offset": self.strength * _OFFSET * offset,
                "blur": self.strength * _BLUR * np.exp(_UNEVEN * blur),
                "noise": self.strength * _NOISE * np.exp(_UNEVEN * noise),
            }
        )

    def take(
        self,
        rng: np.random.Generator,
        clean: NDArray[np.float64],
        code: NDArray[np.int64],
        effects: pd.DataFrame,
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """The images as their groups take them, (N, H, W), and the bias fields, (C, H, W)."""
        side, spread = clean.shape[1], self.jitter * rng.standard_normal((4, len(clean)))
        field = self.strength * _BIAS * smooth_fields(rng, len(effects), *clean.shape[1:])
        own = self.strength * self.jitter * _BIAS * smooth_fields(rng, len(clean), *clean.shape[1:])
        images = clean * (1 + field[code] + own)
        gain = effects["gain"].to_numpy()[code] * np.exp(self.strength * _GAIN * spread[0])
        offset = effects["offset"].to_numpy()[code] + self.strength * _OFFSET * spread[1]
        blur = effects["blur"].to_numpy()[code] * np.exp(_UNEVEN * spread[2]) * side / 32
        noise = effects["noise"].to_numpy()[code] * np.exp(_UNEVEN * spread[3])
        for row, sd in enumerate(blur):
            images[row] = gaussian_filter(images[row], sd, mode="nearest")
        images = gain[:, None, None] * images + offset[:, None, None]
        images += noise[:, None, None] * rng.standard_normal(clean.shape)
        return images.astype(np.float32), 1 + field


def standard_scores(rng: np.random.Generator, count: int, columns: int) -> NDArray[np.float64]:
    """Normal scores (count, columns) with means of 0, sds of 1 and, where there are enough, no correlation.

    So that few groups have, in every data set, the spread and the confounding that were asked for.
    """
    scores = rng.standard_normal((count, columns))
    if count > columns:
        signs = np.sign(np.diag(np.linalg.qr(scores - scores.mean(0))[1]))
        return np.asarray(np.linalg.qr(scores - scores.mean(0))[0] * signs * np.sqrt(count - 1))
    if count > 1:
        return np.asarray((scores - scores.mean(0)) / scores.std(0, ddof=1))
    return scores


def drawn_labels(
    rng: np.random.Generator, effects: pd.DataFrame, rows: int, separation: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Codes, labels and standardised sizes of ``rows`` images of each group, each of shape (N,)."""
    code = np.repeat(np.arange(len(effects)), rows)
    y = (rng.random(code.size) < effects["rate"].to_numpy()[code]).astype(np.int64)
    return code, y, separation * (y - 0.5) + rng.standard_normal(code.size)


def group_logits(effects: pd.DataFrame) -> pd.Series:
    """True log odds of label 1 in each group, the intercepts that a model should find."""
    return pd.Series(logit(effects["rate"]), index=effects.index, name="logit rate")


def grid(side: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coordinates of pixels from -1 to 1, downwards and to the right, each (1, side, side)."""
    line = (np.arange(side) + 0.5) / side * 2 - 1
    down, right = np.meshgrid(line, line, indexing="ij")
    return down[None], right[None]


def ellipse(
    down: NDArray[np.float64],
    right: NDArray[np.float64],
    centre: tuple[NDArray[np.float64], NDArray[np.float64]],
    radii: tuple[NDArray[np.float64], NDArray[np.float64]],
    angle: NDArray[np.float64],
) -> NDArray[np.float64]:
    """How far each pixel lies within an ellipse, from 0 to 1 with a soft edge of a pixel, (N, H, W).

    Centres, radii (down, right) and angles have shape (N,).
    """

    def column(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(values, dtype=float)[:, None, None]

    v, h = down - column(centre[0]), right - column(centre[1])
    cos, sin = np.cos(column(angle)), np.sin(column(angle))
    along, across = cos * v + sin * h, -sin * v + cos * h
    distance = np.sqrt((along / column(radii[0])) ** 2 + (across / column(radii[1])) ** 2)
    pixel = 2.0 / down.shape[1]
    # Distance to the edge in pixels, in the direction of the centre.
    inside = (1 - distance) * np.sqrt(column(radii[0]) * column(radii[1])) / pixel
    return np.asarray(np.clip(inside + 0.5, 0.0, 1.0))


def simulate_images(
    draw: Callable[[np.random.Generator, NDArray[np.float64], int], tuple[NDArray[Any], NDArray[Any]]],
    counts: Mapping[str, int],
    prefix: str,
    *,
    unseen: int,
    size: int,
    separation: float,
    seed: int,
    **shape: float,
) -> GroupImages:
    """Images whose label comes first, with the group's rate, then the structure, then the acquisition.

    Parameters
    ----------
    draw : callable
        Takes a generator, standardised sizes (N,) of the structure that bears the label, and the pixels of a
        side; returns images and how far each pixel belongs to the structure, both (N, size, size).
    counts : mapping of str to int
        Groups to train with, and images of each, by the names of the user's arguments.
    prefix : str
        Of the groups' labels.
    unseen, size, separation, seed
        See `pyro_armed.simulate.phantoms`.
    **shape
        ``strength``, ``rate_sd``, ``confounding`` and ``jitter``, likewise.

    Raises
    ------
    ArgumentError
        If an argument is out of range.
    """
    for name, value in counts.items():
        positive_integer(name, value)
    if unseen != 0:
        positive_integer("unseen", unseen)
    if positive_integer("size", size) < 16:
        raise ArgumentError(f"size has to be at least 16 pixels, but is {size}.")
    n_groups, rows = counts.values()
    plan = Acquisition(n_groups, unseen, rows, **shape)
    rng = stream(seed)
    effects = plan.effects(rng, prefix)
    code, y, z = drawn_labels(rng, effects, rows, number("separation", separation, 0.0))
    clean, structure = draw(rng, z, size)
    images, field = plan.take(rng, clean, code, effects)
    return GroupImages(
        images=images,
        labels=y,
        groups=effects.index.to_numpy(dtype=str)[code],
        seen=effects["seen"].to_numpy()[code],
        effects=effects,
        bias_field=field,
        size=z,
        mask=structure > 0.5,
        clean=clean.astype(np.float32),
    )
