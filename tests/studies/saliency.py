"""Where class activation maps lie whose truth is known: phantoms of like sites, a network without groups.

Nothing but the ventricles tells the label there. Prints the share of each method's map in the ventricles, and
in these and two pixels around them, beside the share of a uniform map.
"""

import argparse
import warnings
from dataclasses import replace

import numpy as np
from scipy.ndimage import binary_dilation

from pyro_armed import diagnostics
from pyro_armed.baselines import BASELINES, Rows
from pyro_armed.reproduce import APPLICATIONS
from pyro_armed.reproduce._sites import split, standardised
from pyro_armed.simulate import phantoms

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102])
    for seed in parser.parse_args().seeds:
        made = phantoms(12, 120, unseen=1, strength=0.0, rate_sd=0.0, confounding=0.0, seed=seed)
        train, test = split(seed, made.groups, made.seen)
        x = standardised(made.images)
        rows = [Rows(x[which], made.labels[which], {"site": made.groups[which]}) for which in (train, test)]
        task = APPLICATIONS["diagnosis"].problem(seed, False, ()).task
        fitted = BASELINES["conventional"].fit(replace(task, train=rows[0], seen=rows[1]), seed, False)
        near = made.mask[test]
        around = np.stack([binary_dilation(one, iterations=2) for one in near])
        print(f"seed {seed}, uniform: {near.mean():.3f}, {around.mean():.3f}", flush=True)
        for method in ("grad-cam", "hires-cam"):
            heat = diagnostics.saliency(fitted.model, rows[1].x, groups=rows[1].groups, method=method)
            shares = [float((heat * where).sum() / heat.sum()) for where in (near, around)]
            print(f"   {method}: {shares[0]:.3f}, {shares[1]:.3f}", flush=True)
