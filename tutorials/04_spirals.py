# %% [markdown]
# # Spirals: a decision boundary for each group
#
# Two classes lie on two arms of a spiral, in each of ten groups. The groups' spirals differ in radius, so
# that one and the same point may belong to either class: it depends on the group. One network for all has to
# average over the groups; one network for each would have few rows to learn from. A mixed-effects network
# shares its hidden layers and lets each group read them in its own way.
#
# (The example is that of Nguyen, Treacher and Montillo, TPAMI 45(7), 2023. `pyro-armed reproduce spirals`
# compares seven ways to deal with the groups on it.)

# %%
import warnings

import matplotlib.pyplot as plt
import pandas as pd

import pyro_armed as pa

data = pa.simulate.spirals(10, 300, seed=3)
shuffled = data.frame.sample(frac=1.0, random_state=0)
train, test = shuffled[:2000], shuffled[2000:]
data.radii.round(2)

# %% [markdown]
# ## Two models
#
# `features` are the network's last hidden activations: in `(1 + features | group)` each group has weights of
# its own for them, around the weights that all share, as random slopes are around the common slope.
#
# (The mean-field guide is the quick one. It finds the middle of the posterior, which is what accuracy needs;
# its intervals are too narrow, and it warns of that, which is not shown.)

# %%
warnings.simplefilter("ignore", pa.errors.ConvergenceWarning)
formulas = {"one network for all": "y ~ x1 + x2", "mixed effects": "y ~ x1 + x2 + (1 + features | group)"}
models = {}
for name, formula in formulas.items():
    network = pa.networks.MLP(hidden=(16, 16, 16))
    models[name] = pa.ARMED(formula, train, family="bernoulli", network=network)
    models[name].fit(
        guide="mean_field",
        restarts=1,
        draws=100,
        epochs=1500,
        log_likelihood=False,
        seed=0,
        progressbar=False,
    )


# %% [markdown]
# ## How good are they?
#
# The data are simulated, so that the best possible accuracy on these rows is known: that of a classifier that
# knows each group's radius, and that of one that knows only how radii are distributed.


# %%
def accuracy(model, rows, **how):
    (probability,) = model.predict(rows, **how)["predictions"].data_vars.values()
    return float(
        ((probability.mean(["chain", "draw"]).to_numpy() > 0.5) == (rows["y"].to_numpy() == 1)).mean()
    )


found = {name: accuracy(model, test) for name, model in models.items()}
found["limit, radii known"] = data.bayes_accuracy(test)
found["limit, radii's distribution known"] = data.bayes_accuracy(test, known_radius=False)
pd.Series(found, name="accuracy").round(3)

# %% [markdown]
# The mixed model comes near the limit that knows the radii, and no model without group effects can.
#
# ## What they have learnt
#
# The black line is where a model changes its mind, the dashed one where the best possible classifier does.
# First the network for all: the same picture for each group, right for none.

# %%
some = list(data.radii.sort_values().index[[1, 4, 7, 8]])  # from the smallest radius to the largest


def boundaries(name):
    return pa.plots.decision_boundaries(
        models[name], test, "x1", "x2", "group", groups=some, columns=4, truth=data.bayes_probability
    )


figure = boundaries("one network for all")
plt.close(figure)
figure

# %%
figure = boundaries("mixed effects")
plt.close(figure)
figure

# %% [markdown]
# ## A new group
#
# Of a group that training did not have only the distribution of the effects is known (`"marginal"`). Thirty
# labelled rows of it are enough to learn its own (`"adapt"`), with the network as it is.

# %%
new = data.new_groups(4, rows_per_group=300, seed=1)
rows = new.frame.sample(frac=1.0, random_state=0)
labelled = rows.groupby("group").cumcount() < 30
support, rest = rows[labelled], rows[~labelled]
model = models["mixed effects"]
answers = {
    "marginal": accuracy(model, rest, new_groups="marginal", seed=0),
    "adapt": accuracy(model, rest, new_groups="adapt", support=support, seed=0),
    "limit, radii's distribution known": new.bayes_accuracy(rest, known_radius=False),
    "limit, radii known": new.bayes_accuracy(rest),
}
pd.Series(answers, name="accuracy").round(3)
