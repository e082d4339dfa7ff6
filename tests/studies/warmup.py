"""The adversary's warm-up: accuracy and the probes' share on confounded spirals, by seed."""

import argparse
import warnings

import numpy as np

import pyro_armed as pa

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--units", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--weight", type=float, default=0.5)
    parser.add_argument("--warmups", type=float, nargs="+", default=[0.0, 0.1, 0.25, 0.5, 1.0])
    options = parser.parse_args()
    columns = ["x1", "x2", "probe1", "probe2"]
    for seed in range(options.first, options.first + options.seeds):
        frame = pa.simulate.confounded_spirals(10, 600, seed=seed).frame.sample(frac=1, random_state=seed)
        train, test = frame[:4800], frame[4800:]
        settings = {"none": None}
        settings |= {f"{w:g}": pa.Adversary(options.weight, warmup=w) for w in options.warmups}
        for name, adversary in settings.items():
            model = pa.ARMED(
                "y ~ x1 + x2 + probe1 + probe2 + (1 + features | group)",
                train,
                family="bernoulli",
                network=pa.networks.MLP(hidden=(options.units,) * 3),
                adversary=adversary,
            )
            fit = {"guide": "mean_field", "restarts": 1, "draws": 50, "early_stopping": False}
            model.fit(
                **fit,
                epochs=options.epochs,
                batch_size=128,
                log_likelihood=False,
                seed=seed,
                progressbar=False,
            )
            (p,) = model.predict(test, seed=0)["predictions"].data_vars.values()
            right = np.mean((p.mean(("chain", "draw")).to_numpy() > 0.5) == test["y"].to_numpy())
            share = pa.diagnostics.importance(model, test[[*columns, "group", "y"]], draws=20).share(
                ["probe1", "probe2"]
            )
            print(f"seed {seed}, warm-up {name}: accuracy {right:.3f}, probes {share.mean():.3f}", flush=True)
