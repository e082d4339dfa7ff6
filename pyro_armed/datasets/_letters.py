"""Letters in the fonts that Matplotlib ships."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyro_armed.errors import ArgumentError, MissingDependencyError
from pyro_armed.simulate._checks import number, positive_integer, stream

__all__ = ["FONTS", "Letters", "letters"]

FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique",
    "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic",
    "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique",
    "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta",
    "cmr10", "cmb10", "cmss10", "cmtt10",
)  # fmt: skip
# Of these the capital is the small letter, larger.
SHAPES = "cosvwxz"
_FINE = 4


@dataclass(frozen=True, eq=False)
class Letters:
    """Images of letters; made by :func:`letters`.

    Attributes
    ----------
    images : numpy.ndarray
        White on black, from 0 to 1 before the noise, shape (N, size, size), 32-bit floats.
    labels : numpy.ndarray
        1 for capitals, shape (N,).
    letters : numpy.ndarray
        The letter, shape (N,).
    groups : numpy.ndarray
        The font's name, shape (N,).
    seen : numpy.ndarray
        Whether the font is one to train with, shape (N,).
    """

    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    letters: NDArray[np.str_]
    groups: NDArray[np.str_]
    seen: NDArray[np.bool_]


def letters(
    per_font: int = 120,
    *,
    unseen: int = 7,
    size: int = 28,
    zoom: float = 0.15,
    noise: float = 0.1,
    seed: int = 0,
) -> Letters:
    """Draw small letters and capitals of the same shape (c C, o O, s S, ...) in 20 fonts.

    Only its size tells a capital from a small letter here, and how large small letters are is the font's own
    choice: fonts are genuine groups, with effects that nobody simulated.

    Parameters
    ----------
    per_font : int
        Images of each font, half of them capitals.
    unseen : int
        Fonts that are not to train with, drawn at random, fewer than 19.
    size : int
        Pixels of a side.
    zoom : float
        sd of the log of the size at which a letter is printed.
    noise : float
        sd of the noise of the pixels.
    seed : int
        Same seed, same data.

    Returns
    -------
    Letters

    Raises
    ------
    ArgumentError
        If an argument is out of range.
    MissingDependencyError
        If Matplotlib is not installed, or lacks the fonts.

    Examples
    --------
    >>> data = letters(4, unseen=5, seed=0)
    >>> data.images.shape, len(set(data.groups[data.seen].tolist()))
    ((80, 28, 28), 15)
    """
    positive_integer("per_font", per_font)
    if not isinstance(unseen, int) or isinstance(unseen, bool) or not 0 <= unseen < len(FONTS) - 1:
        raise ArgumentError(f"unseen has to be an integer from 0 to {len(FONTS) - 2}, but is {unseen!r}.")
    if positive_integer("size", size) < 16:
        raise ArgumentError(f"size has to be at least 16 pixels, but is {size}.")
    spread, sd = number("zoom", zoom, 0.0), number("noise", noise, 0.0)
    files = _font_files()
    rng = stream(seed)
    held = set(rng.permutation(len(FONTS))[:unseen].tolist())
    font = np.repeat(np.arange(len(FONTS)), per_font)
    y = np.tile(np.arange(per_font) % 2, len(FONTS))
    shape = rng.integers(len(SHAPES), size=font.size)
    # A letter of a capital's height fills half of the image.
    height = np.clip(0.62 * size * np.exp(spread * rng.standard_normal(font.size)), 0.2 * size, 1.1 * size)
    shift, tilt = rng.normal(0.0, 0.04 * size, (2, font.size)), rng.normal(0.0, 4.0, font.size)
    text = np.array(
        [SHAPES[s].upper() if capital else SHAPES[s] for s, capital in zip(shape, y, strict=True)]
    )
    images = np.stack(
        [
            _drawn(files[f], character, h, (dx, dy), angle, size)
            for f, character, h, dx, dy, angle in zip(font, text, height, *shift, tilt, strict=True)
        ]
    )
    images += sd * rng.standard_normal(images.shape).astype(np.float32)
    return Letters(images, y, text, np.array(FONTS)[font], np.array([f not in held for f in font]))


def _font_files() -> list[Path]:
    try:
        import matplotlib as mpl
        import PIL  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "letters() needs the package matplotlib; install it with: pip install pyro_armed[examples]"
        ) from error
    files = [Path(mpl.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf" for name in FONTS]
    for path in files:
        if not path.exists():
            raise MissingDependencyError(
                f"The installed matplotlib lacks the font {path.name}; reinstall it with: pip install "
                "--force-reinstall matplotlib"
            )
    return files


def _drawn(
    path: Path, character: str, height: float, shift: tuple[float, float], angle: float, size: int
) -> NDArray[np.float32]:
    """One letter, its middle near that of the image, (size, size)."""
    from PIL import Image, ImageDraw, ImageFont

    fine = _FINE * size
    canvas = Image.new("L", (fine, fine), 0)
    middle = (fine / 2 + _FINE * shift[0], fine / 2 + _FINE * shift[1])
    font = ImageFont.truetype(str(path), _FINE * height)
    left, top, right, bottom = font.getbbox(character)
    corner = (middle[0] - (left + right) / 2, middle[1] - (top + bottom) / 2)
    ImageDraw.Draw(canvas).text(corner, character, fill=255, font=font)
    turned = canvas.rotate(angle, Image.Resampling.BILINEAR)
    return np.asarray(turned.resize((size, size), Image.Resampling.BOX)).astype(np.float32) / np.float32(255)
