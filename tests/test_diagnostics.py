"""What says when a posterior is not to be trusted; variance partition; checks of groups and predictions."""

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from hand_made import frame, posterior_of
from scipy import stats

import pyro_armed as pa
from pyro_armed import diagnostics
from pyro_armed.diagnostics._fit import record_verdict
from pyro_armed.errors import ArgumentError, ConvergenceWarning, NotFittedError
from pyro_armed.export import to_arviz


def made(formula, family="gaussian", draws=30, fixed=None, data=None):
    """A model with a posterior made by hand."""
    model = pa.ARMED(formula, frame() if data is None else data, family=family)
    model._posterior = posterior_of(model.module, draws=draws, fixed=fixed)
    return model


@pytest.fixture(scope="module")
def fitted():
    data = pa.simulate.mixed_model(12, 6, fixed=(0.0, 1.0), sds=(1.0, 0.5), correlation=0.3, seed=1)
    model = pa.ARMED("y ~ x1 + (1 + x1 | group)", data.frame)
    model.fit(restarts=2, draws=150, seed=0, progressbar=False)
    return model


# --- convergence -------------------------------------------------------------------------------------------


def test_a_good_fit_is_called_good(fitted):
    assert fitted.idata.attrs["verdict"] == "No problem found."
    assert fitted.idata["posterior"].attrs["verdict"] == "No problem found."
    table = diagnostics.convergence(fitted)
    assert table.attrs == {"converged": True, "problems": []}
    assert table["check"].tolist() == ["elbo", "khat", "r_hat"]
    pd.testing.assert_frame_equal(table, diagnostics.convergence(fitted.idata))
    stats_ = fitted.idata["sample_stats"]
    assert stats_["converged"].dims == ("chain",)
    assert diagnostics.khat(fitted)["khat"].tolist() == [float(stats_["khat"].max())]


def test_steps_that_run_out_are_reported_in_words():
    data = pa.simulate.mixed_model(6, 5, seed=0).frame
    model = pa.ARMED("y ~ x1 + (1 | group)", data)
    with pytest.warns(ConvergenceWarning, match=r"still rising.*raise epochs") as caught:
        idata = model.fit(guide="mean_field", epochs=1, restarts=1, draws=20, progressbar=False)
    assert len(caught) == 1
    assert "still rising" in idata.attrs["verdict"]
    assert idata["posterior"].attrs["converged"] == 0
    table = diagnostics.convergence(model)
    assert not table.attrs["converged"]
    assert not table.set_index("check").loc["elbo", "ok"]
    summary = model.summary()
    assert not summary.converged
    assert "raise epochs" in str(summary)
    assert "raise epochs" in summary.table.attrs["notes"][0]


def test_a_mean_field_guide_has_a_large_khat():
    # The intercept and the groups' effects are strongly correlated, which the guide cannot be.
    data = pa.simulate.mixed_model(20, 20, seed=0).frame
    model = pa.ARMED("y ~ x1 + (1 | group)", data)
    with pytest.warns(ConvergenceWarning, match="k-hat .* is above 0.7.*guide='structured'"):
        idata = model.fit(
            guide="mean_field", restarts=1, draws=300, epochs=300, log_likelihood=False, progressbar=False
        )
    table = diagnostics.khat(model)
    assert table["of"].tolist() == ["joint"]
    assert table["khat"][0] > 0.7
    assert table["verdict"][0] == "bad"
    assert "k-hat" in idata.attrs["verdict"]
    assert "k-hat" in str(model.summary())


def test_khat_of_each_group_carries_its_label(tmp_path):
    data = pa.simulate.mixed_model(5, 6, family="bernoulli", seed=0).frame
    model = pa.ARMED("y ~ 1 + (1 | group)", data, family="bernoulli")
    idata = model.fit(restarts=1, draws=60, progressbar=False)
    assert idata["sample_stats"]["khat|group"].dims == ("chain", "group__factor_dim")
    table = diagnostics.khat(model)
    assert table["of"].tolist() == ["joint"] + ["group"] * 5
    assert table["group"].tolist()[1:] == ["g00", "g01", "g02", "g03", "g04"]
    assert table["khat"].iloc[1:].max() == pytest.approx(idata.attrs["khat_by_group_max"])
    model.save(tmp_path / "one.armed")
    pd.testing.assert_frame_equal(diagnostics.khat(pa.load(tmp_path / "one.armed")), table)


def small(draws=200, chains=2, shift=0.0, stats_=None, **attributes):
    """An ArviZ object with one parameter, whose second chain is shifted."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(chains, draws)) + shift * np.arange(chains)[:, None]
    posterior = xr.Dataset({"tau": (("chain", "draw"), values)})
    return to_arviz({"posterior": posterior, "sample_stats": xr.Dataset(stats_ or {})}, attributes)


def test_chains_that_disagree():
    nuts = small(shift=5.0, inference="nuts")
    with pytest.warns(ConvergenceWarning, match=r"R-hat .* \(tau\) is above 1.05: raise warmup"):
        record_verdict(nuts)
    assert diagnostics.convergence(small(inference="nuts")).attrs["converged"]
    networks = diagnostics.convergence(small(shift=5.0, inference="svi", network=1))
    assert networks.attrs["converged"]
    assert "different networks" in networks["words"].iloc[-1]


def test_divergences_are_words_but_no_second_warning():
    diverging = (("chain", "draw"), np.arange(400).reshape(2, 200) == 7)
    table = diagnostics.convergence(small(stats_={"diverging": diverging}, inference="nuts"))
    assert table.attrs["problems"] == ["1 NUTS draws diverged: use a longer warmup or narrower priors."]
    assert "diverged" in record_verdict(small(stats_={"diverging": diverging}, inference="nuts"))


@pytest.mark.parametrize(("rising", "ok"), [(True, False), (False, True)])
def test_without_early_stopping_the_trace_itself_is_judged(rising, ok):
    rng = np.random.default_rng(0)
    trace = rng.normal(size=(1, 200)) * 0.1 + (np.arange(200) * 0.05 if rising else 0.0)
    facts = {"elbo": (("chain", "step"), trace), "converged": ("chain", [0.0])}
    one = small(chains=1, stats_=facts, guide="mean_field", early_stopping=0)
    assert diagnostics.convergence(one).set_index("check").loc["elbo", "ok"] == ok


def test_several_groups_with_a_large_khat_are_a_problem_one_is_not():
    def verdict(bad):
        k = np.where(np.arange(10) < bad, 0.9, 0.1)[None]
        facts = {"khat": ("chain", [0.2]), "khat|g": (("chain", "g__factor_dim"), k)}
        return diagnostics.convergence(small(chains=1, stats_=facts)).set_index("check").loc["khat of g"]

    assert verdict(1)["ok"]
    assert not verdict(4)["ok"]
    assert "4 of 10 groups of g" in verdict(4)["words"]


def test_r_hat_agrees_with_its_definition_and_leaves_the_diagonal_out(fitted):
    found = diagnostics.r_hat(fitted)
    assert float(found["1|group"].max()) < 1.1
    values = fitted.idata["posterior"]["Intercept"].to_numpy()
    halves = np.concatenate(np.split(values, 2, axis=1))
    bulk = stats.norm.ppf((stats.rankdata(halves).reshape(halves.shape) - 0.375) / (halves.size + 0.25))
    folded = np.abs(halves - np.median(halves))
    tail = stats.norm.ppf((stats.rankdata(folded).reshape(folded.shape) - 0.375) / (folded.size + 0.25))

    def plain(z):
        n = z.shape[1]
        within = z.var(axis=1, ddof=1).mean()
        return np.sqrt((n - 1) / n + z.mean(axis=1).var(ddof=1) / within)

    assert float(found["Intercept"]) == pytest.approx(max(plain(bulk), plain(tail)), rel=1e-6)
    assert found["group_corr"].dims == ("group_corr_pair",)


def test_what_is_not_a_fitted_model_is_refused():
    model = pa.ARMED("y ~ x + (1 | g)", frame())
    with pytest.raises(NotFittedError):
        diagnostics.khat(model)
    with pytest.raises(ArgumentError, match="fitted ARMED or its ArviZ object"):
        diagnostics.khat(3)
    with pytest.raises(ArgumentError, match="the model itself"):
        diagnostics.icc(small())


# --- variance partition ------------------------------------------------------------------------------------


def share(model, group, scale, **options):
    table = diagnostics.icc(model, **options).set_index(["group", "scale"])
    return table.loc[(group, scale)]


def test_icc_of_a_gaussian_intercept():
    model = made("y ~ x + (1 | g) + (1 | h)", fixed={"1|g_sigma": 2.0, "1|h_sigma": 1.0, "sigma": 2.0})
    for scale in ("latent", "response"):
        assert share(model, "g", scale)["mean"] == pytest.approx(4 / 9)
        assert share(model, "h", scale)["q95"] == pytest.approx(1 / 9)
    free = made("y ~ x + (1 | g)", draws=50)
    values = [chain.values for chain in free._posterior.chains]
    tau, sigma = (torch.cat([v[n] for v in values]).numpy() ** 2 for n in ("1|g_sigma", "sigma"))
    found = share(free, "g", "latent")
    assert found["sd"] == pytest.approx((tau / (tau + sigma)).std(ddof=1))
    assert found["q5"] == pytest.approx(np.quantile(tau / (tau + sigma), 0.05))


def test_icc_with_correlated_slopes_averages_the_variance_over_rows():
    data = frame()
    model = made("y ~ x + (1 + z | g)", fixed={"1|g_sigma": 1.0, "z|g_sigma": 0.5, "sigma": 1.5})
    shares = []
    for chain in model._posterior.chains:
        for value in chain.report()["g_corr"].numpy():
            scaled = np.diag([1.0, 0.5]) @ value @ np.diag([1.0, 0.5])
            columns = np.column_stack([np.ones(len(data)), data["z"]])
            between = np.einsum("ij,jk,ik->i", columns, scaled, columns).mean()
            shares.append(between / (between + 2.25))
    assert share(model, "g", "latent")["mean"] == pytest.approx(np.mean(shares))


def test_icc_of_counts_is_the_closed_form():
    fixed = {"Intercept": 0.4, "1|g_sigma": 0.6}
    model = made("count ~ 1 + (1 | g)", "poisson", draws=2, fixed=fixed)
    assert "latent" not in set(diagnostics.icc(model)["scale"])
    mean = np.exp(0.4 + 0.18)
    between = mean**2 * np.expm1(0.36)
    assert share(model, "g", "response")["mean"] == pytest.approx(between / (between + mean), rel=1e-6)


@pytest.mark.parametrize("formula", ["b ~ x + (1 + z | g) + (1 | h)", "p(s, t) ~ x + (1 + z | g) + (1 | h)"])
def test_icc_of_probabilities_against_simulation(formula):
    family = "bernoulli" if formula[0] == "b" else "binomial"
    fixed = {
        "Intercept": -0.5,
        "x": 0.3,
        "1|g_sigma": 1.5,
        "z|g_sigma": 0.7,
        "1|h_sigma": 0.8,
        "g_corr": np.eye(2),
    }
    model = made(formula, family, draws=1, fixed=fixed)
    latent = share(model, "h", "latent")["mean"]
    data = frame()
    variance = 1.5**2 + (0.7 * data["z"].to_numpy()) ** 2
    assert latent == pytest.approx(0.64 / (0.64 + variance.mean() + np.pi**2 / 3))
    # The intercept is that at the mean of x.
    eta = -0.5 + 0.3 * (data["x"] - data["x"].mean()).to_numpy()
    rng = np.random.default_rng(0)
    n = 40_000
    g, g2, h, h2 = rng.normal(size=(4, n, 1))
    first = 1 / (1 + np.exp(-(eta + g * np.sqrt(variance) + 0.8 * h)))
    other_h = 1 / (1 + np.exp(-(eta + g * np.sqrt(variance) + 0.8 * h2)))
    other_g = 1 / (1 + np.exp(-(eta + g2 * np.sqrt(variance) + 0.8 * h)))
    total = (first.mean(axis=0) * (1 - first.mean(axis=0))).mean()
    for name, other in (("g", other_h), ("h", other_g)):
        covariance = ((first - first.mean(0)) * (other - other.mean(0))).mean()
        assert share(model, name, "response")["mean"] == pytest.approx(covariance / total, abs=0.004)


def test_icc_takes_other_rows_and_refuses_what_has_none():
    model = made("y ~ x + (0 + z | g)", fixed={"z|g_sigma": 1.0, "sigma": 1.0})
    rows = frame().assign(z=2.0, g="new")
    assert share(model, "g", "latent", data=rows)["mean"] == pytest.approx(4 / 5)
    assert set(diagnostics.icc(made("o ~ x + (1 | g)", "ordinal"))["scale"]) == {"latent"}
    with pytest.raises(ArgumentError, match="categorical"):
        diagnostics.icc(made("c ~ x + (1 | g)", "categorical"))
    with pytest.raises(ArgumentError, match="group effects"):
        diagnostics.icc(made("y ~ x"))
    with pytest.raises(ArgumentError, match="draws=0"):
        diagnostics.icc(model, draws=0)


# --- checks of groups, calibration -------------------------------------------------------------------------


def test_group_check_by_hand(fitted):
    table = diagnostics.group_check(fitted, "sd")
    assert table.index.name == "group"
    idata = fitted.idata
    here = idata["constant_data"]["group"].to_numpy() == "g07"
    y = idata["observed_data"]["y"].to_numpy()[here]
    drawn = idata["posterior_predictive"]["y"].to_numpy()[:, :, here].std(axis=-1).reshape(-1)
    row = table.loc["g07"]
    assert row["rows"] == 6
    assert row["observed"] == pytest.approx(y.std())
    assert row["q50"] == pytest.approx(np.median(drawn))
    assert row["p"] == pytest.approx((drawn > y.std()).mean())
    own = diagnostics.group_check(fitted.idata, lambda v: v.mean(axis=-1), group="group")
    pd.testing.assert_frame_equal(own, diagnostics.group_check(fitted))
    prior = diagnostics.group_check(fitted, kind="prior")
    assert ((prior["q95"] - prior["q5"]) > (own["q95"] - own["q5"])).all()


def test_group_check_refusals(fitted):
    for options, match in (
        ({"statistic": "mode"}, "statistic='mode'"),
        ({"kind": "both"}, "kind='both'"),
        ({"group": "site"}, "group='site'.*group"),
    ):
        with pytest.raises(ArgumentError, match=match):
            diagnostics.group_check(fitted, **options)
    with pytest.raises(ArgumentError, match="log_likelihood=True"):
        diagnostics.group_check(small())


def test_calibration_of_numbers_counts_what_is_covered(fitted):
    table = diagnostics.calibration(fitted, probabilities=(0.5, 0.9))
    assert table["probability"].tolist() == [0.5, 0.9]
    assert table["coverage"].between(table["probability"] - 0.2, 1).all()
    new = pa.simulate.mixed_model(
        12, 6, fixed=(0.0, 1.0), sds=(1.0, 0.5), correlation=0.3, seed=1
    ).new_groups(40)
    held_out = diagnostics.calibration(fitted, new.frame, new_groups="marginal")
    assert ((held_out["coverage"] - held_out["probability"]).abs() < 0.12).all()


def test_calibration_error_of_new_groups_beside_that_of_a_right_model():
    fixed = {"Intercept": 0.0, "x": 0.5, "1|g_sigma": 1.5}
    model = made("b ~ x + (1 | g)", "bernoulli", fixed=fixed, draws=400)
    center = frame()["x"].mean()  # where the intercept holds
    rng = np.random.default_rng(0)
    found, alone = [], []
    for seed in range(25):
        group = np.repeat(np.arange(20), 20)
        x = rng.normal(size=20)[group]
        eta = 0.5 * (x - center) + rng.normal(scale=1.5, size=20)[group]
        data = frame(100).assign(x=x, g=[f"new {k}" for k in group])
        data["b"] = (rng.uniform(size=400) < 1 / (1 + np.exp(-eta))).astype(int)
        table = diagnostics.calibration(model, data, new_groups="marginal", seed=seed)
        found.append(table.attrs["p"])
        share = table["rows"] / 400
        tosses = rng.binomial(table["rows"], table["predicted"], (200, len(table))) / table["rows"].to_numpy()
        errors = np.abs(tosses - table["predicted"].to_numpy()) @ share
        alone.append(np.mean(errors >= table.attrs["ece"]))
        assert table.attrs["ece"] == pytest.approx(share @ (table["observed"] - table["predicted"]).abs())
    assert np.mean(np.array(found) < 0.05) <= 0.16
    assert 0.3 < np.mean(found) < 0.7
    # Independent rows would blame most of these right models.
    assert np.mean(np.array(alone) < 0.05) > 0.3


def test_reliability_of_a_binary_response():
    data = pd.concat([frame(seed=s) for s in range(20)], ignore_index=True)
    model = made("b ~ 1", "bernoulli", fixed={"Intercept": 0.0}, data=data)
    table = diagnostics.calibration(model)
    assert len(table) == 1  # all rows have one probability
    assert table.loc[0, ["predicted", "observed"]].tolist() == [0.5, 0.5]
    low, high = stats.beta(200.5, 200.5).ppf([0.05, 0.95])
    assert table.loc[0, ["q5", "q95"]].tolist() == pytest.approx([low, high])
    # Every draw has probability one half: the band is that of 400 tosses.
    band = stats.binom(400, 0.5).ppf([0.05, 0.95]) / 400
    assert table.loc[0, ["calibrated_q5", "calibrated_q95"]].tolist() == pytest.approx(band, abs=0.012)
    assert table.attrs["ece"] == 0.0
    assert table.attrs["p"] == 1.0
    wide = diagnostics.calibration(made("b ~ x", "bernoulli", data=data), bins=4)
    assert wide["rows"].tolist() == [100] * 4
    assert wide["predicted"].is_monotonic_increasing
    levels = diagnostics.calibration(made("o ~ x", "ordinal", data=data), bins=2)
    assert levels["level"].tolist() == ["low", "low", "mid", "mid", "top", "top"]
    assert levels.groupby("level")["observed"].mean()["low"] == pytest.approx((data["o"] == "low").mean())
    with pytest.raises(ArgumentError, match="bins=0"):
        diagnostics.calibration(model, bins=0)
