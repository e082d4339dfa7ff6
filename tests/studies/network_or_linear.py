"""Held-out rows: the same formula with a linear predictor and with an MLP of 16 and 16 units."""

import argparse
import warnings

import pyro_armed as pa

FITS = {
    "sleepstudy": ("Reaction ~ Days + (1 + Days | Subject)", "gaussian"),
    "cbpp": ("p(incidence, size) ~ period + (1 | herd)", "binomial"),
    "contraception": ("use ~ age + urban + livch + (1 + urban | district)", "bernoulli"),
    "hsb82": ("mAch ~ meanses + cses + sector + (1 + cses | school)", "gaussian"),
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--restarts", type=int, default=1)
    options = parser.parse_args()
    for name, (formula, family) in FITS.items():
        frame = pa.datasets.load(name)
        for seed in range(options.seeds):
            scores = {}
            for label, network in (("linear", None), ("mlp", pa.networks.MLP(hidden=(16, 16)))):
                model = pa.ARMED(formula, frame, family=family, network=network)
                fit = {"restarts": options.restarts, "draws": 300, "progressbar": False}
                rows = pa.cross_predict(model, frame, by="row", folds=3, seed=seed, **fit)
                scores[label] = rows["nlpd"]
            gap = (scores["mlp"] - scores["linear"]).dropna()
            linear, mlp = scores["linear"].mean(), scores["mlp"].mean()
            print(
                f"{name} seed {seed}: nlpd linear {linear:.4f}, mlp {mlp:.4f}, "
                f"difference {gap.mean():+.4f} (se {gap.std() / len(gap) ** 0.5:.4f})",
                flush=True,
            )
