"""A simulated cohort with the schema of ADNIMERGE.csv."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from pyro_armed.errors import ArgumentError
from pyro_armed.simulate._checks import number, positive_integer, stream

Floats = NDArray[np.float64]


class _Measure(NamedTuple):
    """Mean and sd, loading on severity in sds, share missing, range, and whether it is of an image."""

    mean: float
    sd: float
    loading: float
    missing: float
    low: float
    high: float
    image: bool = False


MEASURES = {
    "CDRSB": _Measure(1.8, 1.3, 0.65, 0.01, 0.0, 18.0),
    "ADAS13": _Measure(17.0, 6.5, 0.75, 0.02, 0.0, 85.0),
    "MMSE": _Measure(27.0, 2.0, -0.60, 0.01, 0.0, 30.0),
    "RAVLT_immediate": _Measure(34.0, 10.0, -0.60, 0.02, 0.0, 75.0),
    "FAQ": _Measure(3.5, 3.8, 0.60, 0.02, 0.0, 30.0),
    "FDG": _Measure(1.22, 0.14, -0.55, 0.35, 0.5, 2.0, True),
    "Ventricles": _Measure(41000.0, 20000.0, 0.30, 0.08, 5000.0, 160000.0, True),
    "Hippocampus": _Measure(6800.0, 1050.0, -0.60, 0.15, 2500.0, 11500.0, True),
    "Entorhinal": _Measure(3500.0, 730.0, -0.55, 0.17, 1000.0, 6800.0, True),
    "MidTemp": _Measure(19700.0, 2900.0, -0.45, 0.17, 9000.0, 32000.0, True),
    "ICV": _Measure(1540000.0, 165000.0, 0.0, 0.06, 1000000.0, 2100000.0, True),
}
_VISITS = {"bl": 0, "m06": 6, "m12": 12, "m18": 18, "m24": 24, "m36": 36}
# Shares of the diagnoses at baseline and the severity at which they stand.
_DIAGNOSES = {
    "CN": (0.26, -1.6),
    "SMC": (0.06, -1.4),
    "EMCI": (0.19, -0.4),
    "LMCI": (0.31, 0.35),
    "AD": (0.18, 2.0),
}
_DRIFT = 0.25  # change of severity a year, of those who convert three times as much


@dataclass(frozen=True, eq=False)
class Cohort:
    """A simulated cohort; made by :func:`cohort`.

    Attributes
    ----------
    frame : pandas.DataFrame
        One row for each visit, with columns of ADNIMERGE.csv.
    sites : pandas.DataFrame
        True effects, indexed by site: ``logit`` on the log odds of conversion, and for each measurement the
        offset in its sds.
    severity : pandas.Series
        Severity at baseline, indexed by ``RID``.
    """

    frame: pd.DataFrame
    sites: pd.DataFrame
    severity: pd.Series


def cohort(
    n_subjects: int = 1700,
    n_sites: int = 60,
    *,
    logit_sd: float = 1.2,
    strength: float = 0.6,
    confounding: float = 0.5,
    severity_slope: float = 1.2,
    seed: int = 0,
) -> Cohort:
    """Simulate a cohort of dementia's prognosis in the format of ADNIMERGE.csv. No real person is in it.

    Parameters
    ----------
    n_subjects, n_sites : int
        Participants, about half of whom have mild cognitive impairment, and sites of very unequal sizes.
    logit_sd : float
        sd between sites of the log odds of conversion within 24 months.
    strength : float
        sd between sites of a measurement's offset, in the sd of the measurement.
    confounding : float
        Correlation of the sites' log odds with the offset of the images' measurements.
    severity_slope : float
        Log odds of conversion for one sd of severity.
    seed : int
        Same seed, same data.

    Returns
    -------
    Cohort
        Visits, sites' effects and severities.

    Raises
    ------
    ArgumentError
        If an argument is out of range.

    Notes
    -----
    Columns and their names, coding and usual values are those of ADNIMERGE.csv, the table of the Alzheimer's
    Disease Neuroimaging Initiative, of which this holds a part; the shares of missing values are about its
    own. Nothing else is taken from it.

    Examples
    --------
    >>> data = cohort(60, 5, seed=0)
    >>> list(data.frame.columns)[:6], data.frame["RID"].nunique()
    (['RID', 'SITE', 'VISCODE', 'DX_bl', 'DX', 'AGE'], 60)
    """
    positive_integer("n_subjects", n_subjects)
    positive_integer("n_sites", n_sites)
    if not -1.0 <= number("confounding", confounding) <= 1.0:
        raise ArgumentError(f"confounding has to be in [-1, 1], but is {confounding!r}.")
    spread, shift = number("logit_sd", logit_sd, 0.0), number("strength", strength, 0.0)
    rng = stream(seed)
    sites = _sites(rng, n_sites, spread, shift, confounding)
    subjects = _subjects(rng, n_subjects, sites, number("severity_slope", severity_slope))
    return Cohort(
        frame=_visits(rng, subjects, sites),
        sites=sites,
        severity=pd.Series(subjects["severity"].to_numpy(), index=subjects["RID"], name="severity"),
    )


def _sites(
    rng: np.random.Generator, count: int, logit_sd: float, strength: float, confounding: float
) -> pd.DataFrame:
    """Effects by site, labelled as ADNI numbers its sites."""
    common, own = rng.standard_normal((2, count))
    frame = pd.DataFrame({"logit": logit_sd * (confounding * common + np.sqrt(1 - confounding**2) * own)})
    for name, measure in MEASURES.items():
        offset = rng.standard_normal(count)
        if measure.image:
            offset = (common + offset) / np.sqrt(2)
        frame[name] = strength * offset
    frame.index = pd.Index(
        np.sort(rng.choice(np.arange(2, 200), count, replace=False))
        if count < 198
        else np.arange(2, count + 2),
        name="SITE",
    )
    return frame


def _subjects(rng: np.random.Generator, count: int, sites: pd.DataFrame, slope: float) -> pd.DataFrame:
    """One row for each participant."""
    share = rng.gamma(1.5, size=len(sites))
    place = rng.choice(len(sites), count, p=share / share.sum())
    names, shares, centres = zip(*((name, *values) for name, values in _DIAGNOSES.items()), strict=True)
    kind = rng.choice(len(names), count, p=np.array(shares) / sum(shares))
    diagnosis = np.array(names)[kind]
    severity = np.array(centres)[kind] + 0.9 * rng.standard_normal(count)
    risk = expit(-1.1 + slope * severity + sites["logit"].to_numpy()[place])
    mild = np.isin(diagnosis, ["EMCI", "LMCI"])
    converts = (rng.random(count) < risk) & mild
    return pd.DataFrame(
        {
            "RID": np.sort(rng.choice(np.arange(2, 10 * count), count, replace=False)),
            "place": place,
            "DX_bl": diagnosis,
            "severity": severity,
            "AGE": np.clip(73 + 7 * rng.standard_normal(count) + severity, 55, 91).round(1),
            "PTGENDER": np.where(rng.random(count) < 0.55, "Male", "Female"),
            "PTEDUCAT": np.clip(16 + 2.8 * rng.standard_normal(count), 6, 20).round(),
            "APOE4": np.where(
                rng.random(count) < 0.02, np.nan, rng.binomial(2, expit(-1.1 + 0.45 * severity))
            ),
            # The visit at which those who convert are first diagnosed.
            "onset": np.where(converts, rng.choice([6, 12, 18, 24], count, p=[0.15, 0.35, 0.2, 0.3]), 999),
            "last": rng.choice([6, 12, 18, 24, 36], count, p=[0.04, 0.05, 0.03, 0.18, 0.70]),
        }
    )


def _visits(rng: np.random.Generator, subjects: pd.DataFrame, sites: pd.DataFrame) -> pd.DataFrame:
    """One row for each visit that took place, by participant and month."""
    parts = []
    for code, month in _VISITS.items():
        here = subjects[(subjects["last"] >= month) | (subjects["onset"] == month)]
        if month == 18:
            here = here[here["DX_bl"].isin(["EMCI", "LMCI"])]
        stage = here["DX_bl"].map({"CN": "CN", "SMC": "CN", "EMCI": "MCI", "LMCI": "MCI", "AD": "Dementia"})
        converted = here["onset"] <= month
        dx = stage.where(~converted, "Dementia")
        if month:
            dx = dx.where(converted | (rng.random(len(here)) >= 0.03))
        visit = pd.DataFrame(
            {
                "RID": here["RID"],
                "SITE": sites.index.to_numpy()[here["place"]],
                "VISCODE": code,
                "DX_bl": here["DX_bl"],
                "DX": dx,
                **{name: here[name] for name in ("AGE", "PTGENDER", "PTEDUCAT", "APOE4")},
            }
        )
        pace = np.where(here["onset"] < 999, 3 * _DRIFT, _DRIFT)
        now = here["severity"].to_numpy() + month / 12 * pace
        at_site = sites.iloc[here["place"]]
        for name, measure in MEASURES.items():
            values = _measured(rng, measure, now, at_site[name].to_numpy(), month)
            visit[name] = values
        parts.append(visit.assign(Month=month))
    frame = pd.concat(parts, ignore_index=True)
    return frame.sort_values(["RID", "Month"], kind="stable", ignore_index=True)


def _measured(
    rng: np.random.Generator, measure: _Measure, severity: Floats, offset: Floats, month: int
) -> Floats:
    """One measurement at one visit, missing where it was not taken."""
    noise = np.sqrt(max(0.0, 1 - measure.loading**2)) * rng.standard_normal(len(severity))
    values = measure.mean + measure.sd * (measure.loading * severity + offset + noise)
    values = np.clip(values, measure.low, measure.high)
    digits = 2 if measure.high < 5 else 0
    missing = measure.missing + (0.4 if measure.image and month not in (0, 12, 24) else 0.0)
    return np.where(rng.random(len(values)) < missing, np.nan, values.round(digits))
