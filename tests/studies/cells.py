"""Leakage and effects of ``reproduce cells`` under other settings: one fit of ARMED for each seed.

The leakage is a mean over several splits and probes, since that of one split is noisy (400 rows, half of
them to train the probe).
"""

import argparse
import warnings
from dataclasses import replace

import numpy as np

from pyro_armed import diagnostics
from pyro_armed.baselines import BASELINES, score
from pyro_armed.reproduce import APPLICATIONS
from pyro_armed.reproduce._sites import measures

SHOWN = ("leakage", "leakage, limit", "r(logit)", "r(gain)", "r(gain, parameter)", "r(offset)")

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102])
    parser.add_argument("--baseline", default="ARMED")
    parser.add_argument("--independence", type=float)
    parser.add_argument("--reconstruction", type=float)
    parser.add_argument("--fixed-effects-weight", type=float)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--schedule")
    options = parser.parse_args()
    for seed in options.seeds:
        problem = APPLICATIONS["cells"].problem(seed, False, ())
        task, changes = problem.task, {}
        if options.independence is not None:
            changes["adversary"] = replace(task.adversary, independence=options.independence)
        if options.reconstruction is not None:
            changes["reconstruction"] = replace(task.reconstruction, weight=options.reconstruction)
        if options.fixed_effects_weight is not None:
            changes["fixed_effects_weight"] = options.fixed_effects_weight
        given = {name: getattr(options, name) for name in ("epochs", "learning_rate", "schedule")}
        changes["fit"] = {**task.fit, **{name: value for name, value in given.items() if value is not None}}
        task = replace(task, **changes)
        fitted = BASELINES[options.baseline].fit(task, seed, False)
        scores = score(task, fitted, seed=seed).set_index(["metric", "split"])["value"]["auroc"]
        print(f"seed {seed}, AUROC:", scores.round(3).to_dict(), flush=True)
        rows = measures(replace(problem, task=task), options.baseline, fitted, seed)
        print(
            "  ", rows[rows["metric"].isin(SHOWN)].set_index("metric")["value"].round(3).to_dict(), flush=True
        )
        if fitted.model.spec.groups:
            seen = task.seen
            probes = [
                diagnostics.leakage(
                    fitted.model, seen.x, seen.y, groups=seen.groups, given_response=True, seed=probe
                ).iloc[0]
                for probe in range(7, 11)
            ]
            means = [np.mean([probe[name] for probe in probes]) for name in ("accuracy", "high")]
            print("   mean of four other probes {:.3f}, of their limits {:.3f}".format(*means), flush=True)
