"""Spirals: trained on 20 groups, tested on 10 new ones, beside the Bayes classifiers on the same rows."""

import argparse
import warnings

import numpy as np

import pyro_armed as pa

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    for seed in range(options.seeds):
        data = pa.simulate.spirals(20, 1000, seed=seed)
        new = data.new_groups(10, rows_per_group=1000, seed=seed)
        model = pa.ARMED(
            "y ~ x1 + x2 + (1 + features | group)",
            data.frame,
            family="bernoulli",
            network=pa.networks.MLP(hidden=(16, 16, 16)),
        )
        model.fit(
            guide="mean_field", restarts=2, draws=200, log_likelihood=False, seed=seed, progressbar=False
        )
        rows = new.frame.sample(frac=1, random_state=seed)
        number = rows.groupby("group").cumcount()
        test = rows[number >= 50]
        limit, limit_unknown = new.bayes_accuracy(test), new.bayes_accuracy(test, known_radius=False)

        def accuracy(model=model, test=test, seed=seed, **how):
            predicted = model.predict(test, draws=60, seed=seed, **how)["predictions"]["y"]
            return np.mean((predicted.mean(("chain", "draw")).to_numpy() > 0.5) == test["y"].to_numpy())

        print(
            f"seed {seed}: marginal {accuracy(new_groups='marginal') / limit_unknown:.3f} of its limit",
            end="",
        )
        for count in (5, 10, 50):
            share = accuracy(new_groups="adapt", support=rows[number < count]) / limit
            print(f", adapt {count} {share:.3f}", end="")
        print(flush=True)
