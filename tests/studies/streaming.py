"""Rows that do not fit: one epoch over a Parquet file, its peak memory and throughput.

python tests/studies/streaming.py --rows 10_000_000 --groups 1_000_000 --batch 8192
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as arrow
import pyarrow.parquet as parquet
import torch

import pyro_armed as pa

CHUNK = 500_000


def write(path, rows, groups, text):
    """Rows with an intercept (sd 1) and a slope (sd 0.5) of each group; noise of sd 1."""
    random = np.random.default_rng(0)
    effects = random.normal(size=(groups, 2)) * [1.0, 0.5]
    writer = None
    for start in range(0, rows, CHUNK):
        size = min(CHUNK, rows - start)
        group = random.integers(0, groups, size)
        x = random.normal(size=(size, 2))
        y = 0.5 + x @ [1.0, -0.5] + effects[group, 0] + effects[group, 1] * x[:, 0] + random.normal(size=size)
        label = np.char.add("id", group.astype(str)) if text else group
        frame = pd.DataFrame({"y": y, "x1": x[:, 0], "x2": x[:, 1], "g": label})
        table = arrow.Table.from_pandas(frame, preserve_index=False)
        writer = writer or parquet.ParquetWriter(path, table.schema)
        writer.write_table(table, row_group_size=CHUNK // 2)
    writer.close()


def clocks():
    return np.array([time.perf_counter(), time.process_time()])


def peak():
    """Peak memory of this process in GB (1e9 bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def measure(path, options):
    """Make, fit, predict, write: seconds (clock, process) and peak memory after each."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(f"imports: {peak():.2f} GB", flush=True)

    def timed(name, work):
        start = clocks()
        result = work()
        clock, process = clocks() - start
        print(f"{name}: {clock:.1f} s ({process:.1f} s of processor), peak {peak():.2f} GB", flush=True)
        return result, clock, process

    model, _, _ = timed("two passes", lambda: pa.ARMED("y ~ x1 + x2 + (1 + x1 | g)", path))
    how = {"guide": "mean_field", "restarts": 1, "draws": 500, "early_stopping": False, "seed": 0}
    how |= {"epochs": options.epochs, "batch_size": options.batch, "progressbar": options.bar}
    how |= {"learning_rate": options.rate}
    idata, clock, process = timed("fit", lambda: model.fit(**how))
    rows = options.rows * options.epochs
    print(f"{rows / clock:.0f} rows per second ({rows / process:.0f} of processor time)", flush=True)
    elbo = idata["sample_stats"]["elbo"].to_numpy()[0]
    print(f"ELBO per row: first 100 steps {elbo[:100].mean():.3f}, last 100 {elbo[-100:].mean():.3f}")
    posterior = idata["posterior"]
    print({str(name): round(float(v.mean()), 3) for name, v in posterior.items() if v.ndim == 2})
    print(idata.attrs.get("shown_groups"))
    frame = pd.read_parquet(path, filters=[("y", ">", 6.0)]).head(2000)
    timed("predict 2000 rows", lambda: model.predict(frame))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.armed"
        timed("save", lambda: model.save(file))
        loaded, _, _ = timed("load", lambda: pa.load(file))
        print(f"a file of {file.stat().st_size / 1e9:.2f} GB, loaded: {loaded.spec.groups[0].size} groups")
        if options.write:
            out = Path(folder) / "posterior.nc"
            timed("write_posterior", lambda: model.write_posterior(out, progressbar=options.bar))
            print(f"a file of {out.stat().st_size / 1e9:.2f} GB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--groups", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=8192)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--text", action="store_true", help="labels of groups are text")
    parser.add_argument("--write", action="store_true", help="write_posterior as well")
    parser.add_argument("--bar", action="store_true")
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "rows.parquet")
        for target, arguments in (
            (write, (path, options.rows, options.groups, options.text)),
            (measure, (path, options)),
        ):
            process = spawn.Process(target=target, args=arguments)
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(process.exitcode)
