"""Sds between groups (true 1 and 0.5, noise 1) after a few passes over 100,000 rows of 10,000 groups.

python tests/studies/schedules.py --epochs 1 3 15 --schedules plateau cosine --seeds 100 101 102
"""

import argparse
import itertools
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import pyro_armed as pa


def rows_of(rows, groups, seed):
    random = np.random.default_rng(seed)
    effects = random.normal(size=(groups, 2)) * [1.0, 0.5]
    group, x = random.integers(0, groups, rows), random.normal(size=(rows, 2))
    mean = 0.5 + x @ [1.0, -0.5] + effects[group, 0] + effects[group, 1] * x[:, 0]
    return pd.DataFrame({"y": mean + random.normal(size=rows), "x1": x[:, 0], "x2": x[:, 1], "g": group})


def main(options):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for epochs, schedule, seed in itertools.product(options.epochs, options.schedules, options.seeds):
        frame = rows_of(options.rows, options.groups, seed)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.parquet"
            frame.to_parquet(path, row_group_size=max(1, options.rows // 10))
            model = pa.ARMED("y ~ x1 + x2 + (1 + x1 | g)", frame if options.memory else path)
            start = time.process_time()
            idata = model.fit(
                guide="mean_field",
                restarts=1,
                draws=40,
                epochs=epochs or None,
                batch_size=options.batch,
                schedule=schedule,
                early_stopping=not epochs,
                log_likelihood=False,
                seed=seed,
                progressbar=False,
            )
        elbo = idata["sample_stats"]["elbo"].to_numpy()[0]
        names = ("sigma", "1|g_sigma", "x1|g_sigma")
        found = {name: round(float(idata["posterior"][name].mean()), 3) for name in names}
        print(
            f"epochs {epochs} {schedule} seed {seed}: {found}, {len(elbo)} steps, "
            f"ELBO {elbo[-100:].mean():.4f}, {time.process_time() - start:.0f} s of processor",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--groups", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 3, 15], help="0: early stopping")
    parser.add_argument("--schedules", nargs="+", default=["plateau", "cosine"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102])
    parser.add_argument("--memory", action="store_true", help="rows in memory")
    main(parser.parse_args())
