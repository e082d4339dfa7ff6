"""Two spirals whose radius differs by group, and their Bayes-optimal classifiers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit, log_ndtr, logit, logsumexp

from pyro_armed.errors import ArgumentError, DataError, UnseenGroupError
from pyro_armed.simulate._checks import labels, number, positive_integer, stream

Floats = NDArray[np.float64]

_ANGLES = np.deg2rad(np.arange(360))
# The arm of class 0 at radius 1: from the origin to distance 1 in one turn. Shape (360, 2).
_ARM = (_ANGLES / (2 * np.pi))[:, None] * np.column_stack([np.cos(_ANGLES), np.sin(_ANGLES)])
_CHUNK = 4096


@dataclass(frozen=True, eq=False)
class Spirals:
    """Spirals and the truth behind them; made by :func:`spirals`.

    Attributes
    ----------
    frame : pandas.DataFrame
        Columns ``x1``, ``x2``, ``group`` (label) and ``y`` (0 or 1), shape (N, 4).
    radii : pandas.Series
        The radius of each group, indexed by label, shape (C,).
    radius_mean, radius_sd, noise : float
        The population of radii and the noise of the coordinates.
    rows_per_group : int
        Rows simulated per group.
    first_group : int
        Number of the first group, above 0 for groups made by :meth:`new_groups`.
    """

    frame: pd.DataFrame
    radii: pd.Series
    radius_mean: float
    radius_sd: float
    noise: float
    rows_per_group: int
    first_group: int

    def bayes_probability(self, frame: pd.DataFrame | None = None, *, known_radius: bool = True) -> Floats:
        """Return the exact probability of class 1 given a row.

        The 360 angles are summed over. With ``known_radius=False`` the radius is integrated out in closed
        form for each angle: this is the best that can be done for one single row of a new group. (Several
        rows of the same new group tell more about its radius than each one alone; that is not used.)

        Parameters
        ----------
        frame : pandas.DataFrame, optional
            Rows to classify; the simulated rows when omitted. A known radius needs the column ``group``.
        known_radius : bool
            Whether the classifier knows the radius of each group or only their distribution.

        Returns
        -------
        numpy.ndarray
            Shape (N,).

        Raises
        ------
        DataError
            If a needed column is missing.
        UnseenGroupError
            If the radius of a group is not known.

        Examples
        --------
        >>> data = spirals(n_groups=3, rows_per_group=5, seed=0)
        >>> data.bayes_probability(known_radius=False).shape
        (15,)
        """
        frame = self.frame if frame is None else frame
        self._require(frame, ["x1", "x2"])
        x = frame[["x1", "x2"]].to_numpy(dtype=float)
        radius = self._truth_of(frame, self.radii, "radius") if known_radius else None
        odds = np.empty(len(x))
        for start in range(0, len(x), _CHUNK):
            rows = slice(start, start + _CHUNK)
            if radius is not None:
                odds[rows] = _log_odds_known(x[rows], radius[rows], self.noise)
            else:
                odds[rows] = _log_odds_unknown(x[rows], self.radius_mean, self.radius_sd, self.noise)
        return np.asarray(expit(odds + self._prior_log_odds(frame, known_radius)))

    def bayes_accuracy(self, frame: pd.DataFrame | None = None, *, known_radius: bool = True) -> float:
        """Return the share of rows that the Bayes-optimal classifier gets right: the limit for any model.

        Parameters
        ----------
        frame : pandas.DataFrame, optional
            Rows with the column ``y``; the simulated rows when omitted.
        known_radius : bool
            See :meth:`bayes_probability`.

        Raises
        ------
        DataError
            If a needed column is missing.
        UnseenGroupError
            If the radius of a group is not known.

        Examples
        --------
        >>> data = spirals(n_groups=3, rows_per_group=500, seed=0)
        >>> 0.8 < data.bayes_accuracy() <= 1
        True
        """
        frame = self.frame if frame is None else frame
        self._require(frame, ["y"])
        predicted = self.bayes_probability(frame, known_radius=known_radius) > 0.5
        return float(np.mean(predicted == (frame["y"].to_numpy() == 1)))

    def new_groups(self, n_groups: int, *, rows_per_group: int | None = None, seed: int = 0) -> Spirals:
        """Simulate further groups of the same population; their labels go on where these end.

        Parameters
        ----------
        n_groups : int
            How many.
        rows_per_group : int, optional
            As many as before when omitted.
        seed : int
            The seed of the first groups may be used again: it gives other groups here.

        Raises
        ------
        ArgumentError
            If a count or the seed is not usable.

        Examples
        --------
        >>> data = spirals(n_groups=2, rows_per_group=5, seed=0)
        >>> list(data.new_groups(2, seed=0).radii.index)
        ['g02', 'g03']
        """
        return _spirals(
            n_groups,
            self.rows_per_group if rows_per_group is None else rows_per_group,
            (self.radius_mean, self.radius_sd, self.noise),
            seed,
            self.first_group + len(self.radii),
        )

    def _prior_log_odds(self, frame: pd.DataFrame, known: bool) -> Floats:
        """Return the log odds of class 1 before the coordinates are seen, shape (N,)."""
        return np.zeros(len(frame))

    def _truth_of(self, frame: pd.DataFrame, truth: pd.Series, what: str) -> Floats:
        """Look up each row's value of a group-level truth."""
        self._require(frame, ["group"])
        place = truth.index.get_indexer(frame["group"].to_numpy())
        if (place < 0).any():
            unknown = frame["group"].to_numpy()[place < 0][0]
            raise UnseenGroupError(
                f"The {what} of group {unknown!r} is not known here; pass known_radius=False, or ask the "
                "object that simulated the group."
            )
        return truth.to_numpy(dtype=float)[place]

    @staticmethod
    def _require(frame: pd.DataFrame, columns: list[str]) -> None:
        missing = [name for name in columns if name not in frame.columns]
        if missing:
            raise DataError(f"frame has no column {missing[0]!r}; give one with columns x1, x2, group and y.")


@dataclass(frozen=True, eq=False)
class ConfoundedSpirals(Spirals):
    """Spirals whose class ratio differs by group, with probes of it; made by :func:`confounded_spirals`.

    As :class:`Spirals`; the frame has further columns ``probe1``, ``probe2``. A classifier that knows the
    radius knows the class ratio of the group too; one that does not learns of the ratio from the row's
    probes.

    Attributes
    ----------
    class_ratio : pandas.Series
        The probability of class 1 in each group, indexed by label, shape (C,).
    ratio_mean, ratio_sd, probe_sd : float
        The population of ratios before clipping, and the noise of the probes.
    clip : tuple of float
        Where the ratios are clipped.
    """

    class_ratio: pd.Series
    ratio_mean: float
    ratio_sd: float
    probe_sd: float
    clip: tuple[float, float]

    def new_groups(
        self, n_groups: int, *, rows_per_group: int | None = None, seed: int = 0
    ) -> ConfoundedSpirals:
        """Simulate further groups of the same population; see :meth:`Spirals.new_groups`."""
        return _confound(
            super().new_groups(n_groups, rows_per_group=rows_per_group, seed=seed),
            (self.ratio_mean, self.ratio_sd, self.probe_sd, self.clip),
            seed,
        )

    def _prior_log_odds(self, frame: pd.DataFrame, known: bool) -> Floats:
        if known:
            return np.asarray(logit(self._truth_of(frame, self.class_ratio, "class ratio")))
        self._require(frame, ["probe1", "probe2"])
        ratio, log_weight = _clipped_normal(self.ratio_mean, self.ratio_sd, self.clip)
        probes = frame[["probe1", "probe2"]].to_numpy(dtype=float)
        distance = ((probes[:, :, None] - ratio) ** 2).sum(1)
        log_post = log_weight - 0.5 * distance / self.probe_sd**2
        log_post -= logsumexp(log_post, axis=1, keepdims=True)
        return np.asarray(logit(np.exp(log_post) @ ratio))


def spirals(
    n_groups: int = 10,
    rows_per_group: int = 1000,
    *,
    radius_mean: float = 1.0,
    radius_sd: float = 0.3,
    noise: float = 0.1,
    seed: int = 0,
) -> Spirals:
    """Simulate two interleaved spirals whose radius differs by group.

    Class 0 lies at ``radius * angle / 360 * (cos(angle), sin(angle))`` (an Archimedean spiral of one turn),
    class 1 at the same rotated by 180 degrees; both classes are equally likely. The angle is uniform on the
    whole degrees 0, ..., 359.

    Parameters
    ----------
    n_groups, rows_per_group : int
        Number of groups and of rows in each.
    radius_mean, radius_sd : float
        The radius of a group is Normal(radius_mean, radius_sd). A radius below 0 would swap the classes, so
        it is drawn again (the default settings meet that once in 2300 groups).
    noise : float
        Standard deviation of the normal noise on both coordinates.
    seed : int
        Same seed, same data.

    Returns
    -------
    Spirals
        The data, the radii and the Bayes-optimal classifiers.

    Raises
    ------
    ArgumentError
        If a count, a standard deviation, the mean or the seed is out of range.

    Examples
    --------
    >>> data = spirals(n_groups=3, rows_per_group=5, seed=0)
    >>> list(data.frame.columns), len(data.frame), len(data.radii)
    (['x1', 'x2', 'group', 'y'], 15, 3)
    """
    return _spirals(n_groups, rows_per_group, (radius_mean, radius_sd, noise), seed, 0)


def confounded_spirals(
    n_groups: int = 10,
    rows_per_group: int = 1000,
    *,
    ratio_mean: float = 0.5,
    ratio_sd: float = 0.2,
    probe_sd: float = 0.2,
    clip: tuple[float, float] = (0.1, 0.9),
    radius_mean: float = 1.0,
    radius_sd: float = 0.3,
    noise: float = 0.1,
    seed: int = 0,
) -> ConfoundedSpirals:
    """Simulate spirals with two probe features that tell only of the group's class ratio.

    The class ratio of a group, its probability of class 1, is Normal(ratio_mean, ratio_sd) clipped to
    ``clip``. Each row's two probes are Normal(class ratio, probe_sd): they are associated with the class
    across groups and independent of it within each.

    Parameters
    ----------
    n_groups, rows_per_group, radius_mean, radius_sd, noise, seed
        See :func:`spirals`.
    ratio_mean, ratio_sd, probe_sd : float
        The population of class ratios and the noise of the probes.
    clip : tuple of float
        Smallest and largest class ratio, within (0, 1).

    Returns
    -------
    ConfoundedSpirals
        The data, the radii, the class ratios and the Bayes-optimal classifiers.

    Raises
    ------
    ArgumentError
        If an argument is out of range.

    Examples
    --------
    >>> data = confounded_spirals(n_groups=3, rows_per_group=5, seed=0)
    >>> list(data.frame.columns)
    ['x1', 'x2', 'probe1', 'probe2', 'group', 'y']
    """
    low, high = (number("clip", c) for c in clip)
    if not 0 < low < high < 1:
        raise ArgumentError(f"clip has to be two increasing numbers within (0, 1), but is {clip!r}.")
    settings = (
        number("ratio_mean", ratio_mean),
        number("ratio_sd", ratio_sd, 0.0),
        number("probe_sd", probe_sd, 0.0, strict=True),
        (low, high),
    )
    base = _spirals(n_groups, rows_per_group, (radius_mean, radius_sd, noise), seed, 0)
    return _confound(base, settings, seed)


def _spirals(
    n_groups: int, rows_per_group: int, settings: tuple[float, float, float], seed: int, first: int
) -> Spirals:
    n_groups = positive_integer("n_groups", n_groups)
    rows_per_group = positive_integer("rows_per_group", rows_per_group)
    mean = number("radius_mean", settings[0], 0.0, strict=True)
    sd = number("radius_sd", settings[1], 0.0)
    noise = number("noise", settings[2], 0.0, strict=True)
    rng = stream(seed, first)
    radius = rng.normal(mean, sd, n_groups)
    while (radius <= 0).any():  # the mean is above 0, so at least every other draw is kept
        radius = np.where(radius > 0, radius, rng.normal(mean, sd, n_groups))
    names = labels("g", n_groups, first)
    code = np.repeat(np.arange(n_groups), rows_per_group)
    y = rng.integers(0, 2, code.size)
    x = _coordinates(rng, radius[code], y, noise)
    frame = pd.DataFrame({"x1": x[:, 0], "x2": x[:, 1], "group": names[code], "y": y})
    radii = pd.Series(radius, index=pd.Index(names, name="group"), name="radius")
    return Spirals(frame, radii, mean, sd, noise, rows_per_group, first)


def _coordinates(rng: np.random.Generator, radius: Floats, y: NDArray[np.int64], noise: float) -> Floats:
    arm = _ARM[rng.integers(0, 360, y.size)]
    return (radius * (1 - 2 * y))[:, None] * arm + rng.normal(0.0, noise, (y.size, 2))


def _confound(
    base: Spirals, settings: tuple[float, float, float, tuple[float, float]], seed: int
) -> ConfoundedSpirals:
    mean, sd, probe_sd, clip = settings
    # Its own stream: another last entry than any number of a first group.
    rng = np.random.default_rng([int(seed), base.first_group, 1])
    ratio = np.clip(rng.normal(mean, sd, len(base.radii)), *clip)
    row_ratio = np.repeat(ratio, base.rows_per_group)
    y = (rng.random(row_ratio.size) < row_ratio).astype(np.int64)
    radius = np.repeat(base.radii.to_numpy(), base.rows_per_group)
    x = _coordinates(rng, radius, y, base.noise)
    probes = row_ratio[:, None] + rng.normal(0.0, probe_sd, (row_ratio.size, 2))
    columns = {"x1": x[:, 0], "x2": x[:, 1], "probe1": probes[:, 0], "probe2": probes[:, 1]}
    frame = pd.DataFrame({**columns, "group": base.frame["group"].to_numpy(), "y": y})
    return ConfoundedSpirals(
        frame,
        base.radii,
        base.radius_mean,
        base.radius_sd,
        base.noise,
        base.rows_per_group,
        base.first_group,
        pd.Series(ratio, index=base.radii.index, name="class_ratio"),
        *settings,
    )


def _log_odds_known(x: Floats, radius: Floats, noise: float) -> Floats:
    """Return log p(x | class 1, radius) - log p(x | class 0, radius), shape (N,)."""
    cross = radius[:, None] * (x @ _ARM.T)
    square = 0.5 * radius[:, None] ** 2 * (_ARM**2).sum(1)
    one = logsumexp((-cross - square) / noise**2, axis=1)
    zero = logsumexp((cross - square) / noise**2, axis=1)
    return np.asarray(one - zero)


def _log_odds_unknown(x: Floats, mean: float, sd: float, noise: float) -> Floats:
    """Return the log odds with the radius integrated out, shape (N,).

    Given the angle, the coordinates are linear in the radius: its posterior is normal, cut off at 0.
    """
    if sd == 0:
        return _log_odds_known(x, np.full(len(x), mean), noise)
    precision = 1 / sd**2 + (_ARM**2).sum(1) / noise**2
    cross = x @ _ARM.T / noise**2

    def log_density(sign: float) -> Floats:
        centre = (mean / sd**2 + sign * cross) / precision
        terms = 0.5 * precision * centre**2 + log_ndtr(centre * np.sqrt(precision)) - 0.5 * np.log(precision)
        return np.asarray(logsumexp(terms, axis=1))

    return log_density(-1.0) - log_density(1.0)


def _clipped_normal(mean: float, sd: float, clip: tuple[float, float]) -> tuple[Floats, Floats]:
    """Return nodes and log weights of a clipped normal: Gauss-Legendre inside, an atom at either end."""
    low, high = clip
    if sd == 0:
        return np.clip(np.array([mean]), low, high), np.zeros(1)
    node, weight = np.polynomial.legendre.leggauss(100)
    inside = low + (high - low) * (node + 1) / 2
    density = -0.5 * ((inside - mean) / sd) ** 2 - np.log(sd * np.sqrt(2 * np.pi))
    log_inside = density + np.log(weight * (high - low) / 2)
    atoms = log_ndtr(np.array([(low - mean) / sd, (mean - high) / sd]))
    return np.append(inside, [low, high]), np.append(log_inside, atoms)
