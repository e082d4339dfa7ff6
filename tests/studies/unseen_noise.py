"""How far scores on unseen sites depend on the draws of their effects: one fit, several seeds of scoring.

``reproduce diagnosis`` has data of the seeds given here, and its settings but for those on the command line.
"""

import argparse
import warnings
from dataclasses import replace

from pyro_armed.baselines import BASELINES
from pyro_armed.baselines._compare import score
from pyro_armed.reproduce import APPLICATIONS

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[103, 104, 105])
    parser.add_argument("--fixed-effects-weight", type=float, default=0.0)
    options = parser.parse_args()
    for seed in options.seeds:
        task = APPLICATIONS["diagnosis"].problem(seed, False, ()).task
        task = replace(task, fixed_effects_weight=options.fixed_effects_weight)
        fitted = BASELINES["ARMED"].fit(task, seed, False)

        def unseen(number, **changes):
            table = score(task, replace(fitted, **changes), seed=number)  # noqa: B023
            found = table[table["split"] == "unseen"].set_index("metric")["value"]
            return f"{found['auroc']:.3f} (nlpd {found['nlpd']:.3f})"

        print(f"seed {seed}, population:", unseen(0, new_groups="population"), flush=True)
        for draws in (30, 100):
            each = [unseen(number, new_groups="marginal", draws=draws) for number in range(4)]
            print(f"seed {seed}, marginal, {draws} draws:", ", ".join(each), flush=True)
