"""InstEval with students and lecturers crossed, against the exact posterior."""

import argparse
import json
import warnings
from pathlib import Path

import numpy as np

import pyro_armed as pa

REFERENCE = Path(__file__).parents[1] / "reference" / "nuts.json"

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--draws", type=int, default=300)
    options = parser.parse_args()
    fit = json.loads(REFERENCE.read_text())["fits"]["insteval"]
    frame = pa.datasets.load(fit["data"])
    frame["service"] = frame["service"].astype(int)  # a number in the reference
    model = pa.ARMED(fit["formula"], frame)
    for seed in range(options.seeds):
        idata = model.fit(restarts=1, draws=options.draws, log_likelihood=False, progressbar=False, seed=seed)
        posterior = idata.posterior
        print(f"seed {seed}", {k: posterior.attrs[k] for k in ("khat", "converged", "importance_corrected")})
        for name, exact in fit["parameters"].items():
            draws = posterior[name].to_numpy()
            shift = (draws.mean() - exact["mean"]) / exact["sd"]
            print(f"  {name}: sd ratio {draws.std() / exact['sd']:.3f}, shift {shift:.3f} sd", flush=True)
        for name, table in fit["effects"].items():
            dim = f"{name.split('|')[1]}__factor_dim"
            position = {str(label): k for k, label in enumerate(posterior[dim].to_numpy())}
            at = [position[str(label)] for label in table["group"]]
            found = posterior[name].to_numpy().reshape(-1, len(position))[:, at].std(0)
            print(f"  {name}: median sd ratio {np.median(found / np.asarray(table['sd'])):.3f}", flush=True)
