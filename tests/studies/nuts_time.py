"""Processor time of the structured guide, one restart, over NUTS, one chain, on Contraception."""

import argparse
import time
import warnings

import numpy as np

import pyro_armed as pa


def timed(model, **options):
    start = time.process_time()
    idata = model.fit(restarts=1, log_likelihood=False, progressbar=False, **options)
    return time.process_time() - start, idata.posterior


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    formula = "use ~ age + urban + livch + (1 + urban | district)"
    model = pa.ARMED(formula, pa.datasets.load("contraception"), family="bernoulli")
    timed(model, draws=50)  # imports and caches
    ratios = []
    for seed in range(options.seeds):
        ours, _ = timed(model, seed=seed)
        theirs, _ = timed(model, inference="nuts", warmup=500, draws=500, seed=seed)
        ratios.append(ours / theirs)
        print(
            f"seed {seed}: structured {ours:.1f} s, NUTS {theirs:.1f} s, ratio {ratios[-1]:.3f}", flush=True
        )
    print(f"median ratio {np.median(ratios):.3f}")
