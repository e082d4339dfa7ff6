"""A million groups in memory: fit, some groups, predictions, file, posterior; time and peak memory of each.

python tests/studies/many_groups.py --rows 2_000_000 --groups 1_000_000 --draws 500
"""

import argparse
import resource
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch

import pyro_armed as pa


def said(what):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(f"{what}: {time.process_time():.0f} s, peak {peak:.2f} GB", flush=True)


def main(options):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    random, groups, rows = np.random.default_rng(0), options.groups, options.rows
    codes = np.concatenate([np.arange(groups), random.integers(0, groups, rows - groups)])
    effects, x = random.normal(size=(groups, 2)) * [1.0, 0.5], random.normal(size=(rows, 2))
    y = 0.5 + x @ [1.0, -0.5] + effects[codes, 0] + effects[codes, 1] * x[:, 0] + random.normal(size=rows)
    said("data")
    model = pa.ARMED.from_arrays(
        x, y, groups={"g": codes}, random_effects=[pa.RandomEffects("g", slopes=[0])]
    )
    said("model")
    how = {"guide": "mean_field", "restarts": 1, "early_stopping": False, "progressbar": False}
    idata = model.fit(**how, draws=options.draws, epochs=options.epochs, batch_size=2048)
    said("fit")
    print({str(k): round(float(v.mean()), 3) for k, v in idata["posterior"].items() if v.ndim == 2})
    model.of_groups({"g": [5, 7]})
    said("of_groups")
    predicted = model.predict(x[:1000], groups={"g": codes[:1000]})["predictions"]["y"]
    said("predict 1000 rows")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.armed"
        model.save(file)
        said("save")
        again = pa.load(file).predict(x[:1000], groups={"g": codes[:1000]})["predictions"]["y"]
        said(
            f"load a file of {file.stat().st_size / 1e9:.2f} GB, "
            f"same predictions: {bool((again == predicted).all())}"
        )
        if options.write:
            model.write_posterior(Path(folder) / options.write, progressbar=False)
            said(f"write {options.write}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--groups", type=int, default=1_000_000)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--write", help="posterior.nc or posterior.zarr")
    main(parser.parse_args())
