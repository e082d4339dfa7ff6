"""Held-out rows and groups: the same formula with a linear predictor and with an MLP of 16 and 16 units.

Differences are paired row by row; their standard error is that of independent rows where rows were left out,
and of independent groups where groups were. Positive: the network is worse.
"""

import argparse
import time
import warnings

import pandas as pd

import pyro_armed as pa

PRICES = "price_dannon + price_hiland + price_weight + price_yoplait"
FITS = {
    "sleepstudy": ("Reaction ~ Days + (1 + Days | Subject)", "gaussian", "Subject"),
    "cbpp": ("p(incidence, size) ~ period + (1 | herd)", "binomial", "herd"),
    "wine": ("rating ~ temp + contact + (1 | judge)", "ordinal", "judge"),
    "contraception": ("use ~ age + urban + livch + (1 + urban | district)", "bernoulli", "district"),
    "grouseticks": (
        "TICKS ~ YEAR + scale(cHEIGHT) + (1|BROOD) + (1|INDEX) + (1|LOCATION)",
        "poisson",
        "BROOD",
    ),
    "hsb82": ("mAch ~ meanses + cses + sector + (1 + cses | school)", "gaussian", "school"),
    "yogurt": (f"choice ~ {PRICES} + (1 | id)", "categorical", "id"),
}


def compared(name: str, by: str, seed: int, options: argparse.Namespace) -> tuple[pd.Series, pd.Series]:
    """Negative log densities of the linear predictor, and differences of independent units."""
    formula, family, group = FITS[name]
    frame = pa.datasets.load(name)
    scores = {}
    for label, network in (("linear", None), ("mlp", pa.networks.MLP(hidden=(16, 16)))):
        model = pa.ARMED(formula, frame, family=family, network=network)
        fit = {"restarts": options.restarts, "draws": options.draws, "progressbar": False}
        rows = pa.cross_predict(model, frame, by=by, group=group, folds=3, seed=seed, **fit)
        scores[label] = rows.set_index(["split", "row"])
    linear, gap = scores["linear"]["nlpd"], scores["mlp"]["nlpd"] - scores["linear"]["nlpd"]
    if by == "row":
        return linear, gap
    # Groups weigh by their rows, so that the mean is that of the rows.
    sums = gap.groupby(scores["linear"]["group"].to_numpy()).agg(["sum", "size"])
    return linear, sums["sum"] / sums["size"].mean()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", choices=FITS, default=list(FITS))
    parser.add_argument("--by", nargs="+", choices=("row", "cluster"), default=["row", "cluster"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--restarts", type=int, default=1)
    parser.add_argument("--draws", type=int, default=1000)
    options = parser.parse_args()
    for name in options.data:
        for by in options.by:
            for seed in options.seeds:
                start = time.process_time()
                linear, gap = compared(name, by, seed, options)
                print(
                    f"{name} by {by}, seed {seed}: nlpd linear {linear.mean():.4f}, the network's "
                    f"{gap.mean():+.4f} (se {gap.std() / len(gap) ** 0.5:.4f}), "
                    f"{time.process_time() - start:.0f} s",
                    flush=True,
                )
