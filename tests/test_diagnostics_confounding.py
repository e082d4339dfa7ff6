"""Probes that only encode the group, and effects that differ between levels."""

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
from torch import nn

import pyro_armed as pa
from pyro_armed.diagnostics import between_within, probe_audit
from pyro_armed.diagnostics._confounding import group_probes
from pyro_armed.errors import ArgumentError

pytestmark = pytest.mark.filterwarnings("ignore::pyro_armed.errors.ConvergenceWarning")
QUICK = {"restarts": 1, "draws": 200, "progressbar": False}


def confounded(contextual, seed=0, groups=40, rows=15):
    """x has effect 1 within groups and 1 + contextual between them."""
    rng = np.random.default_rng(seed)
    code = np.repeat(np.arange(groups), rows)
    mean = rng.normal(size=groups)
    x = mean[code] + rng.normal(size=groups * rows)
    u = contextual * mean + 0.3 * rng.normal(size=groups)
    y = 2.0 + x + u[code] + 0.5 * rng.normal(size=len(x))
    return pd.DataFrame({"x": x, "z": rng.normal(size=len(x)), "g": [f"g{c}" for c in code], "y": y})


@pytest.mark.parametrize("contextual", [0.0, 1.5])
def test_the_contextual_effect_is_found(contextual):
    model = pa.ARMED("y ~ x + z + (1 | g)", confounded(contextual), within_between=["x", "z"])
    model.fit(**QUICK, log_likelihood=False)
    table = between_within(model).set_index("predictor")
    x, posterior = table.loc["x"], model.idata["posterior"]
    # Group means of 15 rows are noisy: between groups the slope is that of the mean, nearly.
    assert x["within"] == pytest.approx(1.0, abs=0.1)
    assert abs(x["difference"] - contextual) < 3 * x["sd"] + 0.07 * contextual
    assert (x["q5"] > 0) == (contextual > 0)
    assert table.loc["z", "q5"] < 0 < table.loc["z", "q95"]
    difference = (posterior["x_between"] - posterior["x_within"]).to_numpy()
    assert x["q95"] == pytest.approx(np.quantile(difference, 0.95))
    assert x["probability"] == (difference > 0).mean()
    assert table["group"].tolist() == ["g", "g"]


def test_probes_are_the_groups_mean_and_noise(unmoved_rng):
    data = confounded(1.0, groups=20)
    data.loc[3, "x"] = np.nan
    model = pa.ARMED("y ~ x + (1 | g)", data, missing="drop")
    with unmoved_rng():
        probes = group_probes(model, 3, None, 0.5, seed=1)
    assert probes.columns.tolist() == ["audit1", "audit2", "audit3"]
    assert probes.isna().all(axis=1).to_numpy().nonzero()[0].tolist() == [3]
    kept = data.drop(index=3)
    means = kept.groupby("g")["y"].transform("mean")
    noise = probes.drop(index=3).sub(means, axis=0)
    assert noise.std().to_numpy() == pytest.approx(0.5 * means.std(ddof=0), rel=0.15)
    assert noise.corr().abs().to_numpy()[np.triu_indices(3, 1)].max() < 0.2
    pd.testing.assert_frame_equal(probes, group_probes(model, 3, "g", 0.5, seed=1))


def test_random_intercepts_leave_probes_little_that_a_model_without_gives_them():
    data = confounded(2.0, groups=20)
    shares = {}
    for name, prior in (("free", {}), ("none", {"1|g_sigma": dist.HalfNormal(1e-4)})):
        audit = probe_audit(pa.ARMED("y ~ x + z + (1 | g)", data, priors=prior), data, **QUICK)
        assert audit.table["probe"].sum() == 2
        assert audit.table["rank"].tolist() == [1, 2, 3, 4]
        assert "2 probes" in str(audit)
        assert audit.share.mean() == pytest.approx(audit.table.loc[audit.table["probe"], "share"].sum())
        shares[name] = audit.share.mean()
    assert shares["none"] > 0.2
    assert shares["free"] < 0.5 * shares["none"]


def test_a_network_and_arrays():
    data = confounded(1.0, groups=6, rows=10)
    quick = {"guide": "mean_field", "restarts": 1, "draws": 5, "epochs": 20, "early_stopping": False}
    model = pa.ARMED(["y ~ x + (1 | g)", "sigma ~ z"], data, network=pa.networks.MLP(hidden=(3,)))
    audit = probe_audit(model, data, n_probes=1, **quick, progressbar=False)
    assert sorted(audit.table.index) == ["audit1", "x"]
    assert audit.model.spec.predictor("sigma").terms[0].name == "z"
    x, groups = data[["x", "z"]].to_numpy(), {"g": data["g"].to_numpy()}
    arrays = pa.ARMED.from_arrays(
        x, data["y"], groups, weights=np.ones(60), network=pa.networks.MLP(hidden=(3,))
    )
    with pytest.raises(ArgumentError, match="weights belong"):
        probe_audit(arrays, x, data["y"], groups=groups, progressbar=False)
    arrays = pa.ARMED.from_arrays(x, data["y"], groups, columns=["a", "b"])
    audit = probe_audit(arrays, x, data["y"], groups=groups, n_probes=1, **quick, progressbar=False)
    assert sorted(audit.table.index) == ["a", "audit1", "b"]


def deviations(data):
    return data["z"] - data.groupby("g")["z"].transform("mean")


def model(data, formula="y ~ x + (1 | g)", **options):
    return pa.ARMED(formula, data, **options)


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (model, {"n_probes": 0}, "n_probes=0"),
        (model, {"noise": 0.0}, "noise=0.0"),
        (model, {"noise": "much"}, "noise='much'"),
        (model, {"factor": "h"}, r"factor='h' is not a grouping factor of the model \(g\)"),
        (model, {"kind": "both"}, "kind='both'"),
        (lambda data: model(data, "y ~ x"), {}, "grouping factor"),
        (lambda data: model(data.assign(audit1=0)), {}, "'audit1'"),
        (lambda data: model(data.assign(y=deviations(data))), {}, "same mean"),
        (lambda data: model(data.assign(y=data["g"]), family="categorical"), {}, "categorical"),
        (lambda data: model(data, network=nn.Linear(1, 1).double()), {}, "cannot be run on an example"),
    ],
)  # fmt: skip
def test_unusable_audits_are_named(make, arguments, message):
    data = confounded(1.0, groups=4, rows=5)
    made = make(data)
    frame = data.assign(**{made.spec.response: made._training.batch.response.numpy()})
    if "audit1" in message:
        frame["audit1"] = 0.0
    if "categorical" in message:
        frame["y"] = data["g"]
    with pytest.raises(ArgumentError, match=message):
        probe_audit(made, frame, **arguments, **QUICK)


def test_images_have_no_probes():
    x, y, groups = np.zeros((8, 1, 4, 4)), np.arange(8.0), {"g": np.arange(8) % 2}
    made = pa.ARMED.from_arrays(x, y, groups, network=nn.Sequential(nn.Flatten(), nn.Linear(16, 1)).double())
    with pytest.raises(ArgumentError, match="not images"):
        probe_audit(made, x, y, groups=groups, **QUICK)


def test_models_without_two_coefficients_are_named():
    data = confounded(1.0, groups=4, rows=5)
    plain = pa.ARMED("y ~ x + (1 | g)", data)
    plain.fit(**{**QUICK, "draws": 5}, log_likelihood=False)
    with pytest.raises(ArgumentError, match="splits no predictor"):
        between_within(plain)
    networked = pa.ARMED("y ~ x + (1 | g)", data, network=pa.networks.MLP(hidden=(2,)), within_between=["x"])
    networked.fit(guide="mean_field", restarts=1, draws=5, epochs=5, progressbar=False)
    with pytest.raises(ArgumentError, match="a linear predictor"):
        between_within(networked)
