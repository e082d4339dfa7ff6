"""Conversion to dementia within 24 months, from a table such as ADNIMERGE.csv."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from pyro_armed.errors import DataError

__all__ = ["CONVERSION_COLUMNS", "conversion", "read_adnimerge"]

_MILD = ("EMCI", "LMCI", "MCI")
_MONTHS = 24
CONVERSION_COLUMNS = (
    "AGE", "PTGENDER", "PTEDUCAT", "APOE4", "CDRSB", "ADAS13", "MMSE", "RAVLT_immediate", "FAQ", "FDG",
    "Ventricles", "Hippocampus", "Entorhinal", "MidTemp", "ICV",
)  # fmt: skip
_GENDERS = {"Male": 1.0, "Female": 0.0}
_KEYS = ("RID", "SITE", "VISCODE", "DX_bl", "DX")


def read_adnimerge(path: str | Path) -> pd.DataFrame:
    """Read ADNIMERGE.csv, which the Alzheimer's Disease Neuroimaging Initiative gives to its users.

    Parameters
    ----------
    path : path-like
        The CSV file.

    Returns
    -------
    pandas.DataFrame
        Its rows, checked to have the columns that :func:`conversion` needs.

    Raises
    ------
    DataError
        If the file cannot be read, or columns are missing; names them.
    """
    try:
        frame = pd.read_csv(path, low_memory=False)
    except FileNotFoundError as error:
        raise DataError(f"There is no file '{path}'; check the path.") from error
    except (OSError, ValueError) as error:
        raise DataError(f"'{path}' cannot be read as a CSV file: {error}.") from error
    _check_columns(frame)
    return frame


def conversion(frame: pd.DataFrame) -> pd.DataFrame:
    """Who of the participants with mild cognitive impairment has dementia within 24 months.

    Parameters
    ----------
    frame : pandas.DataFrame
        Visits, as `read_adnimerge` or `pyro_armed.simulate.cohort` gives them: ``RID``, ``SITE``, ``VISCODE``
        ("bl", "m06", ...), ``DX_bl``, ``DX`` and the predictors in ``CONVERSION_COLUMNS``.

    Returns
    -------
    pandas.DataFrame
        One row for each participant with ``DX_bl`` of EMCI, LMCI or MCI who was diagnosed with dementia at a
        visit up to month 24 (``converted`` 1) or had another diagnosis at a visit at month 24 or later (0).
        Others, whose outcome is not known, are left out. ``SITE`` as a string, the predictors at baseline;
        ``PTGENDER`` is 1 for men.

    Raises
    ------
    DataError
        If columns or baseline visits are missing, nobody's outcome is known, a participant has no SITE, or a
        predictor has other values than ADNIMERGE.csv.

    Examples
    --------
    >>> import pyro_armed as pa
    >>> table = conversion(pa.simulate.cohort(200, 5, seed=0).frame)
    >>> sorted(table["converted"].unique().tolist()), table["RID"].is_unique
    ([0, 1], True)
    """
    _check_columns(frame)
    mild = frame[frame["DX_bl"].isin(_MILD)]
    month = mild["VISCODE"].map(_month)
    demented = mild["DX"].astype(object).map(lambda dx: isinstance(dx, str) and dx.endswith("Dementia"))
    early = mild.loc[demented & (month <= _MONTHS), "RID"].unique()
    later = mild.loc[mild["DX"].notna() & (month >= _MONTHS), "RID"].unique()
    baseline = mild[month == 0].drop_duplicates("RID")
    converted = baseline["RID"].isin(early)
    known = baseline[converted | baseline["RID"].isin(later)]
    if known.empty:
        raise DataError(
            "Nobody with a DX_bl of EMCI, LMCI or MCI has a baseline visit (VISCODE 'bl') and a DX at month "
            "24 or dementia before; the table needs the visits after baseline too."
        )
    table = known[["RID", "SITE", *CONVERSION_COLUMNS]].reset_index(drop=True)
    if lost := int(table["SITE"].isna().sum()):
        raise DataError(f"{lost} of {len(table)} participants have no SITE; fill it in or leave them out.")
    table["SITE"] = table["SITE"].map(lambda site: f"{site:g}" if isinstance(site, float) else str(site))
    _check_values(table)
    table["PTGENDER"] = table["PTGENDER"].map(_GENDERS)
    for column in CONVERSION_COLUMNS:
        table[column] = pd.to_numeric(table[column], errors="coerce")
    table.insert(2, "converted", converted[known.index].to_numpy().astype(np.int64))
    return table


def _month(code: object) -> float:
    """Months since baseline of a VISCODE; not a number for those that are no scheduled visit."""
    if code in ("bl", "sc"):
        return 0.0 if code == "bl" else np.nan
    found = re.fullmatch(r"m(\d+)", str(code))
    return float(found[1]) if found else np.nan


def _check_columns(frame: pd.DataFrame) -> None:
    missing = [name for name in (*_KEYS, *CONVERSION_COLUMNS) if name not in frame.columns]
    if missing:
        raise DataError(
            f"The table lacks the column(s) {', '.join(missing)} of ADNIMERGE.csv; add them by these names."
        )


def _check_values(table: pd.DataFrame) -> None:
    """Refuse columns that have the right name and something else in them; single odd values are missing."""
    strange = set(table["PTGENDER"].dropna()) - set(_GENDERS)
    if strange:
        raise DataError(
            f"PTGENDER has the value {min(strange, key=str)!r}; ADNIMERGE.csv has 'Male' and 'Female' there."
        )
    for column in CONVERSION_COLUMNS:
        values = table[column].dropna()
        if column != "PTGENDER" and len(values) and pd.to_numeric(values, errors="coerce").isna().all():
            raise DataError(
                f"{column} has no number, but for example {values.iloc[0]!r}; give its measurements."
            )
