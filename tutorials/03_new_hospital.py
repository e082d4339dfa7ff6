# %% [markdown]
# # The twenty-first hospital
#
# A model has been trained on twenty hospitals and is taken to another. What does it know there, and how sure
# is it? `predict` has five answers, and they answer different questions. This tutorial puts them side by
# side, on simulated data, so that the truth is known.
#
# The outcome rises with the dose, more in some hospitals than in others. Each hospital has one of four
# machines, which shifts the outcome; nobody has written down which, but the machine leaves its mark on the
# `signal` of every patient.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import pyro_armed as pa

SHIFT = np.array([1.0, -1.0, -0.6, 0.9])  # of the four machines; not a line in the signal
random = np.random.default_rng(3)


def hospital(name, machine, rows):
    """Patients of one hospital, and its true line."""
    intercept = SHIFT[machine] + random.normal(0, 0.3)
    slope = 0.8 + random.normal(0, 0.4)
    dose = random.uniform(-1.5, 1.5, rows)
    frame = pd.DataFrame({"hospital": name, "dose": dose, "signal": machine + random.normal(0, 0.25, rows)})
    return frame.assign(outcome=intercept + slope * dose + random.normal(0, 0.6, rows)), (intercept, slope)


train = pd.concat([hospital(f"h{k + 1:02d}", k % 4, 60)[0] for k in range(20)], ignore_index=True)
new, (intercept, slope) = hospital("h21", 0, 225)
support, rest = new[:25], new[25:]
print(f"h21's own line: {intercept:.2f} + {slope:.2f} dose")

# %%
model = pa.ARMED("outcome ~ dose + signal + (1 + dose | hospital)", train)
model.fit(restarts=2, draws=300, seed=0, progressbar=False)
model.summary()

# %% [markdown]
# ## A new label is refused
#
# It may be a typing error. What is to be done with a new hospital has to be said.

# %%
try:
    model.predict(rest)
except pa.errors.UnseenGroupError as error:
    print(error)

# %% [markdown]
# ## Five answers
#
# - `population`: the average hospital. Its interval says how well the average is known, not how far this
#   hospital may be from it.
# - `marginal`: some hospital, drawn from those that there could be. Honest as long as nothing is known of it.
# - `membership`: its patients' covariates, without any outcome, resemble those of certain hospitals; their
#   effects are borrowed as far as that has proved to help.
# - `adapt` with 5 patients whose outcome is known, and with 25.

# %%
answers = {
    "population": {"new_groups": "population"},
    "marginal": {"new_groups": "marginal"},
    "membership": {"new_groups": "membership"},
    "adapt, 5 patients": {"new_groups": "adapt", "support": support[:5]},
    "adapt, 25 patients": {"new_groups": "adapt", "support": support},
}
model.fit_membership(progressbar=False)
scores = {
    name: model.evaluate(rest, seed=0, **how).set_index("metric")["value"] for name, how in answers.items()
}
pd.DataFrame(scores).T[["nlpd", "rmse", "coverage_80"]].round(3)

# %% [markdown]
# Which hospitals do the rows of h21 resemble? Those with the same machine: h01, h05, h09, h13, h17.

# %%
model.membership(rest, top=6).round(2)

# %% [markdown]
# ## The picture
#
# The line of h21 as each answer sees it: mean and 80 % interval of the expected outcome along the dose. The
# true line is dashed.

# %%
along = pd.DataFrame({"hospital": "h21", "dose": np.linspace(-1.5, 1.5, 25)})
figure, axes = plt.subplots(1, len(answers), figsize=(15, 3.2), sharey=True, layout="constrained")
for axis, (name, how) in zip(axes, answers.items(), strict=True):
    # Signals of real patients: membership looks at them.
    rows = along.assign(signal=rest["signal"].to_numpy()[:25])
    mean = model.predict(rows, kind="mean", seed=0, **how)["predictions"]["outcome"]
    # The signal's own coefficient is small; its noise is taken out by a line through each draw.
    draws = mean.to_numpy().reshape(-1, len(rows))
    lines = np.polynomial.polynomial.polyfit(rows["dose"], draws.T, 1)
    fitted = lines[0][:, None] + lines[1][:, None] * rows["dose"].to_numpy()
    low, middle, high = np.quantile(fitted, [0.1, 0.5, 0.9], axis=0)
    axis.fill_between(rows["dose"], low, high, alpha=0.3)
    axis.plot(rows["dose"], middle)
    axis.plot(rows["dose"], intercept + slope * rows["dose"], "k--", lw=1)
    used = how.get("support")
    if used is not None:
        axis.plot(used["dose"], used["outcome"], "k.", ms=4)
    axis.set(title=name, xlabel="dose")
axes[0].set_ylabel("outcome")
plt.show()

# %% [markdown]
# `population` is narrow and wrong: it was never asked about this hospital. `marginal` is as wide as hospitals
# differ, and this one is steeper than most. `membership` has moved up to the machine's hospitals without a
# single outcome. Five labelled patients say more than all covariates, and with twenty-five the new hospital
# is almost one of the old ones.
#
# When outcomes of a hospital that training had come in later, `model.update(rows)` does the same for it.
