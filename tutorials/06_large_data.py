# %% [markdown]
# # More rows than memory
#
# A model of rows in Parquet files is made and fitted like one of a data frame. Two passes over the files
# gather what the formula needs: levels, groups, means and sds, and a random sample of rows. Then minibatches
# stream through: row groups in random order, rows shuffled in a buffer, a thread that reads ahead.
#
# Here 100,000 visits of 10,000 patients stand for the hundreds of millions that one would do this for. They
# are sorted by patient, as such files often are.

# %%
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr

import pyro_armed as pa

random = np.random.default_rng(0)
folder = Path(tempfile.mkdtemp())
patients, visits = 10_000, 10
intercept, slope = random.normal(0, 1.0, patients), random.normal(0, 0.5, patients)
patient = np.repeat(np.arange(patients), visits)
dose = random.normal(size=patients * visits)
outcome = 0.5 + intercept[patient] + (1.0 + slope[patient]) * dose + random.normal(size=patients * visits)
rows = pd.DataFrame({"outcome": outcome, "dose": dose, "patient": patient})
rows.to_parquet(folder / "visits.parquet", row_group_size=10_000)

# %% [markdown]
# A path stands where a data frame stood before; a folder of Parquet files or a `pyarrow.dataset` would do as
# well. What needs all rows at once is refused: `scale(dose)`, splines, NUTS, and the structured guide.

# %%
model = pa.ARMED("outcome ~ dose + (1 + dose | patient)", folder / "visits.parquet")
try:
    model.fit()
except pa.errors.ArgumentError as error:
    print(error)

# %% [markdown]
# So the guide is the mean-field one. It finds the means, nearly; its intervals of the common effects are too
# narrow, which matters less with so many rows than it does with a few hundred. More passes come closer.

# %%
how = {"guide": "mean_field", "restarts": 1, "draws": 200, "early_stopping": False, "seed": 0}
with warnings.catch_warnings():
    warnings.simplefilter("ignore", pa.errors.ConvergenceWarning)  # shown below instead
    idata = model.fit(epochs=12, batch_size=1024, progressbar=False, **how)
print(idata.attrs["verdict"])
posterior = idata["posterior"]
truth = {"Intercept": 0.5, "dose": 1.0, "sigma": 1.0, "1|patient_sigma": 1.0, "dose|patient_sigma": 0.5}
means = {name: float(posterior[name].mean()) for name in truth}
pd.DataFrame({"truth": truth, "posterior mean": means}).round(2)

# %% [markdown]
# ## Groups by the million
#
# 200 draws of two effects of a million patients are three gigabytes. Beyond 50 million numbers the draws
# are not held: `idata` shows the groups of a random sample of rows, `predict` and `evaluate` draw the effects
# of the groups that they meet, and `of_groups` gives those that one asks for. They are the same draws each
# time.

# %%
some = model.of_groups({"patient": range(12)})
effects = some.idata["posterior"]["1|patient"]
figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
middle, spread = effects.mean(("chain", "draw")), effects.std(("chain", "draw"))
axis.errorbar(range(12), middle, 2 * spread, fmt="o", label="posterior, 2 sds")
axis.plot(range(12), intercept[:12], "k_", markersize=12, label="truth")
axis.set(xlabel="patient", ylabel="1|patient")
axis.legend()

# %% [markdown]
# All of them go to a file, some thousand groups at a time. `xarray` reads from it what is asked for.

# %%
model.write_posterior(folder / "posterior.nc", progressbar=False)
with xr.open_dataset(folder / "posterior.nc", group="posterior", engine="h5netcdf") as written:
    print(dict(written["1|patient"].sizes))
    print(float(written["1|patient"].sel(patient__factor_dim=7).mean().round(3)), round(intercept[7], 3))

# %% [markdown]
# The fitted model is an ordinary one: it predicts data frames, scores them, and goes to a file.

# %%
model.save(folder / "visits.armed")
loaded = pa.load(folder / "visits.armed")
loaded.evaluate(rows.sample(1000, random_state=0)).round(3)

# %% [markdown]
# ## Several processes
#
# The same model trains in several processes, each with row groups of its own: in a script that `torchrun`
# starts with `pyro_armed.distributed.fit(model, checkpoint="run.ckpt")`, or with Lightning's
# `Trainer(strategy="ddp", devices=2, num_nodes=...)` and `pyro_armed.lightning` (extra `lightning`). Without
# `torchrun` it is one process; a single pass is for show, and the verdict says so.

# %%
again = pa.ARMED("outcome ~ dose + (1 + dose | patient)", folder / "visits.parquet")
with warnings.catch_warnings():
    warnings.simplefilter("ignore", pa.errors.ConvergenceWarning)
    once = pa.distributed.fit(again, epochs=1, checkpoint=folder / "run.ckpt", progressbar=False)
once.attrs["verdict"]
