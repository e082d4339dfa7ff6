"""NUTS: its density against Pyro's own, its draws against numerical integration and reference figures."""

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.mcmc.util import initialize_model
from scipy import stats
from torch import nn
from torch.distributions import biject_to

import pyro_armed as pa
from pyro_armed import families, sampling
from pyro_armed.batch import Batch
from pyro_armed.errors import ArgumentError, ConvergenceWarning, DataError
from pyro_armed.families import Gaussian
from pyro_armed.local import local_parameters
from pyro_armed.module import MixedEffectsModule
from pyro_armed.sampling import CONDITIONS_ON, Density, sample_nuts
from pyro_armed.sampling._graph import recorded

REFERENCE = json.loads((Path(__file__).parent / "reference" / "nuts.json").read_text())["fits"]
QUIET = {"progressbar": False}


def model_of(formula: Any, frame: pd.DataFrame, **options: Any) -> tuple[MixedEffectsModule, Batch]:
    module = pa.ARMED(formula, frame, **options).module
    assert module.data is not None
    return module, module.data


def small(**options: Any) -> tuple[MixedEffectsModule, Batch]:
    return model_of("y ~ x1 + (1 | group)", pa.simulate.mixed_model(4, 6, seed=0).frame, **options)


def frame_for(family: str) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    n = 40
    frame = pd.DataFrame({"x": rng.normal(size=n), "g": rng.integers(0, 4, n), "h": rng.integers(0, 3, n)})
    responses = {
        "gaussian": lambda: rng.normal(size=n),
        "student_t": lambda: rng.standard_t(4, size=n),
        "bernoulli": lambda: rng.integers(0, 2, n),
        "binomial": lambda: rng.integers(0, 5, n),
        "categorical": lambda: np.array(["a", "b", "c"])[np.arange(n) % 3],
        "ordinal": lambda: np.arange(n) % 4,
        "poisson": lambda: rng.poisson(2.0, n),
        "negative_binomial": lambda: rng.poisson(2.0, n),
        "gamma": lambda: rng.gamma(2.0, size=n),
        "beta": lambda: rng.beta(2.0, 2.0, size=n),
    }
    return frame.assign(y=responses[family](), n=4, w=rng.uniform(0.5, 2.0, n))


MODELS = {
    **{name: ("y ~ x + (1 | g)", name, {}) for name in families.FAMILIES if name != "binomial"},
    "binomial": ("p(y, n) ~ x + (1 | g)", "binomial", {}),
    "correlated": ("y ~ x + (1 + x | g) + (1 | h)", "gaussian", {}),
    "correlated categorical": ("y ~ x + (1 + x | g)", "categorical", {}),
    "distributional": (["y ~ x + (1 | g)", "sigma ~ x + (1 | h)"], "gaussian", {}),
    "weighted": ("y ~ x + (1 | g)", "poisson", {"weights": "w"}),
    "own priors": (
        "y ~ x + (1 | g)",
        "gaussian",
        {
            "priors": {
                "x": dist.Uniform(-3.0, 3.0),
                "1|g_sigma": dist.Gamma(2.0, 1.0),
                "sigma": dist.LogNormal(0.0, 1.0),
            }
        },
    ),
}


# --- the density -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_density_is_that_of_the_pyro_model(name: str) -> None:
    """Against `pyro.infer`'s potential, which knows nothing of this library."""
    formula, family, options = MODELS[name]
    module, data = model_of(formula, frame_for(family), family=family, **options)
    density = Density(module, data)
    assert density.compiled
    with local_parameters(), pyro.validation_enabled(False):
        _, potential, _, _ = initialize_model(module, (data,))
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        point = density.start + 0.5 * torch.randn(
            density.start.shape, generator=generator, dtype=torch.float64
        )
        point.requires_grad_(True)
        sizes = [site.unconstrained.numel() for site in density.sites]
        parts = {
            site.name: part.reshape(site.unconstrained)
            for site, part in zip(density.sites, point.split(sizes), strict=True)
        }
        with local_parameters(), pyro.validation_enabled(False):
            expected = potential(parts)
            (gradient,) = torch.autograd.grad(expected, point)
        value, found = density.negative(point.detach())
        torch.testing.assert_close(value, expected.detach(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found, gradient, rtol=1e-7, atol=1e-9)


def test_gradient_is_the_slope_of_the_value() -> None:
    module, data = model_of("y ~ x + (1 + x | g)", frame_for("gaussian"))
    density = Density(module, data)
    point = density.start + 0.1
    _, gradient = density.negative(point)
    for i in range(len(point)):
        step = torch.zeros_like(point)
        step[i] = 1e-5
        slope = (density.negative(point + step)[0] - density.negative(point - step)[0]) / 2e-5
        assert float(slope) == pytest.approx(float(gradient[i]), rel=1e-5, abs=1e-5)


def test_a_recording_does_not_change_with_use() -> None:
    density = Density(*model_of("y ~ x + (1 + x | g)", frame_for("gaussian")))
    first = density.negative(density.start)
    for shift in (0.5, -1.0, 2.0):
        density.negative(density.start + shift)
    again = density.negative(density.start)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


def test_weights_count_rows() -> None:
    """A row of weight two adds what the row twice adds."""
    module, data = model_of("y ~ x + (1 | g)", frame_for("gaussian"))
    twice = data.select(torch.cat([torch.arange(40), torch.arange(10)]))
    doubled = replace(twice, rows=None, n_rows=50)
    weighted = replace(data, weights=torch.where(torch.arange(40) < 10, 2.0, 1.0).double())
    values = [Density(module, rows, record=False).negative for rows in (doubled, weighted, data)]
    point = Density(module, data, record=False).start + 0.2
    assert float(values[0](point)[0]) == pytest.approx(float(values[1](point)[0]), rel=1e-12)
    assert float(values[0](point)[0]) != pytest.approx(float(values[2](point)[0]), rel=1e-3)


def test_what_cannot_be_recorded_is_evaluated_through_pyro() -> None:
    class Odd(Gaussian):
        name = "odd"

        def distribution(self, mu: torch.Tensor, sigma: torch.Tensor) -> Any:  # type: ignore[override]
            return dist.Normal(mu, sigma) if float(mu.detach().mean()) < 1e6 else dist.Normal(mu, 2 * sigma)

    module, data = small(family=Odd())
    odd, plain = Density(module, data), Density(*small())
    assert not odd.compiled
    assert plain.compiled
    point = plain.start + 0.1
    for one, other in zip(odd.negative(point), plain.negative(point), strict=True):
        torch.testing.assert_close(one, other)


def test_recordings_that_would_be_wrong_are_refused() -> None:
    assert recorded(lambda x: (x.sum(), torch.rand(2, dtype=x.dtype)), torch.zeros(2)) is None
    assert recorded(lambda x: (x.exp() if x.sum() > 0 else x,), torch.zeros(2)) is None

    def in_place(x: torch.Tensor) -> tuple[torch.Tensor]:
        table = torch.zeros(3, dtype=x.dtype)
        table.view(-1)[1:].add_(x)
        return (table * 1.0 + 0.0,)

    graph = recorded(in_place, torch.zeros(2))
    assert graph is not None
    for _ in range(3):
        assert graph(torch.ones(2))[0].tolist() == [0.0, 1.0, 1.0]


def test_values_are_those_of_the_model() -> None:
    """Drawn one by one through Pyro's handlers."""
    module, data = model_of(["y ~ x + (1 + x | g)", "sigma ~ x + (1 | h)"], frame_for("gaussian"))
    density = Density(module, data)
    points = density.start + 0.3 * torch.randn(5, len(density.start), dtype=torch.float64)
    values = density.values(points)
    sizes = [site.unconstrained.numel() for site in density.sites]
    for draw, point in enumerate(points):
        sites = {
            site.name: biject_to(site.support)(part.reshape(site.unconstrained))
            for site, part in zip(density.sites, point.split(sizes), strict=True)
        }
        with torch.no_grad(), local_parameters():
            expected = pyro.poutine.condition(module.sample_latents, data=sites)(data)
        assert values.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(values[name][draw], value)


# --- chains ------------------------------------------------------------------------------------------------


def test_draws_against_numerical_integration() -> None:
    """Mean and noise of ten numbers: the posterior on a grid, priors as documented."""
    y = np.random.default_rng(1).normal(3.0, 2.0, size=10)
    module, data = model_of("y ~ 1", pd.DataFrame({"y": y}))
    posterior = sample_nuts(module, data, draws=800, warmup=200, chains=1, seed=4, **QUIET)
    s = y.std()
    mu, log_sigma = np.meshgrid(np.linspace(y.mean() - 6, y.mean() + 6, 400), np.linspace(-1, 3, 400))
    sigma = np.exp(log_sigma)
    log_density = (
        stats.norm.logpdf(y[:, None, None], mu, sigma).sum(0)
        + stats.norm.logpdf(mu, y.mean(), 2.5 * s)
        + stats.t.logpdf(sigma / s, 4)
        + log_sigma
    )
    weight = np.exp(log_density - log_density.max())
    weight /= weight.sum()
    reports = [chain.report() for chain in posterior.chains]
    for name, grid in (("Intercept", mu), ("sigma", sigma)):
        draws = torch.cat([report[name] for report in reports]).numpy()
        mean = float((weight * grid).sum())
        sd = float(np.sqrt((weight * (grid - mean) ** 2).sum()))
        # The draws are worth at least 200 independent ones: five standard errors.
        assert draws.mean() == pytest.approx(mean, abs=5 * sd / math.sqrt(200))
        assert draws.std() == pytest.approx(sd, rel=5 / math.sqrt(2 * 100))


# By the processor's rounding a draw or two of so short a run may diverge.
@pytest.mark.filterwarnings("ignore::pyro_armed.errors.ConvergenceWarning")
def test_statistics() -> None:
    module, data = small()
    posterior = sample_nuts(module, data, draws=100, warmup=150, chains=1, **QUIET)
    (chain,) = posterior.chains
    names = {"lp", "energy", "acceptance_rate", "diverging", "n_steps", "tree_depth", "step_size"}
    assert chain.stats.keys() == names
    assert all(value.shape == (100,) for value in chain.stats.values())
    assert chain.stats["diverging"].dtype == torch.bool
    assert ((chain.stats["acceptance_rate"] >= 0) & (chain.stats["acceptance_rate"] <= 1 + 1e-9)).all()
    assert float(chain.stats["acceptance_rate"].mean()) > 0.75
    assert (2.0 ** chain.stats["tree_depth"] - 1 >= chain.stats["n_steps"]).all()
    assert (2.0 ** (chain.stats["tree_depth"] - 1) - 1 < chain.stats["n_steps"]).all()
    assert (chain.stats["step_size"] == chain.stats["step_size"][0]).all()
    # The energy is minus the log density at the trajectory's start, and a kinetic part of D / 2 on average.
    kinetic = chain.stats["energy"][1:] + chain.stats["lp"][:-1]
    size = len(Density(module, data, record=False).start)
    assert (kinetic > 0).all()
    assert float(kinetic.mean()) == pytest.approx(size / 2, rel=0.2)
    assert chain.trace.numel() == 0
    assert posterior.attributes["inference"] == "nuts"
    assert posterior.attributes["divergences"] == int(chain.stats["diverging"].sum()) <= 5
    assert "conditions_on" not in posterior.attributes


def test_lp_is_the_log_density_of_the_draws() -> None:
    module, data = small()
    posterior = sample_nuts(module, data, draws=4, warmup=30, chains=1, **QUIET)
    density, chain = Density(module, data, record=False), posterior.chains[0]
    spread = module.priors["x1"]
    values = chain.values
    for draw in range(4):
        raw = {
            "x1_raw": (values["x1"][draw] - spread.shift) / spread.unit,
            "Intercept_raw": (values["Intercept"][draw] - module.priors["Intercept"].shift)
            / module.priors["Intercept"].unit,
            "sigma": values["sigma"][draw].log(),
            "1|group_sigma": values["1|group_sigma"][draw].log(),
            "1|group_offset": values["1|group"][draw] / values["1|group_sigma"][draw],
        }
        point = torch.cat([raw[site.name].reshape(-1) for site in density.sites])
        assert float(-density.negative(point)[0]) == pytest.approx(float(chain.stats["lp"][draw]), rel=1e-9)


def test_the_seed_decides(unmoved_rng: Any) -> None:
    module, data = small()
    options = {"draws": 3, "warmup": 5, "chains": 2, **QUIET}
    with unmoved_rng():
        first = sample_nuts(module, data, seed=1, **options)
    again = sample_nuts(module, data, seed=1, **options)
    other = sample_nuts(module, data, seed=3, **options)
    for one, two in zip(first.chains, again.chains, strict=True):
        assert all(torch.equal(one.values[name], two.values[name]) for name in one.values)
        assert all(torch.equal(one.stats[name], two.stats[name]) for name in one.stats)
    assert not torch.equal(first.chains[0].values["x1"], first.chains[1].values["x1"])
    assert not torch.equal(first.chains[0].values["x1"], other.chains[0].values["x1"])


def test_fit() -> None:
    frame = pa.simulate.mixed_model(4, 6, seed=0).frame
    model = pa.ARMED("y ~ x1 + (1 | group)", frame)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        idata = model.fit(inference="nuts", restarts=2, draws=10, warmup=20, progressbar=False)
    assert idata["posterior"].sizes["chain"] == 2
    assert idata["posterior"].attrs["inference"] == "nuts"
    assert idata["sample_stats"]["diverging"].shape == (2, 10)
    assert idata["posterior"]["1|group"].shape == (2, 10, 4)
    assert model.predict(frame)["predictions"]["y"].shape == (2, 10, 24)


class Counting(nn.Module):
    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
        self.last = nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        type(self).calls += 1
        return self.last(self.body(x))


@pytest.mark.parametrize("last_layer", ["bayesian", "point"])
def test_a_network_is_run_once_and_left_alone(last_layer: str) -> None:
    frame = pa.simulate.mixed_model(4, 6, seed=0).frame
    module, data = model_of("y ~ x1 + (1 | group)", frame, network=Counting(), last_layer=last_layer)
    before = {name: value.clone() for name, value in module.network.state_dict().items()}
    Counting.calls = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        posterior = sample_nuts(module, data, draws=3, warmup=3, chains=2, **QUIET)
    assert Counting.calls == 1
    assert posterior.attributes["conditions_on"] == CONDITIONS_ON
    assert all(torch.equal(value, before[name]) for name, value in module.network.state_dict().items())
    assert ("features" in posterior.chains[0].values) == (last_layer == "bayesian")


def test_a_networks_density_is_that_of_the_pyro_model() -> None:
    frame = pa.simulate.mixed_model(4, 6, seed=0).frame
    module, data = model_of("y ~ x1 + (1 + features | group)", frame, network=pa.networks.MLP(hidden=(3,)))
    module.eval()
    with torch.no_grad():
        hidden = module.hidden(data)
    density = Density(module, data, hidden)
    with local_parameters(), pyro.validation_enabled(False):
        _, potential, _, _ = initialize_model(module, (data,))
        point = density.start + 0.2
        sizes = [site.unconstrained.numel() for site in density.sites]
        parts = {
            site.name: part.reshape(site.unconstrained)
            for site, part in zip(density.sites, point.split(sizes), strict=True)
        }
        # The network is given: the prior of its weights is a constant, which the sampler leaves out.
        expected = float(potential(parts).detach()) + float(module.log_prior_of_weights().detach())
    assert float(density.negative(point)[0]) == pytest.approx(expected, rel=1e-6)


def test_fit_of_a_network() -> None:
    frame = pa.simulate.mixed_model(4, 6, seed=0).frame
    model = pa.ARMED("y ~ x1 + (1 | group)", frame, network=pa.networks.MLP(hidden=(3,)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        idata = model.fit(inference="nuts", restarts=2, draws=4, warmup=5, epochs=3, progressbar=False)
    assert idata["posterior"].attrs["conditions_on"] == CONDITIONS_ON
    assert model._posterior is not None
    assert all(chain.module is model.module for chain in model._posterior.chains)


def test_divergences_are_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    module, data = small()
    statistics = sampling._nuts._statistics
    monkeypatch.setattr(sampling._nuts, "_statistics", lambda *args: {**statistics(*args), "diverging": True})
    with pytest.warns(ConvergenceWarning, match="6 of 6 NUTS draws diverged"):
        posterior = sample_nuts(module, data, draws=3, warmup=3, chains=2, **QUIET)
    assert posterior.attributes["divergences"] == 6


def test_the_progress_bar_can_be_turned_off(capfd: pytest.CaptureFixture[str]) -> None:
    module, data = small()
    sample_nuts(module, data, draws=2, warmup=2, chains=1, progressbar=False)
    assert capfd.readouterr() == ("", "")
    sample_nuts(module, data, draws=2, warmup=2, chains=1)
    out, err = capfd.readouterr()
    assert out == ""
    assert "NUTS 1/1" in err


# --- what cannot be sampled --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["draws", "warmup", "chains"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True, "10", None])
def test_numbers_of_draws(name: str, value: Any) -> None:
    module, data = small()
    with pytest.raises(ArgumentError, match=f"{name}=.*at least 1"):
        sample_nuts(module, data, **{name: value})


def test_rows_without_a_response() -> None:
    module, data = small()
    with pytest.raises(ArgumentError, match="no response"):
        sample_nuts(module, data.without_response(), **QUIET)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("part", ["response", "columns"])
def test_rows_without_a_density(part: str, bad: float) -> None:
    module, data = small()
    changed = data.map(torch.clone)
    (changed.response if part == "response" else changed.columns["mu"])[2] = bad  # type: ignore[index]
    with pytest.raises(DataError, match=r"log density of 'y' is not finite"):
        sample_nuts(module, changed, **QUIET)


# --- reference figures -------------------------------------------------------------------------------------


def effective_size(draws: np.ndarray) -> float:
    """Geyer's initial positive sequence, chains pooled; independent of ArviZ."""
    total = 0.0
    for chain in draws:
        centered = chain - chain.mean()
        n = len(centered)
        spectrum = np.fft.rfft(centered, 2 * n)
        correlation = np.fft.irfft(spectrum * spectrum.conj())[:n] / (centered @ centered)
        pairs = correlation[0 : n - 1 : 2] + correlation[1:n:2]
        last = np.argmax(pairs < 0) if (pairs < 0).any() else len(pairs)
        total += n / max(2 * pairs[:last].sum() - 1, 0.2)
    return total


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cbpp", "sleepstudy"])
def test_reference_figures(name: str) -> None:
    """Means and sds of an independent sampler within Monte Carlo error of both."""
    fit = REFERENCE[name]
    module, data = model_of(fit["formula"], pa.datasets.load(fit["data"]), family=fit["family"])
    posterior = sample_nuts(module, data, draws=400, warmup=400, chains=2, seed=11, **QUIET)
    reports = [chain.report() for chain in posterior.chains]
    labels = {term.name: term.labels for term in module.spec.mu.terms}
    for full, expected in fit["parameters"].items():
        term, _, label = full.removesuffix("]").partition("[")
        draws = np.stack([report[term].numpy() for report in reports])
        if term.endswith("_corr"):
            draws = draws[..., 0, 1]
        elif label:
            draws = draws[..., labels[term].index(label)]
        draws = draws.reshape(2, 400)
        size = effective_size(draws)
        assert size > 60, full
        error = expected["sd"] * math.sqrt(1 / size + 1 / expected["ess_bulk"])
        assert draws.mean() == pytest.approx(expected["mean"], abs=4.5 * error), full
        assert draws.std() == pytest.approx(expected["sd"], rel=4.5 / math.sqrt(size)), full
