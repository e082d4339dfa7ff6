"""Response families: densities against SciPy, numerics in the tails, responses of every dtype."""

import decimal
import json
import math

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import scipy.special as sp
import scipy.stats as st
import torch
from hypothesis import given
from hypothesis import strategies as hyp
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_armed import families
from pyro_armed.errors import ArgumentError, DataError
from pyro_armed.families.distributions import stirling_remainder

N = 41
GRID = np.linspace(-4.0, 4.0, N)
F = {
    "logit": sp.expit,
    "probit": sp.ndtr,
    "cloglog": lambda x: -np.expm1(-np.exp(x)),
    "identity": lambda x: x,
    "log": np.exp,
    "inverse": lambda x: 1.0 / x,
}
THRESHOLD = np.array([-1.5, 0.0, 0.3, 1.2])
ALL = [(cls.name, link) for cls in families.FAMILIES.values() for link in cls.links]
UNIT = ("logit", "probit", "cloglog")


def grid_for(link):
    # To the right of 2 the complementary log-log's 1 - p has too few digits for the references.
    ends = {"inverse": (0.1, 3.0), "cloglog": (-2.0, 2.0)}.get(link, (-4.0, 4.0))
    return np.linspace(*ends, N)


def case(name, link, dtype=torch.float64):
    """A family with predictors, responses, trials and auxiliaries for N rows."""
    rng = np.random.default_rng(7)
    family = families.get(name, link)
    eta = grid_for(link)
    y = {
        "real": rng.normal(size=N),
        "positive": rng.gamma(2.0, size=N) + 0.01,
        "unit": rng.uniform(0.02, 0.98, size=N),
        "count": rng.integers(0, 9, size=N).astype(float),
        "binary": rng.integers(0, 2, size=N).astype(float),
        "binomial": rng.integers(0, 5, size=N).astype(float),
        "categorical": rng.integers(0, 4, size=N),
        "ordinal": rng.integers(0, 5, size=N),
    }[family.response]
    if name == "categorical":
        eta = np.stack([eta, 0.5 * eta[::-1], -eta + 0.3], axis=-1)
    trials = np.full(N, 4.0) + (np.arange(N) % 3) if name == "binomial" else None
    values = {"sigma": 0.7, "nu": 4.0, "alpha": 1.7, "kappa": 5.0, "threshold": THRESHOLD}
    aux = {key: torch.tensor(values[key], dtype=dtype) for key in family.auxiliaries}
    tensors = [None if v is None else torch.tensor(v, dtype=dtype) for v in (eta, trials)]
    codes = torch.tensor(y) if family.response in ("categorical", "ordinal") else torch.tensor(y, dtype=dtype)
    return family, tensors[0], codes, tensors[1], aux


def reference(name, link, eta, trials, aux):
    """Frozen SciPy distribution, or the table of level probabilities."""
    a = {key: value.numpy() for key, value in aux.items()}
    if name == "categorical":
        return sp.softmax(np.concatenate([np.zeros((N, 1)), eta], axis=-1), axis=-1)
    if name == "ordinal":
        below = F[link](a["threshold"] - eta[:, None])
        return np.diff(below, prepend=0.0, append=1.0, axis=-1)
    mu = F[link](eta)
    return {
        "gaussian": lambda: st.norm(mu, a["sigma"]),
        "student_t": lambda: st.t(a["nu"], mu, a["sigma"]),
        "bernoulli": lambda: st.bernoulli(mu),
        "binomial": lambda: st.binom(trials, mu),
        "poisson": lambda: st.poisson(mu),
        "negative_binomial": lambda: st.nbinom(a["alpha"], a["alpha"] / (a["alpha"] + mu)),
        "gamma": lambda: st.gamma(a["alpha"], scale=mu / a["alpha"]),
        "beta": lambda: st.beta(mu * a["kappa"], (1 - mu) * a["kappa"]),
    }[name]()


def reference_log_prob(expected, y):
    if isinstance(expected, np.ndarray):
        return np.log(expected[np.arange(N), y])
    return (expected.logpmf if hasattr(expected.dist, "logpmf") else expected.logpdf)(y)


# --- densities, means, samples ---------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "link"), ALL)
def test_log_prob_and_mean_agree_with_scipy(name, link):
    family, eta, y, trials, aux = case(name, link)
    expected = reference(name, link, eta.numpy(), None if trials is None else trials.numpy(), aux)
    got = family.log_prob(y, eta, trials, **aux)
    assert got.shape == (N,)
    np.testing.assert_allclose(got, reference_log_prob(expected, y.numpy()), rtol=1e-9, atol=1e-9)
    mean = family.mean(eta, trials, **aux)
    if isinstance(expected, np.ndarray):
        np.testing.assert_allclose(mean, expected, rtol=1e-9, atol=1e-12)
    else:
        per = 1.0 if trials is None else trials.numpy()
        np.testing.assert_allclose(mean, expected.mean() / per, rtol=1e-9)


@pytest.mark.parametrize(("name", "link"), ALL)
def test_distribution_of_a_mean_is_that_of_its_predictor(name, link):
    family, eta, y, trials, aux = case(name, link)
    mu = family.mean(eta, trials, **aux)
    extra = {"trials": trials} if trials is not None else {} if name == "ordinal" else aux
    log_prob = family.distribution(mu, **extra).log_prob(y)
    torch.testing.assert_close(log_prob, family.log_prob(y, eta, trials, **aux), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("name", "link"), ALL)
def test_samples_have_the_moments_and_the_support(name, link):
    family, eta, _, trials, aux = case(name, link)
    rows = slice(5, N, 9)
    eta, trials = eta[rows], None if trials is None else trials[rows]
    aux = aux | ({"nu": torch.tensor(9.0, dtype=torch.float64)} if name == "student_t" else {})
    d = family.from_predictor(eta, trials, **aux)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        draws = d.sample((20_000,))
    assert draws.shape == (20_000, *d.batch_shape)
    assert d.event_shape == ()
    assert d.support.check(draws).all()
    assert torch.isfinite(d.log_prob(draws)).all()
    if family.response in ("categorical", "ordinal"):
        mean = family.mean(eta, trials, **aux)
        share = torch.stack([(draws == k).double().mean(0) for k in range(mean.shape[-1])], -1)
        assert (share - mean).abs().max() < 0.02
        return
    se = (d.variance / 20_000).sqrt()
    assert ((draws.mean(0) - d.mean).abs() < 5 * se + 1e-12).all()
    assert (draws.var(0) / d.variance.clamp_min(1e-9) - 1).abs()[d.variance > 1e-3].max() < 0.35


@pytest.mark.parametrize(("name", "link"), ALL)
def test_batches_of_draws_broadcast(name, link):
    family, eta, y, trials, aux = case(name, link)
    shift = torch.tensor([0.0, 0.01, 0.02], dtype=eta.dtype)
    batched = eta + shift.reshape(3, *[1] * eta.dim())
    scalars = {key: value + shift[:, None] for key, value in aux.items() if value.dim() == 0}
    vectors = {key: value + shift[:, None, None] for key, value in aux.items() if value.dim() == 1}
    got = family.log_prob(y, batched, trials, **scalars, **vectors)
    assert got.shape == (3, N)
    assert family.mean(batched, trials, **scalars, **vectors).shape[:2] == (3, N)
    for s in range(3):
        one = {key: value + shift[s] for key, value in aux.items()}
        torch.testing.assert_close(got[s], family.log_prob(y, batched[s], trials, **one))
    if scalars:
        modelled = {key: value.expand(3, N) for key, value in scalars.items()}
        torch.testing.assert_close(got, family.log_prob(y, batched, trials, **modelled, **vectors))


@pytest.mark.parametrize(("name", "link"), ALL)
def test_single_precision_agrees_with_double(name, link):
    family, eta, y, trials, aux = case(name, link, torch.float32)
    double = family.log_prob(*(case(name, link)[i] for i in (2, 1, 3)), **case(name, link)[4])
    single = family.log_prob(y, eta, trials, **aux)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=2e-5, atol=2e-5)


# --- derivatives and tails -------------------------------------------------------------------------------


def derivatives(family, eta, y, trials, aux):
    """Gradient and diagonal of the Hessian in the predictors."""
    eta = eta.clone().requires_grad_()
    total = family.log_prob(y, eta, trials, **aux).sum()
    (first,) = torch.autograd.grad(total, eta, create_graph=True)
    if eta.dim() == 1:
        (second,) = torch.autograd.grad(first.sum(), eta)
        return first.detach(), second
    columns = [
        torch.autograd.grad(first[..., r].sum(), eta, retain_graph=True)[0][..., r]
        for r in range(eta.shape[-1])
    ]
    return first.detach(), torch.stack(columns, -1)


@pytest.mark.parametrize(("name", "link"), ALL)
def test_derivatives_equal_finite_differences(name, link):
    family, eta, y, trials, aux = case(name, link)
    first, second = derivatives(family, eta, y, trials, aux)
    h = 1e-5
    steps = [torch.tensor(h)] if eta.dim() == 1 else list(h * torch.eye(eta.shape[-1], dtype=eta.dtype))
    for r, step in enumerate(steps):
        pick = (...,) if eta.dim() == 1 else (..., r)
        high, low = (family.log_prob(y, eta + sign * step, trials, **aux) for sign in (1, -1))
        torch.testing.assert_close((high - low) / (2 * h), first[pick], rtol=1e-5, atol=1e-6)
        high, low = (derivatives(family, eta + sign * step, y, trials, aux)[0][pick] for sign in (1, -1))
        torch.testing.assert_close((high - low) / (2 * h), second[pick], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "link"), [c for c in ALL if c[1] not in ("inverse", "identity")])
def test_everything_is_finite_far_out(name, link, dtype):
    family, _, y, trials, aux = case(name, link, dtype)
    extremes = [-50.0, -30.0, -15.0, 0.0, 8.0, 15.0, 30.0, 50.0]
    if name in ("gaussian", "student_t"):
        extremes = [x for x in extremes if x <= 15.0]
    for extreme in extremes:
        eta = torch.full((N, 3) if name == "categorical" else (N,), extreme, dtype=dtype)
        assert torch.isfinite(family.log_prob(y, eta, trials, **aux)).all(), extreme
        assert torch.isfinite(family.mean(eta, trials, **aux)).all(), extreme
        first, second = derivatives(family, eta, y, trials, aux)
        assert torch.isfinite(first).all(), extreme
        assert torch.isfinite(second).all(), extreme


@pytest.mark.parametrize("x", [-50.0, -20.0, 0.0, 20.0, 50.0])
def test_tails_are_exact(x):
    eta = torch.tensor([x], dtype=torch.float64)
    one, zero = torch.ones(1), torch.zeros(1)
    for link, log_cdf in (("logit", st.logistic.logcdf), ("probit", st.norm.logcdf)):
        family = families.Bernoulli(link)
        np.testing.assert_allclose(family.log_prob(one, eta), log_cdf(x), rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(family.log_prob(zero, eta), log_cdf(-x), rtol=1e-12, atol=1e-14)
        ordinal = families.Ordinal(link)
        cuts = torch.tensor([-1.0, 1.0], dtype=torch.float64)
        got = [float(ordinal.log_prob(torch.tensor([k]), eta, threshold=cuts)) for k in range(3)]
        a, b = -1 - abs(x), 1 - abs(x)
        middle = log_cdf(b) + np.log(-np.expm1(log_cdf(a) - log_cdf(b)))
        np.testing.assert_allclose(got, [log_cdf(-1 - x), middle, log_cdf(x - 1)], rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(
        families.Bernoulli("cloglog").log_prob(zero, eta), -np.exp(x), rtol=1e-9, atol=1e-14
    )
    cloglog = families.Bernoulli("cloglog").log_prob(one, eta)
    np.testing.assert_allclose(cloglog, np.log(-np.expm1(-np.exp(x))), rtol=1e-9, atol=1e-14)


def test_logit_curvature_at_zero_is_a_quarter():
    eta = torch.zeros(2, dtype=torch.float64)
    y = torch.tensor([0.0, 1.0])
    for family, trials in ((families.Bernoulli(), None), (families.Binomial(), torch.ones(2))):
        torch.testing.assert_close(
            derivatives(family, eta, y, trials, {})[1], torch.full((2,), -0.25).double()
        )


@pytest.mark.parametrize("link", UNIT)
def test_thresholds_that_rounding_has_joined_stay_finite(link):
    family = families.Ordinal(link)
    threshold = torch.tensor([0.5, 0.5, 1.0])
    eta, y = torch.linspace(-10.0, 10.0, 9), torch.ones(9, dtype=torch.int64)
    first, second = derivatives(family, eta, y, None, {"threshold": threshold})
    assert torch.isfinite(first).all()
    assert torch.isfinite(second).all()


@pytest.mark.parametrize("size", [1e-3, 1e-1, 15.9, 16.1, 1e3, 1e6])
def test_large_and_small_dispersions_keep_single_precision(size):
    alpha = torch.tensor(size)
    y, eta = torch.tensor([0.0, 3.0, 12.0]), torch.tensor([0.1, 1.2, 2.0])
    mu = eta.double().exp().numpy()
    expected = st.nbinom.logpmf(y.numpy(), size, size / (size + mu))
    got = families.get("negative_binomial").log_prob(y, eta, alpha=alpha)
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5)
    y = torch.tensor([1.0, 3.0, 7.5])
    expected = st.gamma.logpdf(y.numpy(), size, scale=mu / size)
    np.testing.assert_allclose(
        families.get("gamma").log_prob(y, eta, alpha=alpha), expected, rtol=2e-5, atol=2e-5
    )
    if size > 1e3:
        return
    y = torch.tensor([0.55, 0.7, 0.9])
    p, value = sp.expit(eta.double().numpy()), y.double().numpy()
    expected = st.beta.logpdf(value, p * size, (1 - p) * size)
    np.testing.assert_allclose(
        families.get("beta").log_prob(y, eta, kappa=alpha), expected, rtol=2e-5, atol=1e-4
    )


def test_gamma_function_series_is_exact_in_double_precision():
    a = np.concatenate([np.geomspace(1e-6, 16, 30), np.linspace(16, 60, 30)])
    expected = sp.gammaln(a) - ((a - 0.5) * np.log(a) - a + 0.5 * np.log(2 * np.pi))
    np.testing.assert_allclose(stirling_remainder(torch.tensor(a)), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("name", "link"), ALL)
def test_densities_can_be_mapped_and_traced(name, link):
    family, eta, y, trials, aux = case(name, link)

    def total(e):
        return family.log_prob(y, e, trials, **aux).sum()

    batch = torch.stack([eta, eta + 0.1])
    with pyro.validation_enabled(False):
        mapped = vmap(grad(total))(batch)
        traced = make_fx(grad(total))(eta)
        torch.testing.assert_close(traced(eta + 0.1), mapped[1])
    torch.testing.assert_close(mapped[0], derivatives(family, eta, y, trials, aux)[0])


def test_inverse_link_holds_the_mean_where_it_has_none():
    family = families.Gamma("inverse")
    assert torch.isfinite(
        family.log_prob(torch.ones(2), torch.tensor([-1.0, 0.0]), alpha=torch.tensor(2.0))
    ).all()


# --- links, configuration, defaults ----------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(families.LINKS))
def test_links_are_inverse_to_each_other(name):
    link = families.get_link(name)
    eta = torch.tensor(grid_for(name))
    if name == "softmax":
        eta = torch.stack([eta, -eta], -1)
    mu = link.inverse(eta)
    torch.testing.assert_close(link.link(mu), eta, rtol=1e-7, atol=1e-7)
    if name != "identity":
        torch.testing.assert_close(link.log_inverse(eta), mu.log())
    if link.domain == "unit":
        torch.testing.assert_close(link.log_complement(eta), torch.log1p(-mu), rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(link.logits(eta), torch.logit(mu), rtol=1e-7, atol=1e-7)
        gap = (link.inverse(eta + 0.7) - mu).log()
        torch.testing.assert_close(link.log_interval(eta, eta + 0.7), gap, rtol=1e-6, atol=1e-6)


def test_get_resolves_names_aliases_classes_and_instances():
    for name, cls in families.FAMILIES.items():
        assert type(families.get(name)) is cls
        assert families.get(cls) == families.get(name)
        assert families.get(name).link.name == cls.links[0]
    for alias, name in {
        "t": "student_t",
        "negativebinomial": "negative_binomial",
        "cumulative": "ordinal",
    }.items():
        assert families.get(alias).name == name
    own = families.Bernoulli("probit")
    assert families.get(own) is own
    assert families.get(own, "probit") is own
    assert own != families.Bernoulli()
    assert len({own, families.Bernoulli("probit")}) == 1


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: families.get("poison"), "family 'poison' is not known: use one of gaussian"),
        (lambda: families.get(3), "name or a families.Family, not int"),
        (lambda: families.get("poisson", "logit"), "'poisson' has no link 'logit': use one of 'log'"),
        (lambda: families.get(families.Bernoulli(), "probit"), "disagrees"),
        (lambda: families.get_link("loglog"), "link 'loglog' is not known"),
        (lambda: families.Categorical().n_predictors(None), "needs levels="),
        (lambda: families.Ordinal().auxiliary_priors(1.0, 1), "needs levels="),
        (lambda: families.Binomial().from_predictor(torch.zeros(2)), "needs trials"),
        (lambda: families.from_config({"name": "rayleigh", "link": "log"}), "pass the family itself"),
        (lambda: families.from_config({"name": "x", "link": "log"}, families.Poisson()), "is not 'x'"),
        (lambda: type("Bad", (families.Family,), {"name": "bad"})(), "no links and no response"),
        (
            lambda: type("Bad", (families.Family,), {"name": "b", "links": ("log",), "response": "odd"})(),
            "response='odd'",
        ),
    ],
)
def test_wrong_arguments_are_explained(call, match):
    with pytest.raises(ArgumentError, match=match):
        call()


@pytest.mark.parametrize(("name", "link"), ALL)
def test_config_survives_json(name, link):
    family = families.get(name, link)
    assert families.from_config(json.loads(json.dumps(family.config()))) == family


@pytest.mark.parametrize("name", sorted(families.FAMILIES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_default_priors_are_proper_and_usable(name, dtype):
    family = families.get(name)
    priors = family.auxiliary_priors(torch.tensor(2.0, dtype=dtype), levels=4)
    assert tuple(priors) == family.auxiliaries
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for prior in priors.values():
            draw = prior.sample()
            assert draw.dtype == dtype
            assert prior.support.check(draw).all()
            assert torch.isfinite(prior.log_prob(draw))
            assert prior.expand([5]).sample().shape == (5, *prior.event_shape)
            unconstrained = dist.constraints.real
            there_and_back = pyro.distributions.transforms.biject_to(prior.support)
            torch.testing.assert_close(there_and_back(there_and_back.inv(draw)), draw, rtol=1e-3, atol=1e-3)
            assert unconstrained.check(there_and_back.inv(draw)).all()


def test_half_student_t_and_ordered_normal_are_the_distributions_they_say():
    x = np.linspace(0.1, 9.0, 20)
    prior = families.HalfStudentT(4.0, torch.tensor(2.5, dtype=torch.float64))
    np.testing.assert_allclose(prior.log_prob(torch.tensor(x)), st.t.logpdf(x, 4, scale=2.5) + np.log(2))
    folded = st.t(4, scale=2.5)
    np.testing.assert_allclose(prior.mean, 2 * folded.expect(lambda v: v, lb=0), rtol=1e-6)
    np.testing.assert_allclose(prior.variance, folded.var() - float(prior.mean) ** 2, rtol=1e-6)
    assert families.HalfStudentT(1.0, torch.tensor(1.0)).mean == math.inf
    ordered = families.OrderedNormal(torch.tensor(2.5, dtype=torch.float64), 3)
    value = torch.tensor([-1.0, 0.5, 4.0], dtype=torch.float64)
    expected = st.norm.logpdf(value, scale=2.5).sum() + np.log(6)
    np.testing.assert_allclose(ordered.log_prob(value), expected)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        middle = ordered.expand([20_000]).sample()[:, 1]
    # The median of three standard normals has variance 1 - sqrt(3) / pi.
    assert abs(float(middle.var()) / 2.5**2 - (1 - math.sqrt(3) / math.pi)) < 0.02


def test_wrong_parameters_and_values_are_refused_by_validation():
    with pyro.validation_enabled(True):
        with pytest.raises(ValueError, match="alpha"):
            families.GammaMean(torch.zeros(2), torch.tensor(-1.0))
        with pytest.raises(ValueError, match="support"):
            families.PoissonLog(torch.zeros(2)).log_prob(torch.tensor([0.5, 1.0]))
        with pytest.raises(ValueError, match="support"):
            families.BinomialLogits(torch.zeros(2), torch.tensor([2.0, 3.0])).log_prob(
                torch.tensor([3.0, 3.0])
            )
        with pytest.raises(ValueError, match="support"):
            families.OrderedNormal(1.0, 2).log_prob(torch.tensor([1.0, 0.0]))


def test_distributions_expand():
    d = families.BinomialLogits(torch.zeros(3), torch.full((3,), 4.0)).expand([2, 3])
    assert d.batch_shape == (2, 3)
    assert d.log_prob(torch.ones(3)).shape == (2, 3)
    assert d.to_event(1).log_prob(torch.ones(3)).shape == (2,)


def test_scale_follows_the_response_only_under_an_identity_link():
    yes = {c for c in ALL if families.get(*c).identity_scale}
    assert yes == {("gaussian", "identity"), ("student_t", "identity")}


def test_latent_variances():
    values = {link: families.Bernoulli(link).latent_variance() for link in UNIT}
    assert values["logit"] == pytest.approx(st.logistic.var())
    assert values["probit"] == 1.0
    assert values["cloglog"] == pytest.approx(st.gumbel_l.var())
    assert families.Ordinal("probit").latent_variance() == 1.0
    assert families.Beta().latent_variance() is None
    assert families.Gaussian().latent_variance() is None


def test_predictors_and_auxiliary_links():
    assert families.Categorical().n_predictors(5) == 4
    assert families.Ordinal().n_predictors(5) == 1
    assert families.StudentT().auxiliary_links == {"sigma": "log", "nu": "log"}
    assert families.Ordinal().auxiliary_links == {}


@pytest.mark.parametrize(("name", "link"), ALL)
def test_start_is_the_link_of_the_mean(name, link):
    family, _, y, trials, _ = case(name, link)
    start = family.start(y.numpy(), None if trials is None else trials.numpy())
    if name in ("categorical", "ordinal"):
        assert start == 0.0
        return
    mean = y.sum() / (N if trials is None else trials.sum())
    if mean > 0 or link == "identity":
        assert F[link](start) == pytest.approx(float(mean), abs=0.02)
    degenerate = {"count": np.zeros(9), "binary": np.ones(9), "real": -np.ones(9)}
    if family.response in degenerate:
        assert math.isfinite(family.start(degenerate[family.response]))
    with pytest.raises(DataError, match="no rows"):
        family.start(np.zeros(0))


# --- a family of one's own -------------------------------------------------------------------------------


class Rayleigh(families.Family):
    """Wind speeds."""

    name = "rayleigh"
    links = ("log", "identity")
    response = "positive"

    def distribution(self, mu):
        return dist.Weibull(mu * 2.0 / math.sqrt(math.pi), 2.0)


class Laplace(families.Family):
    """Noise with an auxiliary parameter."""

    name = "laplace"
    links = ("identity",)
    response = "real"
    auxiliaries = ("b",)

    def distribution(self, mu, b):
        return dist.Laplace(mu, b)


def test_own_families_need_only_a_distribution():
    eta, y = torch.tensor(GRID), torch.linspace(0.1, 5.0, N, dtype=torch.float64)
    family = families.get(Rayleigh)
    expected = st.rayleigh.logpdf(y.numpy(), scale=np.exp(GRID) / math.sqrt(math.pi / 2))
    np.testing.assert_allclose(family.log_prob(y, eta), expected)
    np.testing.assert_allclose(family.mean(eta), np.exp(GRID))
    assert families.prepare_response(family, [1.0, 2.0], "wind").y.tolist() == [1.0, 2.0]
    assert families.from_config(family.config(), Rayleigh) == family
    assert families.from_config({"name": "rayleigh", "link": "identity"}, Rayleigh).link.name == "identity"
    laplace = Laplace()
    assert laplace.identity_scale
    assert laplace.auxiliary_links == {"b": "log"}
    assert isinstance(laplace.auxiliary_priors(1.0)["b"], dist.HalfCauchy)
    assert laplace.log_prob(y, eta.expand(2, N), b=torch.ones(2, 1)).shape == (2, N)
    with pytest.raises(NotImplementedError, match="distribution"):
        type(
            "Empty", (families.Family,), {"name": "e", "links": ("log",), "response": "real"}
        )().distribution(eta)


# --- responses -------------------------------------------------------------------------------------------


def prepare(name, values, **kwargs):
    return families.prepare_response(families.get(name), values, "y", **kwargs)


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("name", "values", "kwargs", "match"),
    [
        ("gaussian", [], {}, "response 'y' is empty: give"),
        ("gaussian", [1.0, NAN, NAN, 2.0], {}, "response 'y' has 2 missing values: drop those rows"),
        ("gaussian", [1.0, None], {}, "has 1 missing value: "),
        ("bernoulli", ["a", None, "b"], {}, "has 1 missing value: "),
        ("ordinal", pd.Categorical(["a", None, "b"], ordered=True), {}, "has 1 missing value: "),
        ("poisson", pd.array([1, None, 2], dtype="Int64"), {}, "has 1 missing value: "),
        ("gaussian", pd.array([1.0, None, 2], dtype="double[pyarrow]"), {}, "has 1 missing value: "),
        ("gaussian", torch.tensor([1.0, NAN]), {}, "has 1 missing value: "),
        ("gaussian", [1.0, INF, -INF], {}, "has 2 infinite values: "),
        ("gaussian", pd.Series([1.0, INF, 1], dtype=object), {}, "has 1 infinite value: "),
        ("bernoulli", [1.0, INF, 0.0], {}, "has 1 infinite value: "),
        ("gaussian", [2.0, 2.0], {}, r"response 'y' is constant \(always 2.0\)"),
        ("gamma", [2.0, 2.0], {}, "is constant"),
        ("gaussian", ["1.0", "2.0"], {}, "not numbers: convert"),
        ("gaussian", np.array(["1.0", 2.0], dtype=object), {}, "mixed objects, not numbers: convert"),
        ("gaussian", pd.Categorical([1.0, 2.0]), {}, "not numbers: convert"),
        ("gaussian", pd.to_datetime(["2020-01-01", "2020-01-02"]), {}, "datetime64.*not numbers"),
        ("gaussian", np.array([1j, 2.0]), {}, "complex128, not numbers"),
        ("gaussian", np.ones((3, 2)), {}, r"has shape \(3, 2\): it must be one column"),
        ("gaussian", [[1.0, 2.0], [3.0, 4.0]], {}, r"has shape \(2, 2\)"),
        ("gaussian", 3.0, {}, r"has shape \(\)"),
        ("gaussian", pd.DataFrame({"a": [1.0, 2.0], "b": [1.0, 2.0]}), {}, r"has shape \(2, 2\)"),
        ("poisson", [1, -1, -2], {}, r"2 values that are not counts \(first: -1.0 in row 1\)"),
        (
            "negative_binomial",
            [1, 2, 0.5],
            {},
            r"1 value that is not a count \(first: 0.5 in row 2\): counts are",
        ),
        ("gamma", [1.0, 0.0], {}, r"1 value that is not positive \(first: 0.0 in row 1\)"),
        ("beta", [0.5, 1.0, 0.0], {}, "2 values that are not strictly between 0 and 1"),
        ("bernoulli", [1, 1, 1], {}, r"constant \(always 1\).*both outcomes"),
        ("bernoulli", ["yes", "yes"], {}, "constant"),
        ("bernoulli", ["a", "b", "c"], {}, r"has 3 labels \('a', 'b', 'c'\).*categorical"),
        ("bernoulli", ["a", "c"], {"levels": ["a", "b"]}, "has 'c', which the training data did not have"),
        ("bernoulli", ["a"], {"training": False}, "has one label, 'a': give levels="),
        ("categorical", ["a", "a"], {}, "constant"),
        ("categorical", ["a", "d"], {"levels": ["a", "b", "c"]}, r"has 'd', which .*\('a', 'b', 'c'\)"),
        ("categorical", pd.Series([{}, {}]), {}, "cannot be hashed"),
        ("ordinal", ["low", "high", "mid"], {}, "labels without an order.*ordered pd.Categorical"),
        ("ordinal", pd.Categorical(["low", "high"]), {}, "without an order"),
        ("ordinal", [1, 1], {}, "constant"),
        ("binomial", [1, 2], {}, "has no trials: give trials="),
        (
            "binomial",
            [1, 3],
            {"trials": [2, 2]},
            r"not an integer from 0 to its trials \(first: 3.0 in row 1\)",
        ),
        ("binomial", [0.5, 1], {"trials": 2}, "not proportions"),
        (
            "binomial",
            [0, 1],
            {"trials": [0, 2]},
            "trials of response 'y' has 1 value that is not a positive integer",
        ),
        ("binomial", [0, 1], {"trials": [NAN, 2]}, "trials of response 'y' has 1 missing value"),
        ("binomial", [0, 1], {"trials": [2, 2, 2]}, "have 3 rows, the response 2"),
        ("binomial", [0, 0], {"trials": 3}, "only failures"),
        ("binomial", [3, 2], {"trials": [3, 2]}, "only successes"),
    ],
)
def test_bad_responses_are_refused_with_a_mend(name, values, kwargs, match):
    with pytest.raises(DataError, match=match) as caught:
        prepare(name, values, **kwargs)
    assert ": " in str(caught.value) or ", check" in str(caught.value)


def test_trials_elsewhere_are_refused():
    with pytest.raises(ArgumentError, match="trials are for family 'binomial', not 'poisson'"):
        prepare("poisson", [1, 2], trials=3)


@pytest.mark.parametrize(
    ("values", "levels"),
    [
        ([False, True, True], None),
        ([0, 1, 1], None),
        ([0.0, 1.0, 1.0], None),
        (np.array([0, 1, 1], dtype=np.uint8), None),
        (np.array([False, True, True], dtype=object), None),
        (torch.tensor([[0], [1], [1]]), None),
        (torch.tensor([0.0, 1.0, 1.0], dtype=torch.bfloat16), None),
        (pd.array([False, True, True], dtype="boolean"), None),
        (pd.Series([0, 1, 1], dtype="int64[pyarrow]"), None),
        (pd.DataFrame({"y": [0, 1, 1]}), None),
        (["no", "yes", "yes"], ["no", "yes"]),
        (np.array(["no", "yes", "yes"]), ["no", "yes"]),
        (pd.Series(["no", "yes", "yes"], dtype="string[pyarrow]", index=[5, 5, 9]), ["no", "yes"]),
        (pd.Categorical(["z", "a", "a"], categories=["z", "a"]), ["z", "a"]),
        (pd.Categorical(["z", "a", "a"], categories=["unused", "z", "a"]), ["z", "a"]),
        (pd.Categorical([1, 0, 0], categories=[1, 0]), [1, 0]),
        ([1, 2, 2], [1, 2]),
        ([-1.0, 1.0, 1.0], [-1, 1]),
    ],
)
def test_binary_responses(values, levels):
    response = prepare("bernoulli", values)
    assert response.y.dtype == np.float64
    assert response.y.tolist() == [0.0, 1.0, 1.0]
    assert response.levels == levels
    assert response.name == "y"
    json.dumps(response.levels)


def test_new_rows_get_the_codes_of_the_training_rows():
    assert prepare("bernoulli", ["b", "b"], levels=["a", "b"]).y.tolist() == [1.0, 1.0]
    assert prepare("bernoulli", [1], training=False).y.tolist() == [1.0]
    assert prepare("gaussian", [1.0], training=False).y.tolist() == [1.0]
    assert prepare("binomial", [0], trials=4, training=False).trials.tolist() == [4.0]
    assert prepare("categorical", pd.Categorical(["c"]), levels=["a", "b", "c"]).y.tolist() == [2]
    assert prepare("ordinal", ["high", "low"], levels=["low", "mid", "high"]).y.tolist() == [2, 0]
    assert prepare("ordinal", [3.0, 1.0], levels=[1, 2, 3]).y.tolist() == [2, 0]


def test_labels_keep_their_order():
    assert prepare("categorical", ["c", "a", "b", "a"]).levels == ["a", "b", "c"]
    mixed = prepare("categorical", np.array(["c", 1, "b", 1], dtype=object))
    assert mixed.levels == ["c", 1, "b"]
    assert mixed.y.tolist() == [0, 1, 2, 1]
    sizes = pd.Categorical(["m", "s", "l"], categories=["s", "m", "l", "xl"], ordered=True)
    ordinal = prepare("ordinal", sizes)
    assert ordinal.levels == ["s", "m", "l"]
    assert ordinal.y.tolist() == [1, 0, 2]
    assert ordinal.y.dtype == np.int64
    coded = prepare("categorical", pd.Categorical([1.0, 2.0, 3.0]))
    assert json.dumps(coded.levels) == "[1, 2, 3]"
    assert prepare("ordinal", [3, 1, 2.5]).levels == [1, 2.5, 3]


def test_object_numbers_are_numbers():
    values = pd.Series([decimal.Decimal("1.5"), decimal.Decimal("2")])
    assert prepare("gaussian", values).y.tolist() == [1.5, 2.0]
    assert prepare("gaussian", np.array([1, 2.5], dtype=object)).y.tolist() == [1.0, 2.5]


NUMBER_DTYPES = [
    "int8",
    "int64",
    "float32",
    "float64",
    "Int32",
    "Float64",
    "int16[pyarrow]",
    "double[pyarrow]",
    object,
]


@given(counts=hyp.lists(hyp.integers(0, 100), min_size=1, max_size=20), dtype=hyp.sampled_from(NUMBER_DTYPES))
def test_counts_survive_any_dtype(counts, dtype):
    response = prepare("poisson", pd.Series(counts, dtype=dtype))
    assert response.y.dtype == np.float64
    assert response.y.tolist() == counts
    assert math.isfinite(families.Poisson().start(response.y))
    binomial = prepare(
        "binomial", pd.Series(counts, dtype=dtype), trials=[c + 1 for c in counts], training=False
    )
    assert binomial.trials.tolist() == [c + 1 for c in counts]


LABELS = hyp.one_of(
    hyp.lists(hyp.text(max_size=3), min_size=2, max_size=20),
    hyp.lists(hyp.integers(-5, 5), min_size=2, max_size=20),
    hyp.lists(hyp.booleans(), min_size=2, max_size=20),
)


@given(labels=LABELS, kind=hyp.sampled_from(["list", "object", "series", "category", "index"]))
def test_codes_decode_to_the_labels(labels, kind):
    if len(set(labels)) < 3:
        labels = [*labels, "other", "else"] if isinstance(labels[0], str) else [*labels, 9, 8]
    make = {
        "list": list,
        "object": lambda v: np.array(v, dtype=object),
        "series": pd.Series,
        "category": lambda v: pd.Series(v).astype("category"),
        "index": pd.Index,
    }[kind]
    values = make(labels)
    response = prepare("categorical", values)
    assert [response.levels[code] for code in response.y] == labels
    assert sorted(set(response.y)) == list(range(len(response.levels)))
    again = prepare("categorical", make(labels[::-1]), levels=response.levels)
    assert again.y.tolist() == response.y.tolist()[::-1]


def test_two_levels_are_for_bernoulli():
    with pytest.raises(DataError, match=r"has two levels .*use family='bernoulli'"):
        prepare("categorical", ["a", "b", "a"])
