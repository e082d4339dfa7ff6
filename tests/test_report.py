"""What print shows, and the picture of a model."""

import importlib.util
import re
import sys
import types
from types import SimpleNamespace

import pyro.distributions as dist
import pytest
import torch
from hand_made import design, frame, module_of, posterior_of
from torch import nn

from pyro_armed.adversary import Adversary
from pyro_armed.errors import MissingDependencyError
from pyro_armed.families import HalfStudentT
from pyro_armed.report import describe_model, describe_prior, render_graph


def described(formulas, family="gaussian", of=(), data=None, posterior=None, adversary=None, **options):
    one = design(formulas, frame() if data is None else data, family, **options)
    module = module_of(one, *of)
    model = SimpleNamespace(
        module=module,
        formula=one.describe(),
        adversary=adversary,
        fixed_effects_weight=0.0,
        _posterior=posterior(module) if posterior else None,
    )
    return describe_model(model)


def section(text: str, name: str) -> list[str]:
    """Lines of one section, without its name."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"{name} "))
    end = next((i for i in range(start + 1, len(lines)) if not lines[i].startswith(" ")), len(lines))
    return [line[11:] for line in lines[start:end]]


def network():
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()


# --- the model in mathematics ------------------------------------------------------------------------------


def test_classical_mixed_model():
    text = described("y ~ x + c + (1 + z | g) + (1 | h)")
    assert text.startswith("ARMED(gaussian, identity link): 20 rows\n")
    assert section(text, "formula") == ["y ~ x + c + (1 + z | g) + (1 | h)"]
    assert section(text, "model") == [
        "y_i ~ gaussian(eta_i, sigma)",
        "eta_i = Intercept + beta[x] x_i + beta[c]' c_i + (1, z)_i' u[g(i)] + u[h(i)]",
        "u[g] ~ Normal(0, Sigma), Sigma = D(tau) R D(tau), R ~ LKJ, tau = (1|g_sigma, z|g_sigma)",
        "u[h] ~ Normal(0, tau^2), tau = 1|h_sigma",
    ]
    assert section(text, "network") == ["none: a linear predictor"]
    assert section(text, "adversary") == ["none"]
    assert section(text, "fit") == ["not fitted: call fit()"]


def test_modelled_auxiliary_offset_and_weights():
    text = described(["y ~ x + offset(z) + (1 + x || g)", "sigma ~ x + (1 | g)"], "student_t", weights="w")
    assert "20 weighted rows" in text
    model = section(text, "model")
    assert model[:3] == [
        "y_i ~ student_t(eta_i, sigma_i, nu)",
        "eta_i = Intercept + beta[x] x_i + offset_i + (1, x)_i' u[g(i)]",
        "log(sigma_i) = sigma_Intercept + beta[sigma_x] x_i + u[sigma_g(i)]",
    ]
    assert model[-1] == "u[sigma_g] ~ Normal(0, tau^2), tau = sigma_1|g_sigma"
    assert len(section(text, "formula")) == 2


@pytest.mark.parametrize(
    ("formula", "family", "line"),
    [
        ("count ~ x + (1 | g)", "poisson", "y_i ~ poisson(mu_i), log(mu_i) = eta_i"),
        ("p ~ x + (1 | g)", "beta", "y_i ~ beta(mu_i, kappa), logit(mu_i) = eta_i"),
        ("p(s, t) ~ x + (1 | g)", "binomial", "y_i ~ binomial(n_i, mu_i), logit(mu_i) = eta_i"),
        ("c ~ x + (1 | g)", "categorical", "y_i ~ categorical(softmax(0, eta_i)), log odds against low"),
        ("o ~ x + (1 | g)", "ordinal", "P(y_i <= k) = inverse logit(threshold_k - eta_i)"),
    ],
)
def test_response_families(formula, family, line):
    assert section(described(formula, family), "model")[0] == line


def test_levels_of_the_response():
    assert section(described("o ~ x + (1 | g)", "ordinal"), "response") == ["o: low < mid < top"]
    data = frame().assign(b=["no", "yes"] * 10)
    text = described("b ~ x + (1 | g)", "bernoulli", data=data)
    assert section(text, "response") == ["b: no, yes; the probability is that of yes"]


def test_no_groups():
    text = described("y ~ x")
    assert section(text, "groups") == ["none: rows are independent"]
    assert section(text, "model") == ["y_i ~ gaussian(eta_i, sigma)", "eta_i = Intercept + beta[x] x_i"]


def test_many_effects_are_cut():
    data = frame().assign(**{f"x{i}": range(i, 20 + i) for i in range(9)})
    slopes = " + ".join(f"x{i}" for i in range(9))
    (line,) = section(described(f"y ~ x + (1 + {slopes} | g)", data=data), "model")[2:]
    assert "x4|g_sigma, ...)" in line
    assert "x5" not in line


# --- networks ----------------------------------------------------------------------------------------------


def test_network_with_features():
    text = described("b ~ x + z + (1 + features | g)", "bernoulli", of=(network(), "2", 3), network=True)
    assert section(text, "model")[1:] == [
        "eta_i = Intercept + beta[features]' phi(x, z) + (1, phi)_i' u[g(i)]",
        "u[g] ~ Normal(0, Sigma), Sigma = D(tau)^2, tau = (1|g_sigma, features|g_sigma)",
    ]
    assert section(text, "network") == [
        "Sequential, 13 parameters",
        "features phi: the 3 inputs of layer '2', whose weights have a posterior here",
    ]


def test_network_with_point_estimates_in_its_last_layer():
    one = design("b ~ x + z + (1 | g)", frame(), "bernoulli", network=True)
    module = module_of(one)
    module.network, module.output_layer = network(), "2"
    module.spec = module.spec.with_features(3, coefficients=False)
    text = describe_model(SimpleNamespace(module=module, formula=one.describe(), adversary=None))
    assert section(text, "model")[1] == "eta_i = Intercept + f(x, z) + u[g(i)]"
    assert section(text, "network")[1].endswith("whose weights are point estimates")


# --- groups, priors, adversary, fit ------------------------------------------------------------------------


def test_rows_per_group_and_single_rows():
    data = frame().assign(g=["a"] * 10 + ["b"] * 7 + ["c", "d", "e"])
    text = described("y ~ x + (1 | g) + (1 | h)", data=data)
    assert section(text, "groups") == [
        "g: 5 groups, rows per group 1 / 1 / 10 (min, median, max); 3 with a single row",
        "h: 3 groups, rows per group 6 / 7 / 7 (min, median, max)",
    ]


def test_priors_are_those_in_use_on_the_scale_of_the_data():
    data = frame()
    lines = section(described("y ~ x + (1 + z | g)"), "priors")
    found = dict(re.split(r" +~ ", line) for line in lines[:-1])
    s, x, z = (data[name].std(ddof=0) for name in ("y", "x", "z"))
    assert found == {
        "Intercept": f"Normal({data['y'].mean():.3g}, {2.5 * s:.3g})",
        "x": f"Normal(0, {2.5 * s / x:.3g})",
        "1|g_sigma": f"HalfStudentT(3, {2.5 * s:.3g})",
        "z|g_sigma": f"HalfStudentT(3, {2.5 * s / z:.3g})",
        "g_corr": "LKJ(1)",
        "sigma": f"HalfStudentT(4, {s:.3g})",
    }
    assert "mean of the predictors" in lines[-1]


@pytest.mark.parametrize(
    ("prior", "line"),
    [
        (dist.Normal(0.0, 1.0), "Normal(0, 1)"),
        (dist.Normal(torch.zeros(3), 2.0).to_event(1), "Normal(0, 2)"),
        (dist.Normal(-torch.zeros(2), torch.tensor([1.0, 0.123456])), "Normal(0, [1, 0.123])"),
        (dist.Normal(0.0, torch.arange(1.0, 9.0)), "Normal(0, [1, 2, 3, ...])"),
        (dist.HalfNormal(1.5).expand([4]).to_event(1), "HalfNormal(1.5)"),
        (dist.HalfCauchy(torch.tensor(10.0)), "HalfCauchy(10)"),
        (HalfStudentT(3.0, 2.5), "HalfStudentT(3, 2.5)"),
        (dist.Gamma(2.0, 0.1), "Gamma(2, 0.1)"),
        (dist.LKJCholesky(3, 2.0), "LKJ(2)"),
        (dist.Uniform(0.0, 5.0), "Uniform(0, 5)"),
        (dist.Exponential(1e-5), "Exponential(1e-05)"),
        (dist.Bernoulli(probs=torch.tensor(0.25)), "Bernoulli(0.25)"),
    ],
    ids=str,
)
def test_priors_in_a_line(prior, line):
    assert describe_prior(prior) == line


def test_prior_without_known_parameters_is_its_own_description():
    inner = dist.TransformedDistribution(
        dist.Normal(0.0, 1.0), [torch.distributions.transforms.ExpTransform()]
    )
    assert "TransformedDistribution" in describe_prior(inner)


def test_adversary_settings():
    of = (network(), "2", 3)
    text = described("y ~ x + z + (1 | g)", of=of, network=True, adversary=Adversary(weight=0.5))
    assert section(text, "adversary") == ["weight 0.5 against g; hidden layers 8, 8"]
    adversary = Adversary(weight=2.0, hidden=(4,), groups="h")
    text = described("b ~ x + z + (1 | g) + (1 | h)", "bernoulli", of, network=True, adversary=adversary)
    assert section(text, "adversary") == ["weight 2 against h, given the response; hidden layers 4"]


def test_fitted_model():
    def posterior(module):
        made = posterior_of(module, draws=7, chains=3)
        made.attributes |= {"inference": "svi", "guide": "structured", "seed": 4, "elbo": -12.34}
        made.attributes |= {"converged": False, "khat": 0.256}
        return made

    assert section(described("y ~ x + (1 | g)", posterior=posterior), "fit") == [
        "SVI, structured guide: 3 chains of 7 draws, seed 4",
        "ELBO -12.3 (still rising: train longer)",
        "Pareto k 0.26",
    ]
    assert section(described("y ~ x + (1 | g)", posterior=posterior_of), "fit") == [
        "POSTERIOR: 2 chains of 20 draws"
    ]


# --- the picture -------------------------------------------------------------------------------------------


def test_graph_without_graphviz_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install graphviz"):
        render_graph(module_of(design("y ~ x + (1 | g)", frame())))


@pytest.fixture
def graphviz(monkeypatch):
    """The package, or a stand-in that keeps what Pyro draws."""
    if importlib.util.find_spec("graphviz") is not None:
        return

    class Digraph:
        def __init__(self, name="", **options):
            self.name, self.lines = name, []

        def attr(self, *args, **options):
            self.lines.append(str(options))

        def node(self, name, label=None, **options):
            self.lines.append(f'"{name}" {options}')

        def edge(self, tail, head, **options):
            self.lines.append(f'"{tail}" -> "{head}"')

        def subgraph(self, graph):
            self.lines += [f"subgraph {graph.name}", *graph.lines]

        @property
        def source(self):
            return "\n".join(self.lines)

    module = types.ModuleType("graphviz")
    module.Digraph = Digraph
    module.__spec__ = importlib.util.spec_from_loader("graphviz", None)
    monkeypatch.setitem(sys.modules, "graphviz", module)


@pytest.mark.usefixtures("graphviz")
@pytest.mark.parametrize(
    ("formula", "family"),
    [
        ("y ~ x + (1 + z | g) + (1 | h)", "gaussian"),
        ("c ~ x + (1 + z | g)", "categorical"),
        ("o ~ x + (1 | g)", "ordinal"),
        ("p(s, t) ~ x + (0 + c | g)", "binomial"),
        (["y ~ x + (1 | g)", "sigma ~ x + (1 | g)"], "student_t"),
    ],
)
def test_graph_has_plates_and_the_response(formula, family, unmoved_rng):
    module = module_of(design(formula, frame(), family)).train()
    with unmoved_rng():
        source = render_graph(module).source
    assert module.training
    assert "cluster_g__factor_dim" in source
    assert "cluster___obs__" in source
    plain = source.replace('"', "")
    response = module.spec.response
    assert f"x_raw -> {response}" in plain
    effect = "c|g" if "0 + c" in str(formula) else "1|g"
    assert f"{effect}_sigma -> {response}" in plain


@pytest.mark.usefixtures("graphviz")
def test_graph_of_a_network_leaves_its_state_alone():
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).double()
    one = design("b ~ x + z + (1 + features | g)", frame(), "bernoulli", network=True)
    module = module_of(one, net, "2", 3)
    before = net[1].running_mean.clone()
    assert "features|g" in render_graph(module, render_distributions=True).source
    assert torch.equal(net[1].running_mean, before)
