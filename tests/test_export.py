"""Exported draws: names, numbers and files, on both lines of ArviZ."""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import arviz as az
import numpy as np
import pandas as pd
import pyro
import pytest
import scipy.special
import scipy.stats
import torch
import xarray as xr
from pyro import poutine
from torch import nn

from pyro_armed import export, families, networks
from pyro_armed.batch import Batch
from pyro_armed.design import Encoded, FormulaDesign
from pyro_armed.errors import ArgumentError
from pyro_armed.export import _idata, _running
from pyro_armed.local import local_parameters
from pyro_armed.module import MixedEffectsModule
from pyro_armed.posterior import Chain, Posterior
from pyro_armed.priors import PriorTable
from pyro_armed.seeds import seeded
from pyro_armed.spec import ModelSpec

ARVIZ_1 = int(az.__version__.split(".")[0]) >= 1
N_ROWS, CHAINS, DRAWS = 24, 2, 30

pytestmark = [
    # A posterior drawn from the prior has heavy tails, which PSIS notices.
    pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto"),
]


def frame() -> pd.DataFrame:
    rng = np.random.default_rng(5)
    n = N_ROWS
    return pd.DataFrame(
        {
            "x": rng.normal(size=n),
            "z": rng.normal(size=n),
            "urban": np.tile(["no", "yes"], n // 2),
            "livch": np.resize(["0", "1", "2+"], n),
            "district": np.resize(["s", "a b", "", "ä/1"], n),
            "site": np.resize([7, 3, 12], n),
            "y": rng.normal(size=n),
            "count": rng.poisson(2.0, size=n),
            "use": np.resize(["n", "y", "y"], n),
            "kind": np.resize(["red", "green", "blue", "red"], n),
            "rating": pd.Categorical(
                np.resize(["low", "mid", "high"], n), categories=["low", "mid", "high"], ordered=True
            ),
            "wins": rng.integers(0, 4, size=n),
            "games": np.full(n, 5),
            "w": np.resize([0.0, 1.0, 2.5], n),
        }
    )


def make(
    formula: str | Sequence[str], family: str = "gaussian", data: pd.DataFrame | None = None, **settings: Any
) -> MixedEffectsModule:
    formulas = [formula] if isinstance(formula, str) else list(formula)
    design = FormulaDesign(formulas, frame() if data is None else data, families.get(family), **settings)
    return MixedEffectsModule(design.spec, PriorTable(design.spec), data=design.training.batch)


def make_network(formula: str, family: str = "gaussian", units: int = 4) -> MixedEffectsModule:
    design = FormulaDesign([formula], frame(), families.get(family), network=True)
    batch = design.training.batch
    assert batch.inputs is not None
    torch.manual_seed(3)
    network = nn.Sequential(
        nn.Linear(batch.inputs.shape[1], units), nn.Dropout(0.5), nn.Tanh(), nn.Linear(units, 1)
    ).double()
    spec = design.spec.with_features(units)
    layer = networks.find_output_layer(network, batch.inputs)
    return MixedEffectsModule(spec, PriorTable(spec), network, layer, batch)


def hand_made(module: MixedEffectsModule, chains: int = CHAINS, draws: int = DRAWS) -> Posterior:
    """Draws from the prior, one call of the model each: no plate of draws as in the exporter."""
    made = []
    for _ in range(chains):
        values = [module.sample_latents(data_of(module)) for _ in range(draws)]
        made.append(Chain(module, {name: torch.stack([v[name] for v in values]) for name in values[0]}))
    return Posterior(made, {"guide": "structured", "inference": "svi", "converged": True})


def data_of(module: MixedEffectsModule) -> Batch:
    assert module.data is not None
    return module.data


def group(idata: Any, name: str) -> xr.Dataset:
    return idata[name].to_dataset() if ARVIZ_1 else idata[name]


def names_of(idata: Any) -> set[str]:
    return set(idata.children) if ARVIZ_1 else set(idata.groups())


def build(module: MixedEffectsModule, **settings: Any) -> Any:
    posterior = hand_made(module)
    return export.build_idata(posterior, data_of(module), **{"prior_draws": 20, "seed": 1, **settings})


# --- names, dimensions, coordinates -------------------------------------------------------------------------


def test_names_dimensions_and_order_follow_bambi() -> None:
    module = make("y ~ x + livch + (1 + urban | district) + (1 | site)")
    posterior = export.posterior_dataset(hand_made(module))
    effect = "district__factor_dim"
    lead = ("chain", "draw")
    assert {name: variable.dims for name, variable in posterior.data_vars.items()} == {
        "Intercept": lead,
        "x": lead,
        "livch": (*lead, "livch_dim"),
        "sigma": lead,
        "1|district_sigma": lead,
        "urban|district_sigma": (*lead, "urban__expr_dim"),
        "1|site_sigma": lead,
        "district_corr": (*lead, "district__effect_dim", "district__effect_dim_bis"),
        "1|district": (*lead, effect),
        "urban|district": (*lead, effect, "urban__expr_dim"),
        "1|site": (*lead, "site__factor_dim"),
    }
    assert list(posterior.data_vars) == [
        "Intercept",
        "x",
        "livch",
        "sigma",
        "1|district_sigma",
        "urban|district_sigma",
        "1|site_sigma",
        "district_corr",
        "1|district",
        "urban|district",
        "1|site",
    ]
    assert posterior["livch_dim"].values.tolist() == ["1", "2+"]
    assert posterior["urban__expr_dim"].values.tolist() == ["yes"]
    assert posterior[effect].values.tolist() == ["", "a b", "s", "ä/1"]
    assert posterior["site__factor_dim"].values.tolist() == [3, 7, 12]
    assert posterior["site__factor_dim"].dtype.kind == "i"
    assert posterior["district__effect_dim"].values.tolist() == ["1", "urban[yes]"]
    assert all(variable.dtype == np.float64 for variable in posterior.data_vars.values())
    assert dict(posterior.sizes) | {"chain": CHAINS, "draw": DRAWS} == dict(posterior.sizes)


def test_labels_in_an_odd_order_keep_their_effects() -> None:
    data = frame()
    order = ["s", "ä/1", "", "a b"]
    data["district"] = pd.Categorical(data["district"], categories=order)
    module = make("y ~ x + (1 | district)", data=data)
    posterior = hand_made(module)
    exported = export.posterior_dataset(posterior)["1|district"]
    assert exported["district__factor_dim"].values.tolist() == order
    for code, label in enumerate(order):
        effect = exported.sel(district__factor_dim=label).values
        assert np.array_equal(effect, np.stack([c.values["1|district"][:, code] for c in posterior.chains]))


def test_intercept_is_reported_at_zero_and_correlations_as_matrices() -> None:
    data = frame().assign(x=lambda d: d["x"] + 10.0)
    module = make("y ~ x + (1 + x | district)", data=data)
    posterior = hand_made(module)
    exported = export.posterior_dataset(posterior)
    for chain, values in enumerate(c.values for c in posterior.chains):
        shift = values["x"] * data["x"].mean()
        assert np.allclose(exported["Intercept"][chain], (values["Intercept"] - shift).numpy())
        factor = values["district_corr"].numpy()
        expected = np.einsum("sij,skj->sik", factor, factor)
        assert np.allclose(exported["district_corr"][chain], expected)
        assert np.allclose(np.diagonal(expected, axis1=1, axis2=2), 1.0)


def test_categorical_response_has_a_last_dimension() -> None:
    module = make("kind ~ x + livch + (1 + livch || district)", "categorical")
    posterior = export.posterior_dataset(hand_made(module))
    last = "kind_reduced_dim"
    assert posterior["x"].dims[2:] == (last,)
    assert posterior["livch"].dims[2:] == ("livch_dim", last)
    assert posterior["livch|district_sigma"].dims[2:] == ("livch__expr_dim", last)
    assert posterior["1|district"].dims[2:] == ("district__factor_dim", last)
    assert posterior["livch|district"].dims[2:] == ("district__factor_dim", "livch__expr_dim", last)
    assert posterior[last].values.tolist() == ["green", "red"]


def test_ordinal_thresholds() -> None:
    module = make("rating ~ x + (1 | district)", "ordinal")
    posterior = export.posterior_dataset(hand_made(module))
    assert posterior["threshold"].dims == ("chain", "draw", "threshold_dim")
    assert "Intercept" not in posterior
    assert (posterior["threshold"].diff("threshold_dim") > 0).all()


def test_auxiliary_predictor_has_prefixed_names() -> None:
    module = make(["y ~ x + (1 | district)", "sigma ~ livch + (1 | site)"])
    posterior = export.posterior_dataset(hand_made(module))
    assert list(posterior.data_vars) == [
        "Intercept",
        "x",
        "sigma_Intercept",
        "sigma_livch",
        "1|district_sigma",
        "sigma_1|site_sigma",
        "1|district",
        "sigma_1|site",
    ]
    assert posterior["sigma_livch"].dims[2:] == ("sigma_livch_dim",)


def test_features_share_one_dimension() -> None:
    module = make_network("y ~ x + z + (1 + features | site)")
    posterior = export.posterior_dataset(hand_made(module))
    assert posterior["features"].dims == ("chain", "draw", "feature")
    assert posterior["features|site"].dims == ("chain", "draw", "site__factor_dim", "feature")
    assert posterior["features|site_sigma"].dims == ("chain", "draw", "feature")
    assert posterior["feature"].values.tolist() == [0, 1, 2, 3]
    assert "x" not in posterior


def test_one_term_with_other_labels_gets_a_dimension_of_its_own() -> None:
    # With an intercept `livch` has two columns, without one it has three.
    module = make("y ~ x + (1 + livch || district) + (0 + livch || site)")
    posterior = export.posterior_dataset(hand_made(module))
    assert posterior["livch|district"].dims[-1] == "livch__expr_dim"
    assert posterior["livch|site"].dims[-1] == posterior["livch|site_sigma"].dims[-1]
    assert posterior["livch|site"].dims[-1] == "livch|site__expr_dim"
    assert posterior["livch|site__expr_dim"].values.tolist() == ["0", "1", "2+"]
    assert not posterior["livch|site"].isnull().any()


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("age", "age"),
        ("1|district", "1|district"),
        ("I(x / 2)", "I(x ÷ 2)"),
        ("`my y`", "my y"),
        ("chain", "chain_"),
        ("draw", "draw_"),
        ("__obs__", "__obs___"),
        (" x ", "x"),
        ("(x)", "_(x)"),
        ("ä", "ä"),
        ("a\nb", "a b"),
        ("", "_"),
    ],
)
def test_variable_names(name: str, safe: str) -> None:
    assert export.variable_name(name) == safe


def test_columns_named_like_dimensions_or_with_slashes_survive(tmp_path: Path) -> None:
    data = frame().rename(columns={"x": "draw", "z": "a/b", "district": "M/F site", "y": "my y"})
    data["district__factor_dim"] = data["draw"] ** 2
    module = make(
        "`my y` ~ draw + `a/b` + I(draw / 2) + district__factor_dim + (1 | `M/F site`) + (1 | site)",
        data=data,
    )
    idata = build(module)
    posterior = group(idata, "posterior")
    assert {"draw_", "a÷b", "I(draw ÷ 2)", "1|M÷F site"} <= set(posterior.data_vars)
    assert posterior["1|M÷F site"].dims[-1] == "M÷F site__factor_dim"
    assert list(group(idata, "log_likelihood").data_vars) == ["my y"]
    assert "M÷F site" in group(idata, "constant_data")
    idata.to_netcdf(str(tmp_path / "names.nc"))


def test_a_column_named_like_a_groups_dimension() -> None:
    data = frame().assign(site__factor_dim=lambda d: d["x"] ** 2)
    posterior = export.posterior_dataset(hand_made(make("y ~ site__factor_dim + (1 | site)", data=data)))
    assert posterior["site__factor_dim_"].dims == ("chain", "draw")
    assert posterior["1|site"]["site__factor_dim"].values.tolist() == [3, 7, 12]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, 1], [0, 1]),
        ([True, False], ["True", "False"]),
        ([1, "1"], ["1", "'1'"]),
        ([1.5, 2.0], ["1.5", "2.0"]),
        ([2**70, 1], [str(2**70), "1"]),
        (["", "b"], ["", "b"]),
    ],
)
def test_labels_become_integers_or_strings(labels: list[Any], expected: list[Any]) -> None:
    from pyro_armed.export._tables import coordinate

    assert coordinate(labels).tolist() == expected


# --- numbers ------------------------------------------------------------------------------------------------

MODELS: dict[str, Callable[[], MixedEffectsModule]] = {
    "gaussian": lambda: make("y ~ x + livch + (1 + urban | district) + (1 | site)"),
    "no terms": lambda: make("y ~ 1 + (1 | site)"),
    "sigma": lambda: make(["y ~ x + (x || district)", "sigma ~ z + (1 | site)"]),
    "student": lambda: make("y ~ x + (1 | site)", "student_t"),
    "bernoulli": lambda: make("use ~ x + (1 | site)", "bernoulli"),
    "binomial": lambda: make("p(wins, games) ~ x + (1 | site)", "binomial"),
    "poisson": lambda: make("count ~ x + offset(z) + (1 | site)", "poisson"),
    "negative binomial": lambda: make("count ~ x + (1 | site)", "negative_binomial"),
    "categorical": lambda: make("kind ~ x + livch + (1 + livch | district)", "categorical"),
    "ordinal": lambda: make("rating ~ x + (1 + x | district)", "ordinal"),
    "weights": lambda: make("y ~ x + (1 | site)", weights="w"),
    "network": lambda: make_network("y ~ x + z + (1 + features | site)").eval(),
}


def traced(module: MixedEffectsModule, batch: Batch, draws: int) -> tuple[Posterior, np.ndarray]:
    """Draws with the log densities that Pyro's own trace of the model gives them, shape (S, N)."""
    values, densities = [], []
    for _ in range(draws):
        # Without validation, since Pyro's scale handler refuses weights of zero.
        with local_parameters(), pyro.validation_enabled(False):
            trace = poutine.trace(module).get_trace(batch)
            trace.compute_log_prob()
            values.append(poutine.replay(module.sample_latents, trace=trace)(batch))
        site = trace.nodes[module.spec.response]
        density = site["unscaled_log_prob"]
        densities.append(density if batch.weights is None else density * batch.weights)
    chain = Chain(module, {name: torch.stack([v[name] for v in values]) for name in values[0]})
    return Posterior([chain]), torch.stack(densities).detach().numpy()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("max_elements", [1, 150, 10**7])
def test_log_likelihood_is_that_of_the_models_trace(name: str, max_elements: int) -> None:
    module = MODELS[name]()
    posterior, expected = traced(module, data_of(module), 5)
    found = export.pointwise(posterior, data_of(module), ("log_likelihood",), max_elements=max_elements)
    variable = found["log_likelihood"][export.variable_name(module.spec.response)]
    assert variable.dims == ("chain", "draw", "__obs__")
    assert np.allclose(variable.values[0], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["gaussian", "weights", "network"])
def test_log_likelihood_of_some_rows_is_not_scaled_to_all(name: str) -> None:
    module = MODELS[name]()
    rows = torch.tensor([5, 0, 11])
    part = data_of(module).select(rows)
    posterior, expected = traced(module, part, 4)
    found = export.pointwise(posterior, part, ("log_likelihood",))["log_likelihood"]["y"].values[0]
    assert np.allclose(found, expected, rtol=1e-9)
    whole = export.pointwise(posterior, data_of(module), ("log_likelihood",))["log_likelihood"]["y"]
    assert np.allclose(found, whole.values[0][:, rows.numpy()], rtol=1e-9)


def test_log_likelihood_by_hand() -> None:
    data = frame()
    module = make("y ~ x + (1 + x | district)", data=data)
    idata = build(module)
    posterior, log_likelihood = group(idata, "posterior"), group(idata, "log_likelihood")["y"]
    labels = xr.DataArray(data["district"].to_numpy(), dims="__obs__")
    x = xr.DataArray(data["x"].to_numpy(), dims="__obs__")
    eta = posterior["Intercept"] + posterior["x"] * x
    eta = eta + posterior["1|district"].sel(district__factor_dim=labels)
    eta = eta + posterior["x|district"].sel(district__factor_dim=labels) * x
    expected = scipy.stats.norm.logpdf(data["y"].to_numpy(), eta.values, posterior["sigma"].values[..., None])
    assert np.allclose(log_likelihood.values, expected)


def test_thresholds_by_hand() -> None:
    data = frame().assign(x=lambda d: d["x"] + 3.0)
    idata = build(make("rating ~ x + (1 | site)", "ordinal", data=data))
    posterior = group(idata, "posterior")
    site = xr.DataArray(data["site"].to_numpy(), dims="__obs__")
    eta = posterior["x"] * xr.DataArray(data["x"].to_numpy(), dims="__obs__")
    eta = eta + posterior["1|site"].sel(site__factor_dim=site)
    below = scipy.special.expit((posterior["threshold"] - eta).transpose(..., "__obs__", "threshold_dim"))
    edges = np.concatenate([np.zeros((*below.shape[:3], 1)), below, np.ones((*below.shape[:3], 1))], axis=-1)
    codes = data["rating"].cat.codes.to_numpy()
    expected = np.take_along_axis(np.diff(edges), codes[None, None, :, None].astype(int), -1)[..., 0]
    found = np.exp(group(idata, "log_likelihood")["rating"].values)
    assert np.allclose(found, expected, atol=1e-12)


def test_rows_of_weight_zero_contribute_nothing() -> None:
    module = make("y ~ x + (1 | site)", weights="w")
    data = data_of(module)
    assert data.response is not None
    broken = data.response.clone()
    broken[data.weights == 0] = torch.inf
    found = export.pointwise(hand_made(module), replace(data, response=broken), ("log_likelihood",))
    values = found["log_likelihood"]["y"].values
    assert (values[..., (data.weights == 0).numpy()] == 0.0).all()
    assert np.isfinite(values).all()


@pytest.mark.parametrize("name", ["gaussian", "binomial", "categorical", "ordinal", "poisson"])
def test_predictive_draws_have_the_distribution_of_the_response(name: str) -> None:
    """Many draws at one parameter value: means and spreads against the family's own."""
    module = MODELS[name]()
    one = hand_made(module, chains=1, draws=1).chains[0]
    same = Chain(module, {key: value.expand(4000, *value.shape[1:]) for key, value in one.values.items()})
    data = data_of(module)
    found = export.pointwise(Posterior([same]), data, ("posterior_predictive",), seed=2)
    draws = found["posterior_predictive"][export.variable_name(module.spec.response)].values[0]
    spec = module.spec
    values = next(one.chunks(1))
    etas = {p.parameter: module.linear_predictor(p, values, data) for p in spec.predictors}
    if spec.family.response in ("categorical", "ordinal"):
        expected = spec.family.mean(etas["mu"], **module.auxiliaries(etas, values))[0].numpy()
        frequencies = np.stack([(draws == k).mean(0) for k in range(expected.shape[1])], axis=1)
        assert np.abs(frequencies - expected).max() < 0.04
    else:
        distribution = module.response_distribution(etas, values, data)
        mean, sd = distribution.mean[0].numpy(), distribution.variance[0].sqrt().numpy()
        assert (np.abs(draws.mean(0) - mean) <= 4.5 * sd / np.sqrt(4000) + 1e-9).all()
        assert np.allclose(draws.std(0), sd, rtol=0.2, atol=0.05)


@pytest.mark.parametrize(("name", "kind"), [("gaussian", "f"), ("bernoulli", "i"), ("categorical", "i")])
def test_predictive_draws_and_observations_are_of_one_type(name: str, kind: str) -> None:
    idata = build(MODELS[name]())
    for part in ("posterior_predictive", "prior_predictive", "observed_data"):
        (variable,) = group(idata, part).data_vars.values()
        assert variable.dtype.kind == kind
    assert group(idata, "posterior_predictive").sizes == {"chain": CHAINS, "draw": DRAWS, "__obs__": N_ROWS}
    assert group(idata, "prior_predictive").sizes == {"chain": 1, "draw": 20, "__obs__": N_ROWS}


def test_overflowing_counts_stay_large() -> None:
    module = make("count ~ x + (1 | site)", "poisson")
    posterior = hand_made(module, chains=1, draws=3)
    posterior.chains[0].values["Intercept"] = torch.tensor([3.0, 60.0, 1000.0], dtype=torch.float64)
    found = export.pointwise(posterior, data_of(module), ("posterior_predictive",))
    draws = found["posterior_predictive"]["count"].values[0]
    assert (draws[0] < 2**53).all()
    # Poisson draws around the largest rate that torch can draw from.
    assert np.allclose(draws[1:].astype(float), 2.0**53, rtol=1e-6)


def test_prior_draws_have_the_priors_quantiles() -> None:
    module = make("y ~ x + (1 | site)")
    prior = export.prior_dataset(module, 4000, seed=0)
    assert prior.sizes["chain"] == 1
    scale = module.spec.response_scale
    x = data_of(module).columns["mu"][:, 0]
    assert float(x.std(unbiased=False)) == pytest.approx(1.0)
    sd_x = frame()["x"].std(ddof=0)
    assert scipy.stats.kstest(prior["x"].values[0], scipy.stats.norm(0, 2.5 * scale / sd_x).cdf).pvalue > 1e-3
    half_t = scipy.stats.t(3, scale=2.5 * scale)
    found = scipy.stats.kstest(prior["1|site_sigma"].values[0], lambda v: 2 * half_t.cdf(v) - 1)
    assert found.pvalue > 1e-3
    ratio = prior["1|site"] / prior["1|site_sigma"]
    assert scipy.stats.kstest(ratio.isel(site__factor_dim=1).values[0], scipy.stats.norm.cdf).pvalue > 1e-3
    corr = np.corrcoef(ratio.values[0].T)
    assert np.abs(corr - np.eye(3)).max() < 0.06


@pytest.mark.parametrize("name", MODELS)
def test_prior_is_laid_out_like_the_posterior(name: str) -> None:
    module = MODELS[name]()
    posterior, prior = export.posterior_dataset(hand_made(module)), export.prior_dataset(module, 7, seed=3)
    assert {k: v.dims for k, v in posterior.data_vars.items()} == {
        k: v.dims for k, v in prior.data_vars.items()
    }
    drop = {"chain", "draw"}
    for dim in set(posterior.dims) - drop:
        assert np.array_equal(posterior[dim].values, prior[dim].values)


def test_weighted_prior_predictive_is_that_of_single_rows() -> None:
    weighted = build(make("y ~ x + (1 | site)", weights="w"))
    module = make("y ~ x + (1 | site)", weights="w")
    assert module.data is not None
    module.data = replace(module.data, weights=None)
    plain = build(module)
    assert np.array_equal(group(weighted, "prior_predictive")["y"], group(plain, "prior_predictive")["y"])


def test_networks_are_run_in_evaluation_mode_and_put_back() -> None:
    module = make_network("y ~ x + z + (1 | site)")
    module.train()
    assert module.network is not None
    module.network[2].eval()
    before = [(name, part.training) for name, part in module.named_modules()]
    posterior = hand_made(module)
    gradients: list[bool] = []
    hook = module.network[0].register_forward_hook(lambda *_: gradients.append(torch.is_grad_enabled()))
    first, second = (
        export.pointwise(posterior, data_of(module), ("log_likelihood",), seed=seed)["log_likelihood"]
        for seed in (1, 2)
    )
    hook.remove()
    assert first.equals(second)  # dropout would differ
    assert gradients == [False] * (2 * CHAINS)
    assert [(name, part.training) for name, part in module.named_modules()] == before
    assert all(p.grad is None for p in module.parameters())


def test_network_rows_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyro_armed import passes

    module = make_network("y ~ x + z + (1 + features | site)")
    posterior = hand_made(module)
    whole = export.pointwise(posterior, data_of(module), ("log_likelihood",))["log_likelihood"]
    monkeypatch.setattr(passes, "_INPUTS", 10)  # five rows of two columns
    pieces = export.pointwise(posterior, data_of(module), ("log_likelihood",))["log_likelihood"]
    xr.testing.assert_allclose(whole, pieces, rtol=1e-12)


def test_chains_use_their_own_networks() -> None:
    first, second = make_network("y ~ x + z + (1 | site)"), make_network("y ~ x + z + (1 | site)")
    assert second.network is not None
    with torch.no_grad():
        for parameter in second.network.parameters():
            parameter.mul_(-3.0).add_(0.5)
    values = hand_made(first, chains=1).chains[0].values
    both = Posterior([Chain(first, values), Chain(second, values)])
    found = export.pointwise(both, data_of(first), ("log_likelihood",))["log_likelihood"]["y"]
    alone = export.pointwise(Posterior([Chain(second, values)]), data_of(first), ("log_likelihood",))
    assert np.array_equal(found.values[1], alone["log_likelihood"]["y"].values[0])
    assert not np.allclose(found.values[0], found.values[1])


# --- seeds and states ---------------------------------------------------------------------------------------


def test_exporting_twice_gives_the_same_numbers_and_moves_no_state(
    unmoved_rng: Callable[[], AbstractContextManager[None]],
) -> None:
    module = make("kind ~ x + (1 + x | district)", "categorical")
    posterior = hand_made(module)
    with unmoved_rng():
        one = export.build_idata(posterior, data_of(module), seed=4, prior_draws=10)
        three = export.build_idata(posterior, data_of(module), seed=5, prior_draws=10)
    torch.manual_seed(99)
    two = export.build_idata(posterior, data_of(module), seed=4, prior_draws=10)
    for name in names_of(one):
        assert group(one, name).equals(group(two, name))
    for name in ("prior", "prior_predictive", "posterior_predictive"):
        assert not group(one, name).equals(group(three, name))
    for name in ("posterior", "log_likelihood"):
        assert group(one, name).equals(group(three, name))


def test_what_is_asked_for_besides_does_not_change_the_draws() -> None:
    module = make("y ~ x + (1 | site)")
    posterior = hand_made(module)
    alone = export.pointwise(posterior, data_of(module), ("posterior_predictive",), seed=1)
    both = export.pointwise(posterior, data_of(module), seed=1)
    assert alone["posterior_predictive"].equals(both["posterior_predictive"])


def test_chains_have_predictive_draws_of_their_own() -> None:
    module = make("y ~ x + (1 | site)")
    chain = hand_made(module, chains=1).chains[0]
    found = export.pointwise(Posterior([chain, chain]), data_of(module), ("posterior_predictive",))
    draws = found["posterior_predictive"]["y"].values
    assert not np.isclose(draws[0], draws[1]).any()


def test_model_is_left_as_it_was() -> None:
    module = make("y ~ x + (1 | site)")
    posterior = hand_made(module)
    before = {name: value.clone() for name, value in posterior.chains[0].values.items()}
    export.build_idata(posterior, data_of(module), prior_draws=5)
    assert all(torch.equal(before[name], value) for name, value in posterior.chains[0].values.items())
    assert torch.is_grad_enabled()


# --- rows, statistics, attributes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (None, list(range(N_ROWS))),
        ([f"row {i}" for i in range(N_ROWS)], [f"row {i}" for i in range(N_ROWS)]),
        (list(range(100, 100 + N_ROWS)), list(range(100, 100 + N_ROWS))),
        (["twice"] * N_ROWS, list(range(N_ROWS))),
        ([None, *range(N_ROWS - 1)], list(range(N_ROWS))),
        (
            pd.MultiIndex.from_product([["a", "b"], range(N_ROWS // 2)]),
            [str((a, i)) for a in "ab" for i in range(N_ROWS // 2)],
        ),
    ],
)
def test_row_coordinates(index: Any, expected: list[Any]) -> None:
    idata = build(make("y ~ x + (1 | site)"), index=index)
    for name in ("log_likelihood", "posterior_predictive", "observed_data", "constant_data"):
        assert group(idata, name)["__obs__"].values.tolist() == expected


def test_dates_are_row_coordinates_too(tmp_path: Path) -> None:
    dates = pd.date_range("2020-01-01", periods=N_ROWS)
    idata = build(make("y ~ x + (1 | site)"), index=dates)
    idata.to_netcdf(str(tmp_path / "dates.nc"))
    read = az.from_netcdf(str(tmp_path / "dates.nc"))
    assert (pd.DatetimeIndex(group(read, "observed_data")["__obs__"].values) == dates).all()


def test_observed_and_constant_data() -> None:
    data = frame()
    module = make("p(wins, games) ~ x + offset(z) + (1 | district) + (1 | site)", "binomial", weights="w")
    idata = build(module)
    (observed,) = group(idata, "observed_data").data_vars.values()
    assert np.array_equal(observed, data["wins"])
    constant = group(idata, "constant_data")
    assert constant["district"].values.tolist() == data["district"].tolist()
    assert constant["site"].values.tolist() == data["site"].tolist()
    assert np.array_equal(constant["trials"], data["games"])
    assert np.array_equal(constant["weights"], data["w"])
    assert np.allclose(constant["offset"], data["z"])


def test_codes_of_levels_are_explained() -> None:
    idata = build(make("rating ~ x + (1 | site)", "ordinal"))
    observed = group(idata, "observed_data")
    assert list(observed.attrs["levels"]) == ["low", "mid", "high"]
    assert np.array_equal(observed["rating"], frame()["rating"].cat.codes)


def test_sample_statistics() -> None:
    module = make("y ~ x + (1 | site)")
    posterior = hand_made(module)
    first, second = posterior.chains
    first.stats = {"log_weight": torch.arange(DRAWS, dtype=torch.float64)}
    second.stats = {"log_weight": -torch.ones(DRAWS), "diverging": torch.zeros(DRAWS, dtype=torch.bool)}
    first.trace, second.trace = torch.tensor([3.0, 2.0, 1.0]), torch.tensor([5.0])
    stats = export.sample_stats_dataset(posterior)
    assert stats["log_weight"].dims == ("chain", "draw")
    assert np.array_equal(stats["log_weight"].values, [np.arange(DRAWS), -np.ones(DRAWS)])
    assert np.isnan(stats["diverging"].values[0]).all()
    assert stats["elbo"].dims == ("chain", "step")
    assert np.array_equal(stats["elbo"].values, [[3, 2, 1], [5, np.nan, np.nan]], equal_nan=True)


def test_divergences_stay_booleans_and_no_statistics_no_group() -> None:
    module = make("y ~ x + (1 | site)")
    posterior = hand_made(module)
    assert not export.sample_stats_dataset(posterior).data_vars
    assert "sample_stats" not in names_of(export.build_idata(posterior, data_of(module), prior_draws=0))
    for chain in posterior.chains:
        chain.stats = {"diverging": torch.zeros(DRAWS, dtype=torch.bool)}
    assert export.sample_stats_dataset(posterior)["diverging"].dtype == bool


def test_attributes() -> None:
    idata = build(make("use ~ x + (1 | site)", "bernoulli"), attributes={"formula": "use ~ x", "none": None})
    for attrs in (idata.attrs, group(idata, "posterior").attrs, group(idata, "observed_data").attrs):
        assert attrs["inference_library"] == "pyro_armed"
        assert attrs["formula"] == "use ~ x"
        assert (attrs["family"], attrs["link"], attrs["response"]) == ("bernoulli", "logit", "use")
        assert (attrs["guide"], attrs["inference"], attrs["seed"]) == ("structured", "svi", 1)
        assert attrs["converged"] == 1
        assert type(attrs["converged"]) is int
        assert attrs["none"] == "None"
        assert attrs["pyro_version"] == pyro.__version__
        assert attrs["arviz_version"] == az.__version__
        assert pd.Timestamp(attrs["created_at"]).tz is not None
        assert "omitted_groups" not in attrs


def test_attributes_become_what_netcdf_can_hold(tmp_path: Path) -> None:
    awkward = {
        "bool": True,
        "none": None,
        "dict": {"a": {"b": 1}, "c": None},
        "path": Path("x"),
        "tensor": torch.tensor(2.5),
        "array": np.array([1, 2]),
        "mixed": [1, "a"],
        "bools": [True, False],
        "empty": [],
        "huge": 2**70,
        "dtype": torch.float64,
        "np": np.float32(0.5),
        "a/b": "slash",
        "": "nameless",
    }
    data = xr.Dataset({"m": (("chain", "draw"), np.zeros((1, 2)))}, attrs={"own": False})
    idata = export.to_arviz({"posterior": data}, awkward)
    attrs = group(idata, "posterior").attrs
    assert (attrs["bool"], attrs["none"], attrs["own"]) == (1, "None", 0)
    assert json.loads(attrs["dict"]) == awkward["dict"]
    assert (attrs["tensor"], attrs["np"], attrs["huge"]) == (2.5, 0.5, str(2**70))
    assert (attrs["array"], attrs["bools"], attrs["empty"]) == ([1, 2], [1, 0], "[]")
    idata.to_netcdf(str(tmp_path / "a.nc"))
    assert az.from_netcdf(str(tmp_path / "a.nc"))["posterior"].attrs["dict"] == attrs["dict"]


def test_large_groups_are_left_out_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module = make("y ~ x + (1 | site)")
    monkeypatch.setattr(_idata, "MAX_POINTWISE", CHAINS * DRAWS * N_ROWS)
    assert {"log_likelihood", "posterior_predictive"} <= names_of(build(module))
    monkeypatch.setattr(_idata, "MAX_POINTWISE", CHAINS * DRAWS * N_ROWS - 1)
    idata = build(module)
    assert not {"log_likelihood", "posterior_predictive"} & names_of(idata)
    assert "prior_predictive" in names_of(idata)
    assert idata.attrs["omitted_groups"] == "posterior_predictive, log_likelihood"
    assert {"log_likelihood", "posterior_predictive"} <= names_of(build(module, log_likelihood=True))
    monkeypatch.setattr(_idata, "MAX_POINTWISE", 10)
    idata = build(module)
    assert "prior" in names_of(idata)
    assert "prior_predictive" not in names_of(idata)
    assert "prior_predictive" in idata.attrs["omitted_groups"]
    assert "prior_predictive" in names_of(build(module, log_likelihood=True))


def test_groups_on_request() -> None:
    module = make("y ~ x + (1 | site)")
    small = build(module, log_likelihood=False, prior_draws=0)
    assert names_of(small) == {"posterior", "observed_data", "constant_data"}
    assert small.attrs["omitted_groups"] == "posterior_predictive, log_likelihood"
    assert names_of(build(module)) == {
        "posterior",
        "posterior_predictive",
        "log_likelihood",
        "prior",
        "prior_predictive",
        "observed_data",
        "constant_data",
    }


# --- ArviZ --------------------------------------------------------------------------------------------------


def test_line_of_arviz() -> None:
    idata = build(make("y ~ x + (1 | site)"))
    if ARVIZ_1:
        assert type(idata) is xr.DataTree
        assert not idata.to_dataset().coords
        assert not idata.to_dataset().data_vars
    else:
        assert type(idata) is az.InferenceData


@pytest.mark.parametrize("name", MODELS)
def test_files_give_back_what_was_written(name: str, tmp_path: Path) -> None:
    idata = build(MODELS[name]())
    path = str(tmp_path / "fit.nc")
    idata.to_netcdf(path)
    read = az.from_netcdf(path)
    assert names_of(read) == names_of(idata)
    for part in names_of(idata):
        xr.testing.assert_equal(group(read, part), group(idata, part))
        attrs, written = group(read, part).attrs, group(idata, part).attrs
        assert {k: np.asarray(v).tolist() for k, v in attrs.items()} == written
    assert dict(read.attrs) == dict(idata.attrs)


@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
def test_both_netcdf_engines(engine: str, tmp_path: Path) -> None:
    pytest.importorskip("netCDF4" if engine == "netcdf4" else engine)
    idata = build(make("y ~ I(x / 2) + (1 + urban | district)"))
    idata.to_netcdf(str(tmp_path / "fit.nc"), engine=engine)
    read = az.from_netcdf(str(tmp_path / "fit.nc"), engine=engine)
    xr.testing.assert_equal(group(read, "posterior"), group(idata, "posterior"))


@pytest.mark.parametrize("name", ["gaussian", "categorical", "ordinal", "network", "weights"])
def test_summary(name: str) -> None:
    module = MODELS[name]()
    idata = build(module)
    labels = group(idata, "posterior").copy()
    # Correlations of an effect with itself are 1 in every draw, which has no R-hat.
    kept = [str(v) for v in labels.data_vars if not str(v).endswith("_corr")]
    table = az.summary(idata, var_names=kept)
    assert np.isfinite(table["mean"].astype(float)).all()
    expected = sum(int(np.prod(labels[v].shape[2:])) for v in kept)
    assert len(table) == expected
    assert any(row.startswith("1|") for row in table.index)


@pytest.mark.filterwarnings(
    "ignore:(invalid value|divide by zero) encountered:RuntimeWarning"
)  # R-hat of ones
def test_summary_of_everything() -> None:
    table = az.summary(build(MODELS["gaussian"]()))
    assert "1|district[a b]" in table.index
    assert "1|site[12]" in table.index
    assert any(row.startswith("district_corr[1, urban[yes]") for row in table.index)


@pytest.mark.parametrize("name", ["gaussian", "bernoulli", "categorical"])
def test_loo(name: str) -> None:
    module = MODELS[name]()
    start = hand_made(module, chains=1, draws=1).chains[0].values
    # Narrow draws, so that leaving a row out changes little.
    narrow = [
        {
            k: v if k.endswith("_corr") else v * (1 + 0.01 * torch.randn(100, *v.shape[1:]))
            for k, v in start.items()
        }
        for _ in range(CHAINS)
    ]
    posterior = Posterior(
        [Chain(module, {k: v.expand(100, *v.shape[1:]) for k, v in n.items()}) for n in narrow]
    )
    idata = export.build_idata(posterior, data_of(module), prior_draws=0)
    found = az.loo(idata)
    density = group(idata, "log_likelihood")[module.spec.response].values.reshape(-1, N_ROWS)
    harmonic = -(scipy.special.logsumexp(-density, axis=0) - np.log(len(density)))
    elpd = float(found.elpd if ARVIZ_1 else found.elpd_loo)
    assert elpd == pytest.approx(harmonic.sum(), rel=0.05)


def test_forest_and_predictive_plots() -> None:
    idata = build(MODELS["gaussian"]())
    az.plot_forest(idata, var_names=["1|district"])
    az.plot_forest(idata, var_names=["urban|district_sigma", "1|site"])
    counts = build(MODELS["bernoulli"]())
    if ARVIZ_1:
        az.plot_ppc_dist(idata)
        az.plot_ppc_rootogram(build(MODELS["binomial"]()))
    else:
        az.plot_ppc(idata, num_pp_samples=5)
        az.plot_ppc(counts, num_pp_samples=5)
        az.plot_ppc(counts, group="prior", num_pp_samples=5)


# --- predictions --------------------------------------------------------------------------------------------


def predictions(spec: ModelSpec, values: torch.Tensor, **settings: Any) -> tuple[xr.Dataset, xr.Dataset]:
    codes = torch.tensor([0, 3, 4, 1, 3])
    batch = Batch(size=5, n_rows=5, codes={"district": codes})
    encoded = Encoded(batch, {"district": ["new", "newer"]}, np.array([10, 11, 12, 14, 15]))
    if spec.group("district").size == 4:
        batch.codes["district"][:] = torch.tensor([0, 4, 5, 1, 4])
    idata = export.prediction_idata(spec, encoded, values, **{"mode": "marginal", "seed": 0, **settings})
    return group(idata, "predictions"), group(idata, "predictions_constant_data")


def test_predictions_say_what_each_row_got() -> None:
    spec = make("y ~ x + (1 | district)").spec
    found, constant = predictions(spec, torch.randn(2, 6, 5), kind="mean")
    assert found["y"].dims == ("chain", "draw", "__obs__")
    assert found["__obs__"].values.tolist() == [10, 11, 12, 14, 15]
    assert constant["district"].values.tolist() == ["", "new", "newer", "a b", "new"]
    assert constant["district_new_groups"].values.tolist() == [
        "seen",
        "marginal",
        "marginal",
        "seen",
        "marginal",
    ]
    assert (found.attrs["kind"], found.attrs["new_groups"], found.attrs["seed"]) == ("mean", "marginal", 0)


def test_predictions_of_levels() -> None:
    spec = make("kind ~ x + (1 | district)", "categorical").spec
    mean, _ = predictions(spec, torch.rand(1, 6, 5, 3), kind="mean")
    assert mean["kind"].dims[-1] == "kind_dim"
    assert mean["kind_dim"].values.tolist() == ["blue", "green", "red"]
    linear, _ = predictions(spec, torch.rand(1, 6, 5, 2), kind="linear")
    assert linear["kind_reduced_dim"].values.tolist() == ["green", "red"]
    response, _ = predictions(spec, torch.ones(1, 6, 5), kind="response")
    assert response["kind"].dtype.kind == "i"


# --- errors -------------------------------------------------------------------------------------------------


def test_errors_say_what_to_do() -> None:
    module = make("y ~ x + (1 | site)")
    data, posterior = data_of(module), hand_made(module)
    with pytest.raises(ArgumentError, match=r"log_likelihood='yes' must be True, False or 'auto'"):
        export.build_idata(posterior, data, log_likelihood="yes")
    with pytest.raises(ArgumentError, match="what='waic' is not one of"):
        export.pointwise(posterior, data, ("waic",))
    with pytest.raises(ArgumentError, match="needs responses"):
        export.pointwise(posterior, data.without_response())
    with pytest.raises(ArgumentError, match=r"index has 2 labels for 24 rows"):
        export.build_idata(posterior, data, index=[1, 2])
    with pytest.raises(ArgumentError, match="prior_draws=-1"):
        export.build_idata(posterior, data, prior_draws=-1)
    with pytest.raises(ArgumentError, match="no chains"):
        export.posterior_dataset(Posterior([]))
    uneven = Posterior([posterior.chains[0], hand_made(module, 1, 3).chains[0]])
    with pytest.raises(ArgumentError, match="chains with 3, 30 draws"):
        export.build_idata(uneven, data)


def fail_while_running(module: MixedEffectsModule) -> None:
    with _running.evaluating(module), seeded(0, [torch.device("cpu")]):
        torch.rand(3)
        raise RuntimeError("stop")


def test_states_come_back_after_an_error(unmoved_rng: Callable[[], AbstractContextManager[None]]) -> None:
    module = make_network("y ~ x + z + (1 | site)").train()
    rng = unmoved_rng()
    with rng, pytest.raises(RuntimeError, match="stop"):
        fail_while_running(module)
    assert module.network is not None
    assert module.network.training
    assert torch.is_grad_enabled()
