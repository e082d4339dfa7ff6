"""Leakage and AUROC of ``reproduce diagnosis`` under other settings: one fit for each seed.

The leakage is the mean of eight probes on other splits, less chance: that of one split is noisy (480 rows,
half of them to train the probe).
"""

import argparse
import warnings
from dataclasses import replace

import numpy as np

from pyro_armed import diagnostics
from pyro_armed.baselines import BASELINES, score
from pyro_armed.reproduce import APPLICATIONS

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102])
    parser.add_argument("--baseline", default="ARMED")
    for name in ("independence", "weight", "adversary-learning-rate", "fixed-effects-weight"):
        parser.add_argument(f"--{name}", type=float)
    parser.add_argument("--schedule")
    parser.add_argument("--epochs", type=int)
    options = vars(parser.parse_args())

    def given(**names):
        return {key: options[name] for key, name in names.items() if options[name] is not None}

    for seed in options["seeds"]:
        task = APPLICATIONS["diagnosis"].problem(seed, False, ()).task
        own = given(independence="independence", weight="weight", learning_rate="adversary_learning_rate")
        changes = {
            "adversary": replace(task.adversary, **own),
            "fit": {**task.fit, **given(schedule="schedule", epochs="epochs")},
            **given(fixed_effects_weight="fixed_effects_weight"),
        }
        task = replace(task, **changes)
        fitted = BASELINES[options["baseline"]].fit(task, seed, False)
        scores = score(task, fitted, seed=seed).set_index(["metric", "split"])["value"]["auroc"]
        print(f"seed {seed}, AUROC:", scores.round(3).to_dict(), flush=True)
        if fitted.model is None or not fitted.model.spec.groups:
            continue
        seen = task.seen
        probes = [
            diagnostics.leakage(
                fitted.model, seen.x, seen.y, groups=seen.groups, given_response=True, seed=probe
            ).iloc[0]
            for probe in range(1000, 1008)
        ]
        excess = np.mean([one["accuracy"] - one["chance"] for one in probes])
        above = sum(one["leaks"] for one in probes)
        print(f"   probe less chance {excess:.3f}, above the limit in {above} of 8", flush=True)
