"""Contraception: sds of the structured guide over those of NUTS in `../reference/nuts.json`, and its time.

One restart of 2000 draws for each seed; the spread over seeds is what the draws alone make of it.
"""

import argparse
import json
import time
import warnings
from pathlib import Path

import pyro_armed as pa

NUTS = json.loads((Path(__file__).parents[1] / "reference" / "nuts.json").read_text())["fits"]

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=2000)
    options = parser.parse_args()
    for key in ("contraception_slope", "contraception_intercept"):
        fit = NUTS[key]
        model = pa.ARMED(fit["formula"], pa.datasets.load(fit["data"]), family=fit["family"])
        for seed in range(options.seeds):
            start = time.process_time()
            settings = {"restarts": 1, "draws": options.draws, "log_likelihood": False, "progressbar": False}
            posterior = model.fit(seed=seed, **settings).posterior
            used = time.process_time() - start
            ratios = {
                name: float(posterior[name].std()) / figures["sd"]
                for name, figures in fit["parameters"].items()
                if name in posterior and posterior[name].ndim == 2
            }
            shown = ", ".join(f"{name} {ratio:.3f}" for name, ratio in ratios.items())
            print(f"{key} seed {seed}: {used:.1f} s, k-hat {posterior.khat:.2f}; {shown}", flush=True)
