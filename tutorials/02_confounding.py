# %% [markdown]
# # Confounding audit: does the model tell the group or the response?
#
# Hospitals differ in how many of their patients are ill. Anything in the data that tells the hospital (a
# scanner's signature, a local habit of coding) then "predicts" illness, and misleads at the next hospital.
# This tutorial measures how far a model has fallen for that, and compares the means against it: random
# effects and the adversary.
#
# The data are simulated, so that the truth is known: two spirals in each of ten groups, whose class ratios
# differ. `probe1` and `probe2` are the group's class ratio plus noise: within a group they say nothing about
# the class.

# %%
import warnings

import matplotlib.pyplot as plt
import pandas as pd

import pyro_armed as pa

data = pa.simulate.confounded_spirals(10, 600, seed=1)
shuffled = data.frame.sample(frac=1.0, random_state=0)
frame, test = shuffled[:1500], shuffled[1500:]
print(data.class_ratio.round(2).to_dict())

# %% [markdown]
# ## Between and within groups
#
# A first look needs no network. `within_between` splits a predictor into the group's mean and the deviation
# from it; where the two have different coefficients, something at the level of the group is involved.

# %%
predictors = ["x1", "probe1"]
formula = "y ~ x1 + probe1 + (1 | group)"
split = pa.ARMED(formula, frame, family="bernoulli", within_between=predictors)
split.fit(restarts=1, draws=200, log_likelihood=False, seed=0)
pa.diagnostics.between_within(split).round(2)

# %% [markdown]
# The interval of the probe's difference (`q5` to `q95`) is far from zero: between groups it goes with the
# class far more than within them. That is the signature of a confounder. (`x1` has one as well: where a
# group has more of one class, it has more of that class's arm of the spiral.)
#
# ## Three networks
#
# The same small network three times: alone, with random effects, and with random effects and the adversary,
# a classifier that tries to tell the group from the network's activations while the network is trained to
# make it fail. `warmup=0.5` lets the network learn the task first. (The mean-field guide is the quick one: it
# finds the middle of the posterior, and its intervals are too narrow. It warns of that, which is not shown.)

# %%
warnings.simplefilter("ignore", pa.errors.ConvergenceWarning)
columns = "y ~ x1 + x2 + probe1 + probe2"
settings = {
    "conventional": (columns, None),
    "random effects": (columns + " + (1 + features | group)", None),
    "with adversary": (
        columns + " + (1 + features | group)",
        pa.Adversary(weight=0.5, warmup=0.5, learning_rate=0.01, groups="group"),
    ),
}
models = {}
for name, (text, adversary) in settings.items():
    network = pa.networks.MLP(hidden=(16, 16))
    # Without a linear path, which an adversary would not see: the three differ in nothing else.
    models[name] = pa.ARMED(
        text, frame, family="bernoulli", network=network, adversary=adversary, linear_path=False
    )
    models[name].fit(
        guide="mean_field", restarts=1, draws=50, epochs=600, log_likelihood=False, seed=0, progressbar=False
    )

# %% [markdown]
# How did the adversary fare? At chance from the start its weight would be too large, near 1 too small.

# %%
print(models["with adversary"].idata.attrs["adversary"])

# %% [markdown]
# ## What the predictions hang on
#
# `diagnostics.importance` is the expected absolute gradient of the fixed-effects prediction, over rows and
# posterior draws, per standard deviation of the column. The probes' share of it is the model's confounding.
# Beside it: accuracy on other rows of the same groups.

# %%
rows = []
for name, model in models.items():
    found = pa.diagnostics.importance(model, test, rows=300, draws=20)
    (probability,) = model.predict(test, draws=20)["predictions"].data_vars.values()
    correct = (probability.mean(["chain", "draw"]).to_numpy() > 0.5) == (test["y"].to_numpy() == 1)
    rows.append((name, found.share(["probe1", "probe2"]).mean(), correct.mean()))
pd.DataFrame(rows, columns=["", "probes' share", "accuracy"]).set_index("").round(3)

# %% [markdown]
# Random effects lower the probes' share and raise the accuracy. The adversary changes little more here: it
# acts on what the hidden features tell of the group, and that is another question.
#
# The bars show each column's importance and, where effects vary between groups, by how much.

# %%
figure = pa.plots.importance(pa.diagnostics.importance(models["with adversary"], test, rows=300, draws=20))
figure.set_size_inches(7, 3)
plt.close(figure)
figure

# %% [markdown]
# ## What the features still tell
#
# The adversary that trained along is no witness: a network can fool it and still tell the group.
# `diagnostics.leakage` trains a fresh classifier on the frozen features and asks it about rows that it has
# not seen. `low` and `high` are the interval of accuracies if features told nothing beyond the response.

# %%
leaks = [
    pa.diagnostics.leakage(models[name], test, given_response=True, rows=2000, permutations=200).assign(
        model=name
    )
    for name in ("random effects", "with adversary")
]
pd.concat(leaks)[["model", "accuracy", "chance", "low", "high", "leaks"]].round(3)

# %% [markdown]
# With the adversary the features tell less of the group, at some cost in accuracy, but not nothing: `x1` and
# `x2` themselves depend on the group's radius, which the task needs. Whether the cost is worth it is for the
# data to say: `pa.choose_adversary(model, data)` compares weights by the predictive density of groups that
# were left out, with "off" among them.
#
# ## Your own data
#
# There the confounders are not named `probe1`. `diagnostics.probe_audit(model, data)` adds features that tell
# only of the group, refits, and reports their share and rank.

# %%
small = pa.ARMED("y ~ x1 + x2 + (1 | group)", frame, family="bernoulli", network=pa.networks.MLP(hidden=(8,)))
print(
    pa.diagnostics.probe_audit(
        small, frame, guide="mean_field", restarts=1, draws=50, epochs=200, progressbar=False
    )
)
