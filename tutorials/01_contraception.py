# %% [markdown]
# # Contraception in Bangladesh: from a data frame to a posterior
#
# You know `glmer(use ~ age + urban + livch + (1 + urban | district), family = binomial)`. This tutorial fits
# the same model with `pyro_armed`, reads the posterior with ArviZ, checks it, predicts for districts in the
# data and for a new one, and then replaces the linear predictor by a network.
#
# The data: 1934 women in 60 districts in 1988; `use` says whether a woman uses contraception, `age` is
# centred, `livch` counts living children, `urban` says where she lives.

# %%
import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import pyro_armed as pa

women = pa.datasets.load("contraception")
women.head()

# %% [markdown]
# Districts differ in size, from 2 women to 118. That is why a proportion per district will not do, and why
# partial pooling does.

# %%
women.groupby("district").size().describe()

# %% [markdown]
# ## The model
#
# The formula is lme4's. What differs: the result is a posterior, not a point with standard errors, so the
# standard deviations between districts have a prior (half-Student-t, scaled to the data) and a posterior
# instead of an estimate that may land on zero. Printing the model shows its equations and all priors, the
# defaults included; `priors={"1|district_sigma": ...}` sets one.

# %%
model = pa.ARMED("use ~ age + urban + livch + (1 + urban | district)", women, family="bernoulli")
print(model)

# %% [markdown]
# `fit` runs stochastic variational inference: it finds the best Gaussian approximation of the posterior
# within a family, which takes seconds. `restarts=2` does so twice from different starting points; they are
# the `chain` dimension, so that R-hat says whether both have found the same. (`inference="nuts"` samples the
# posterior itself, slower, to compare.)

# %%
idata = model.fit(restarts=2, draws=500, seed=0)
fixed = ["Intercept", "age", "urban", "livch"]
between = ["1|district_sigma", "urban|district_sigma"]
az.summary(idata, var_names=[*fixed, *between])

# %%
correlation = idata["posterior"]["district_corr"].to_numpy()[..., 0, 1]
print(f"correlation of intercept and urban slope: {correlation.mean():.2f} (sd {correlation.std():.2f})")

# %% [markdown]
# lme4 reports for this model (maximum likelihood, Laplace): intercept −1.71 (0.16), age −0.027 (0.008),
# urban 0.82 (0.17), one child 1.13 (0.16), two 1.37 (0.18), three or more 1.35 (0.18); standard deviations
# between districts 0.62 (intercept) and 0.80 (urban), correlation −0.80. The coefficients agree. For the
# standard deviations lme4 gives the maximum of a skewed likelihood, and no interval; their posterior shows
# how little 60 districts say about them.


# %%
def draws_of(group, name):
    """All draws of one variable, chains joined."""
    return idata[group][name].stack(sample=("chain", "draw"))


lme4 = {"Intercept": (-1.712, 0.160), "age": (-0.0265, 0.0080), "urban": (0.815, 0.170)}
rows = []
for name, (estimate, error) in lme4.items():
    values = draws_of("posterior", name).to_numpy().ravel()
    rows.append((name, values.mean(), values.std(), estimate, error))
pd.DataFrame(rows, columns=["", "mean", "sd", "lme4", "lme4's se"]).set_index("").round(3)

# %% [markdown]
# ## The districts
#
# What lme4 calls conditional modes, `ranef(fit)`, are here draws like everything else: `1|district` has the
# district's label as its coordinate, and each interval is as wide as the district's data make it. Any ArviZ
# function takes the result. Above are the ten largest districts, below the ten smallest: wider intervals.

# %%
largest = women["district"].value_counts().index[:10].tolist()
smallest = women["district"].value_counts().index[-10:].tolist()
az.plot_forest(
    idata, var_names=["1|district"], coords={"district__factor_dim": largest + smallest}, combined=True
)

# %% [markdown]
# ## Does the model fit? A posterior predictive check
#
# With a binary response the histogram of all rows fits any model that has an intercept. A statistic that
# the model was not fitted to says more: the share of users in each district. The model draws all 1934
# responses anew, again and again; the observed share should look like one of the drawn ones.

# %%
use = (women["use"] == "Y").to_numpy()
code, labels = pd.factorize(women["district"])
size = np.bincount(code)
replicated = draws_of("posterior_predictive", "use").transpose("sample", "__obs__").to_numpy()
share = np.array([np.bincount(code, draw) / size for draw in replicated])  # (draws, districts)
observed = np.bincount(code, use) / size
order = np.argsort(observed)
low, high = np.quantile(share, [0.05, 0.95], axis=0)

figure, axes = plt.subplots(figsize=(9, 3.5), layout="constrained")
axes.vlines(np.arange(len(labels)), low[order], high[order], color="#0072B2", linewidth=3, alpha=0.4)
axes.scatter(np.arange(len(labels)), observed[order], s=12, color="#D55E00", zorder=3)
axes.set(xlabel="district, by its observed share", ylabel="share of users", xticks=[])
axes.set_title("Observed shares (dots) and 90 % predictive intervals (bars)", fontsize="medium")

# %%
inside = np.mean((observed >= low) & (observed <= high))
more_spread = np.mean(share.std(axis=1) >= observed.std())
# Each district's effect has seen the district's data, so more than 90 % inside is to be expected.
print(f"{inside:.0%} of the districts are inside their interval;")
print(
    f"{more_spread:.0%} of the replicated data sets have districts that differ as much as the observed ones."
)

# %% [markdown]
# ArviZ's approximate leave-one-out cross-validation needs nothing but the stored log likelihood. It answers
# how well the model predicts another woman *of a district in the data*.

# %%
print(az.loo(idata))

# %% [markdown]
# ## Prediction: a district in the data, and a new one
#
# Take a woman of average age (`age` is centred) in a town, with one child, in district 1; and the same woman
# in district 54, which the survey has no women of. For the new one there are two questions, and two answers:
#
# * `new_groups="population"`: in the *average* district, with the district's effects set to zero. lme4's
#   `predict(re.form = NA)`.
# * `new_groups="marginal"`: in *some* district, whose effects are drawn from their distribution. Nothing in
#   lme4's `predict` gives this; it is what a forecast for an actual new district needs.
#
# The default, `new_groups="error"`, refuses a label that training did not have: it may be a typing error.

# %%
woman = pd.DataFrame({"age": [0.0], "urban": ["Y"], "livch": ["1"]})
cases = {
    "district 1": model.predict(woman.assign(district="1"), seed=0),
    "district 54, as the average one": model.predict(
        woman.assign(district="54"), new_groups="population", seed=0
    ),
    "district 54, as some district": model.predict(
        woman.assign(district="54"), new_groups="marginal", seed=0
    ),
}
rows = []
for name, predicted in cases.items():
    probability = predicted["predictions"]["use"].to_numpy().ravel()
    rows.append((name, probability.mean(), *np.quantile(probability, [0.05, 0.95])))
pd.DataFrame(rows, columns=["", "mean", "5 %", "95 %"]).set_index("").round(2)

# %%
try:
    model.predict(woman.assign(district="54"))
except pa.errors.UnseenGroupError as error:
    print(error)

# %% [markdown]
# The interval for some new district is the widest: it holds what is not known about the coefficients *and*
# how districts differ. An interval for the average district, read as a forecast, would promise too much.
#
# ## A network instead of the linear predictor
#
# Use is not linear in age: it rises and falls. One argument replaces the linear predictor by a network, and
# everything above stays as it is: district effects, ArviZ, predictions. To compare fairly, hold out rows.

# %%
held_out = np.random.default_rng(0).permutation(len(women)) < len(women) // 5
train, test = women[~held_out], women[held_out]
formula = "use ~ age + urban + livch + (1 + urban | district)"
scores = {}
for name, network in {"linear": None, "network": pa.networks.MLP(hidden=(16, 16))}.items():
    candidate = pa.ARMED(formula, train, family="bernoulli", network=network)
    candidate.fit(restarts=2, draws=200, log_likelihood=False, seed=0)
    scores[name] = candidate.evaluate(test).set_index("metric")["value"]
pd.DataFrame(scores).round(3)

# %% [markdown]
# `nlpd` is the mean negative log predictive density (lower is better) and `auroc` the probability that a
# user is ranked above a non-user.
#
# ## Keeping it
#
# One file, which holds numbers and text only: loading it can execute no code.

# %%
model.save("contraception.armed")
again = pa.load("contraception.armed")
np.testing.assert_array_equal(
    again.predict(woman.assign(district="1"), seed=0)["predictions"]["use"],
    cases["district 1"]["predictions"]["use"],
)
