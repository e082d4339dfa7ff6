"""The models that ``nuts.py`` samples: data, columns and grouping factors by name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from frames import FRAMES, codes
from nuts_models import Group, Spec


def _group(frame: pd.DataFrame, name: str, *slopes: str, **options: bool) -> Group:
    index, labels = codes(frame[name])
    columns = frame[list(slopes)].to_numpy(float) if slopes else None
    return Group(name, index, labels, ["1", *(slope.split("[")[0] for slope in slopes)], columns, **options)


def _spec(
    formula: str, data: str, family: str, y: str, names: list[str], groups: list[tuple], **options: object
) -> Callable[[], Spec]:
    def make() -> Spec:
        frame = FRAMES[data]()
        x = frame[names].to_numpy(float).reshape(len(frame), len(names))
        extra = dict(options)
        if family in ("categorical", "ordinal"):
            values, levels = codes(frame[y])
            extra["levels"] = levels if family == "categorical" else None
        else:
            values = frame[y].to_numpy(float)
        if "trials" in extra:
            extra["trials"] = frame[extra["trials"]].to_numpy(float)
        built = [
            _group(
                frame,
                *[part for part in g if isinstance(part, str)],
                **next((part for part in g if isinstance(part, dict)), {}),
            )
            for g in groups
        ]
        return Spec(formula, data, family, np.asarray(values), x, names, built, **extra)

    return make


LIVCH = ["livch[1]", "livch[2]", "livch[3+]"]
CONTRACEPTION = ["age", "urban[Y]", *LIVCH]
PRICES = ["price_dannon", "price_hiland", "price_weight", "price_yoplait"]
APART = {"correlated": False}

SPECS: dict[str, Callable[[], Spec]] = {
    "contraception_intercept": _spec(
        "use ~ age + urban + livch + (1 | district)",
        "contraception",
        "bernoulli",
        "use",
        CONTRACEPTION,
        [("district",)],
    ),
    "contraception_slope": _spec(
        "use ~ age + urban + livch + (1 + urban | district)",
        "contraception",
        "bernoulli",
        "use",
        CONTRACEPTION,
        [("district", "urban[Y]")],
    ),
    "contraception_slope_uncorrelated": _spec(
        "use ~ age + urban + livch + (1 + urban || district)",
        "contraception",
        "bernoulli",
        "use",
        CONTRACEPTION,
        [("district", "urban[Y]", APART)],
    ),
    "sleepstudy": _spec(
        "Reaction ~ Days + (1 + Days | Subject)",
        "sleepstudy",
        "gaussian",
        "Reaction",
        ["Days"],
        [("Subject", "Days")],
    ),
    "sleepstudy_uncorrelated": _spec(
        "Reaction ~ Days + (1 + Days || Subject)",
        "sleepstudy",
        "gaussian",
        "Reaction",
        ["Days"],
        [("Subject", "Days", APART)],
    ),
    "hsb82_intercept": _spec(
        "mAch ~ meanses + cses + sector + (1 | school)",
        "hsb82",
        "gaussian",
        "mAch",
        ["meanses", "cses", "sector[Catholic]"],
        [("school",)],
    ),
    "hsb82": _spec(
        "mAch ~ meanses + cses + sector + (1 + cses | school)",
        "hsb82",
        "gaussian",
        "mAch",
        ["meanses", "cses", "sector[Catholic]"],
        [("school", "cses")],
    ),
    "cbpp": _spec(
        "p(incidence, size) ~ period + (1 | herd)",
        "cbpp",
        "binomial",
        "incidence",
        ["period[2]", "period[3]", "period[4]"],
        [("herd",)],
        trials="size",
    ),
    "penicillin": _spec(
        "diameter ~ 1 + (1 | plate) + (1 | sample)",
        "penicillin",
        "gaussian",
        "diameter",
        [],
        [("plate",), ("sample",)],
    ),
    "pastes": _spec(
        "strength ~ 1 + (1 | batch / cask)",
        "pastes",
        "gaussian",
        "strength",
        [],
        [("batch",), ("batch:cask",)],
    ),
    "grouseticks": _spec(
        "TICKS ~ YEAR + scale(cHEIGHT) + (1 | BROOD) + (1 | INDEX) + (1 | LOCATION)",
        "grouseticks",
        "poisson",
        "TICKS",
        ["YEAR[96]", "YEAR[97]", "scale(cHEIGHT)"],
        [("BROOD",), ("INDEX",), ("LOCATION",)],
    ),
    "guimmun": _spec(
        "immun ~ kid2p + mom25p + ord + (1 | comm) + (1 | mom)",
        "guimmun",
        "bernoulli",
        "immun",
        ["kid2p[Y]", "mom25p[Y]", "ord[23]", "ord[46]", "ord[7p]"],
        [("comm",), ("mom",)],
    ),
    "insteval_lecturers": _spec("y ~ service + (1 | d)", "insteval", "gaussian", "y", ["service"], [("d",)]),
    "wine": _spec(
        "rating ~ temp + contact + (1 | judge)",
        "wine",
        "ordinal",
        "rating",
        ["temp[warm]", "contact[yes]"],
        [("judge",)],
        note="the thresholds' prior holds at the mean of the columns; reported at x = 0",
    ),
    "wine_uncentred": _spec(
        "rating ~ temp + contact + (1 | judge)",
        "wine",
        "ordinal",
        "rating",
        ["temp[warm]", "contact[yes]"],
        [("judge",)],
        centre=False,
        note="for comparison: the thresholds' prior holds at x = 0",
    ),
    "yogurt": _spec(
        "choice ~ price_dannon + price_hiland + price_weight + price_yoplait + (1 | id)",
        "yogurt",
        "categorical",
        "choice",
        PRICES,
        [("id",)],
        note="logits against the first level, dannon; each other level has its own effects and their own sd",
    ),
}
