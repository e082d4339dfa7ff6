"""Images in a folder, with a table that says what they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyro_armed.errors import DataError, MissingDependencyError
from pyro_armed.simulate._checks import positive_integer

__all__ = ["FolderImages", "image_folder"]


@dataclass(frozen=True, eq=False)
class FolderImages:
    """Images read by :func:`image_folder`.

    Attributes
    ----------
    images : numpy.ndarray
        Grey values from 0 to 1, shape (N, size, size), 32-bit floats.
    labels : numpy.ndarray
        Shape (N,).
    groups : numpy.ndarray
        The label of each image's site or batch as a string, shape (N,).
    """

    images: NDArray[np.float32]
    labels: NDArray[Any]
    groups: NDArray[np.str_]


def image_folder(table: str | Path, folder: str | Path | None = None, *, size: int = 32) -> FolderImages:
    r"""Read images that a CSV file lists.

    Parameters
    ----------
    table : path-like
        CSV file with columns ``image`` (file name), ``label`` and ``site``; one row for each image.
    folder : path-like, optional
        Where the images are; None: beside the table.
    size : int
        Images are made grey and brought to size x size pixels.

    Returns
    -------
    FolderImages

    Raises
    ------
    DataError
        If the table lacks a column or a value, or an image cannot be read; names it.
    MissingDependencyError
        If Pillow is not installed.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as where:
    ...     Image.new("L", (40, 40), 255).save(Path(where) / "a.png")
    ...     _ = (Path(where) / "list.csv").write_text("image,label,site\na.png,1,north\n")
    ...     data = image_folder(Path(where) / "list.csv", size=16)
    >>> data.images.shape, float(data.images.mean()), data.groups.tolist()
    ((1, 16, 16), 1.0, ['north'])
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependencyError(
            "Reading images needs the package Pillow; install it with: pip install pyro_armed[examples]"
        ) from error
    positive_integer("size", size)
    try:
        rows = pd.read_csv(table, dtype={"image": str, "site": str})
    except FileNotFoundError as error:
        raise DataError(f"There is no file '{table}'; check the path.") from error
    except (OSError, ValueError) as error:
        raise DataError(f"'{table}' cannot be read as a CSV file: {error}.") from error
    missing = [name for name in ("image", "label", "site") if name not in rows.columns]
    if missing:
        raise DataError(
            f"'{table}' lacks the column(s) {', '.join(missing)}; it needs image, label and site."
        )
    for name in ("image", "label", "site"):
        if rows[name].isna().any():
            raise DataError(
                f"'{table}' has {int(rows[name].isna().sum())} row(s) without {name}; fill them in."
            )
    if rows.empty:
        raise DataError(f"'{table}' lists no images; give one row for each.")
    where = Path(table).parent if folder is None else Path(folder)
    images = np.empty((len(rows), size, size), dtype=np.float32)
    for row, name in enumerate(rows["image"]):
        try:
            with Image.open(where / name) as picture:
                # Pictures of 16 bits would be clipped to 8 by a conversion to grey.
                deep = picture.mode.startswith(("I", "F"))
                grey = picture.convert("F" if deep else "L").resize((size, size), Image.Resampling.BILINEAR)
        except OSError as error:
            raise DataError(f"The image '{where / name}' of '{table}' cannot be read: {error}.") from error
        images[row] = np.asarray(grey, dtype=np.float32) / (65535.0 if deep else 255.0)
    return FolderImages(images, rows["label"].to_numpy(), rows["site"].to_numpy(dtype=str))
