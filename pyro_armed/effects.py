"""Random effects as a user declares them for arrays; a formula's bars make the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyro_armed.errors import ArgumentError

__all__ = ["RandomEffects"]


@dataclass(frozen=True)
class RandomEffects:
    """Effects that vary between the groups of one grouping factor.

    Parameters
    ----------
    group : str
        Key of the ``groups`` argument.
    intercept : bool
        Whether each group has an intercept.
    slopes : None, "features" or sequence
        ``"features"``: a slope on each of the network's last hidden activations. A sequence names
        columns of a two-dimensional ``x`` (positions, or names given as ``columns=``).
    correlated : bool
        Whether a group's effects are correlated a priori (LKJ). Slopes on features are always independent.
    parameter : str
        The parameter whose predictor the effects enter.

    Raises
    ------
    ArgumentError
        Where there is neither an intercept nor a slope.

    Examples
    --------
    >>> RandomEffects("site", slopes="features")
    RandomEffects(group='site', intercept=True, slopes='features', correlated=False, parameter='mu')
    """

    group: str
    intercept: bool = True
    slopes: str | Sequence[int | str] | None = None
    correlated: bool = False
    parameter: str = "mu"

    def __post_init__(self) -> None:
        if isinstance(self.slopes, str) and self.slopes != "features":
            raise ArgumentError(
                f"slopes={self.slopes!r} is not known: use 'features', a list of columns such as [0, 1], "
                "or None."
            )
        if not self.intercept and not self.slopes:
            raise ArgumentError(
                f"RandomEffects({self.group!r}) has neither an intercept nor slopes; set intercept=True "
                "or slopes."
            )
