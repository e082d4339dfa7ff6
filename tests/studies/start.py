"""Processor time from the call of `fit` to its first compiled step in a new process: spirals, Inductor.

The first process fills Inductor's cache on disk (a folder of its own), the others find it. Time of the
process and of its children; imports of the library and making the model are shown apart.
"""

import argparse
import os
import subprocess
import sys
import tempfile

CODE = """
import resource, time, warnings
import pyro_armed as pa
from pyro_armed import compiled, training
warnings.simplefilter("ignore")
model = pa.ARMED(
    "y ~ x1 + x2 + (1 + features | group)", pa.simulate.spirals(seed=0).frame, family="bernoulli",
    network=pa.networks.MLP(hidden=(4, 4, 4)), adversary=pa.Adversary(weight=0.5))
def used():
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime
class Stop(Exception): pass
plain = compiled.CompiledStep.seeded
def seeded(self, seeds):
    run = plain(self, seeds)
    def step(*given):
        run(*given)
        raise Stop
    return step
compiled.CompiledStep.seeded = seeded
before = used()
try:
    model.fit(restarts=RESTARTS, guide="mean_field", compile="inductor", batch_size=32, progressbar=False)
except Stop:
    print(f"imports and model {before:.2f} s, fit to its first step {used() - before:.2f} s")
"""

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--restarts", type=int, default=1)
    parser.add_argument("--processes", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        surroundings = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache, "OMP_NUM_THREADS": "1"}
        for number in range(options.processes):
            code = CODE.replace("RESTARTS", str(options.restarts))
            run = subprocess.run(
                [sys.executable, "-c", code], env=surroundings, capture_output=True, text=True, check=True
            )
            print(f"process {number}: {run.stdout.strip()}", flush=True)
