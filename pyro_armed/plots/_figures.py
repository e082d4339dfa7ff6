"""Figures, with or without pyplot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyro_armed.errors import MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "new_figure", "pyplot_figure"]

# Okabe and Ito's blue and vermilion: told apart by the colour-blind and in grey.
COLOURS = ("#0072B2", "#D55E00")


def new_figure() -> Figure:
    """An empty figure that pyplot does not know, for programs that draw into files.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    MissingDependencyError
        If Matplotlib is not installed.

    Examples
    --------
    >>> new_figure().axes
    []
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise _no_matplotlib() from error
    return Figure()


def pyplot_figure() -> Figure:
    """An empty figure of pyplot's, which notebooks show.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    MissingDependencyError
        If Matplotlib is not installed.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise _no_matplotlib() from error
    return plt.figure()


def _no_matplotlib() -> MissingDependencyError:
    return MissingDependencyError(
        "Pictures need the package matplotlib; install it with: pip install pyro_armed[examples]"
    )
