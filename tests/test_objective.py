"""The loss: the negative ELBO against Pyro's and a closed form, and the signs of the auxiliary terms."""

import itertools
from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from hand_made import design, frame, module_of
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from scipy import stats
from torch import nn
from torch.distributions import kl_divergence

import pyro_armed as pa
from pyro_armed import objective as objective_module
from pyro_armed.building import build_adversary
from pyro_armed.guides import MeanFieldGuide
from pyro_armed.local import local_parameters
from pyro_armed.objective import Objective, negative_elbo
from pyro_armed.seeds import seeded

MODELS = {
    "gaussian": ("y ~ x + c + (1 + z | g) + (1 | h)", "gaussian", {}),
    "weights": ("y ~ x + (1 | g)", "gaussian", {"weights": "w"}),
    "bernoulli": ("b ~ x + (1 | g)", "bernoulli", {}),
    "categorical": ("c ~ x + (1 | g)", "categorical", {}),
    "ordinal": ("o ~ x + (1 + x || g)", "ordinal", {}),
    "sigma": (["y ~ x + (1 | g)", "sigma ~ x + (1 | g)"], "gaussian", {}),
}


def guide_of(module, scale=0.3):
    return MeanFieldGuide(module, module.data, torch.Generator().manual_seed(3), init_scale=scale)


def pair(name="gaussian", data=None):
    formulas, family, options = MODELS[name]
    module = module_of(design(formulas, frame() if data is None else data, family, **options))
    return module, guide_of(module)


def networked(formula="b ~ x + z + (1 | g)", family="bernoulli", **settings):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    module = module_of(design(formula, frame(8, 5), family, network=True), network, "2", 4)
    head = build_adversary(pa.Adversary(**settings), module, module.data, 0) if settings else None
    return module, guide_of(module), head


def loss(module, guide, batch, seed=0):
    with local_parameters(), seeded(seed):
        return negative_elbo(module, guide, batch)[0]


# --- the ELBO ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rows", [None, [0, 3, 4, 11, 12]])
def test_value_is_that_of_pyros_mean_field_elbo(name, rows):
    module, guide = pair(name)
    batch = module.data if rows is None else module.data.select(torch.tensor(rows))
    with local_parameters(), seeded(5):
        expected = TraceMeanField_ELBO().loss(module, guide, batch)
    assert float(loss(module, guide, batch, 5).detach()) == pytest.approx(expected, rel=1e-10)


def test_value_is_that_of_pyros_trace_elbo_but_for_the_closed_divergences():
    module, guide = pair()
    with local_parameters(), seeded(5):
        expected = Trace_ELBO().loss(module, guide)
    with local_parameters(), seeded(5), torch.no_grad():
        guide_trace = poutine.trace(guide).get_trace()
        model_trace = poutine.trace(poutine.replay(module, trace=guide_trace)).get_trace()
    closed = drawn = 0.0
    for name, site in guide_trace.nodes.items():
        if name.endswith(("_raw", "_offset")):
            q, p, value = site["fn"], model_trace.nodes[name]["fn"], site["value"]
            closed += float(kl_divergence(q, p).sum().detach())
            drawn += float((q.log_prob(value) - p.log_prob(value)).sum().detach())
    assert abs(closed - drawn) > 1e-3
    found = float(loss(module, guide, module.data, 5).detach())
    assert found - closed + drawn == pytest.approx(expected, rel=1e-10)


def test_gradients_are_those_of_pyros_mean_field_elbo():
    module, guide = pair()
    parameters = list(guide.parameters())
    with local_parameters(), seeded(5):
        expected = torch.autograd.grad(
            TraceMeanField_ELBO().differentiable_loss(module, guide, module.data), parameters
        )
    found = torch.autograd.grad(loss(module, guide, module.data, 5), parameters)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


class _At(dist.Normal):
    """A normal whose draws are one sd above or below the mean; two of them integrate a parabola exactly."""

    sign = 1.0

    def rsample(self, sample_shape=()):
        return self.loc + self.sign * self.scale


def test_at_the_posterior_of_a_conjugate_model_it_is_the_evidence_and_flat():
    """Given sds and intercept, groups are independent: the mean-field posterior is exact."""
    data = frame(4, 5).drop(index=[0, 7, 8])
    module = module_of(design("y ~ 1 + (1 | g)", data))
    sigma, tau, raw = 0.8, 1.7, 0.25
    fixed = {"sigma": sigma, "1|g_sigma": tau, "Intercept_raw": raw}
    conditioned = poutine.condition(
        module, {k: torch.tensor(v, dtype=torch.float64) for k, v in fixed.items()}
    )
    y, codes = data["y"].to_numpy(), module.data.codes["g"].numpy()
    prior = module.priors["Intercept"]
    mean = float(prior.shift + prior.unit * raw)
    same = (codes[:, None] == codes).astype(float)
    evidence = stats.multivariate_normal.logpdf(y, np.full(17, mean), sigma**2 * np.eye(17) + tau**2 * same)
    for name in fixed:
        key = "Intercept" if name == "Intercept_raw" else name
        evidence += float(module.priors[key].raw.log_prob(torch.tensor(fixed[name], dtype=torch.float64)))
    counts, sums = np.bincount(codes), np.bincount(codes, y - mean)
    variance = 1.0 / (1.0 + counts * tau**2 / sigma**2)
    location = torch.tensor(variance * tau / sigma**2 * sums, requires_grad=True)
    scale = torch.tensor(np.sqrt(variance), requires_grad=True)

    def guide(batch=None, hidden=None):
        with pyro.plate("g__factor_dim", 4, dim=-1):
            pyro.sample("1|g_offset", _At(location, scale))

    losses = []
    for sign in (1.0, -1.0):
        _At.sign = sign
        losses.append(negative_elbo(conditioned, guide, module.data)[0])
    total = torch.stack(losses).mean()
    assert -float(total.detach()) == pytest.approx(evidence, rel=1e-10)
    for gradient in torch.autograd.grad(total, [location, scale]):
        torch.testing.assert_close(gradient, torch.zeros(4).double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["gaussian", "weights", "categorical"])
def test_mean_over_all_minibatches_is_the_full_elbo(name):
    module, guide = pair(name, frame(3, 3))
    full = float(loss(module, guide, module.data).detach())
    parts = [
        float(loss(module, guide, module.data.select(torch.tensor(rows))).detach())
        for rows in itertools.combinations(range(9), 3)
    ]
    assert np.mean(parts) == pytest.approx(full, rel=1e-11)
    assert np.std(parts) > 0


def test_mean_over_batches_of_present_groups_is_the_full_elbo():
    """Groups with few rows are present less often, and count more when they are."""
    data = frame(3, 3).drop(index=[1, 2])
    module = module_of(design("y ~ x + (1 + z | g)", data))
    guide = guide_of(module)
    with torch.no_grad():
        for site, location, log_scale in zip(guide.sites, guide.locations, guide.log_scales, strict=True):
            if site.group:  # group effects so narrow that their draw is their mean in every batch
                location.uniform_(-1.0, 1.0)
                log_scale.fill_(-32.0)
    full = float(loss(module, guide, module.data).detach())
    codes = module.data.codes["g"]
    batches = [torch.tensor(rows) for rows in itertools.combinations(range(7), 3)]
    counts = torch.stack([torch.bincount(codes[rows], minlength=3) > 0 for rows in batches]).double().mean(0)
    parts = []
    for rows in batches:
        present, own = torch.unique(codes[rows], return_inverse=True)
        batch = replace(
            module.data.select(rows),
            codes={"g": own},
            present={"g": present},
            group_scale={"g": 1.0 / counts[present]},
        )
        parts.append(float(loss(module, guide, batch).detach()))
    assert np.mean(parts) == pytest.approx(full, rel=1e-10)


def test_two_steps_with_one_seed_are_one():
    module, guide = pair()
    assert torch.equal(loss(module, guide, module.data, 1), loss(module, guide, module.data, 1))
    assert not torch.equal(loss(module, guide, module.data, 1), loss(module, guide, module.data, 2))


# --- auxiliary terms ---------------------------------------------------------------------------------------


def parts_of(objective, weight=0.0, batch=None, seed=0):
    with local_parameters(), seeded(seed):
        return objective(batch or objective.module.data, weight)


def test_without_auxiliary_terms_the_total_is_the_negative_elbo_to_the_last_bit():
    for module, guide in (pair("gaussian"), networked()[:2]):
        parts = parts_of(Objective(module, guide))
        assert torch.equal(parts.total, parts.elbo)
        expected = loss(module, guide, module.data) / module.spec.n_rows
        assert torch.equal(parts.total, expected)
        assert float(parts.adversary) == float(parts.fixed_effects) == 0.0


def test_parts_of_a_minibatch_are_per_row_of_the_data_set():
    module, guide = pair("gaussian")
    batch = module.data.select(torch.tensor([0, 3, 4]))
    parts = parts_of(Objective(module, guide), batch=batch)
    assert torch.equal(parts.elbo, loss(module, guide, batch) / 20)


def gradients(total, parameters):
    return torch.autograd.grad(total, parameters, retain_graph=True)


def test_an_adversary_of_weight_zero_leaves_every_gradient_as_it_is():
    module, guide, head = networked(weight=0.0)
    # The network's last layer is replaced by coefficients.
    parameters = [*module.network[0].parameters(), *guide.parameters()]
    watched, alone = parts_of(Objective(module, guide, head)), parts_of(Objective(module, guide))
    assert torch.equal(watched.elbo, alone.elbo)
    assert float(watched.adversary.detach()) > 0
    assert torch.equal(watched.total, watched.elbo + watched.adversary)
    for one, other in zip(
        gradients(watched.total, parameters), gradients(alone.total, parameters), strict=True
    ):
        assert torch.equal(one, other)


def test_minimising_the_total_raises_the_frozen_adversarys_loss():
    module, guide, head = networked(weight=1.0)
    network, classifier = list(module.network[0].parameters()), list(head.classifiers.parameters())
    objective = Objective(module, guide, head)
    before = parts_of(objective, 1.0).adversary
    step = torch.autograd.grad(before, network)
    with torch.no_grad():
        for parameter, gradient in zip(network, step, strict=True):
            parameter.sub_(0.01 * gradient)
    after = parts_of(objective, 1.0).adversary
    assert float(after.detach()) > float(before.detach())
    step = torch.autograd.grad(after, classifier)
    with torch.no_grad():
        for parameter, gradient in zip(classifier, step, strict=True):
            parameter.sub_(0.01 * gradient)
    assert float(parts_of(objective, 1.0).adversary.detach()) < float(after.detach())


def test_an_adversary_reads_named_layers_and_pushes_on_what_is_below_them():
    """The first layer's output by hand: a linear classifier of it, its gradient reversed."""
    module, guide, head = networked(weight=1.0, layers=("0", "1"), hidden=(), conditional=False)
    assert head.classifiers[0].features == 8
    parts = parts_of(Objective(module, guide, head), 0.3)
    weight = module.network[0].weight
    found = torch.autograd.grad(parts.adversary, [weight, module.network[2].weight], allow_unused=True)
    assert found[1] is None
    first = module.data.inputs @ weight.T + module.network[0].bias
    seen = torch.cat([first, torch.tanh(first)], dim=1).float()
    logits = head.classifiers[0](seen)
    expected = torch.autograd.grad(nn.functional.cross_entropy(logits, module.data.codes["g"]), weight)[0]
    torch.testing.assert_close(found[0], -0.3 * expected, rtol=1e-5, atol=1e-9)
    assert not module.network[0]._forward_hooks
    assert not module.network[1]._forward_hooks


def test_the_weight_scales_the_reversed_gradient_and_nothing_else():
    module, guide, head = networked(weight=1.0)
    network, classifier = module.network[0].weight, next(head.classifiers.parameters())
    one, three = (parts_of(Objective(module, guide, head), weight) for weight in (1.0, 3.0))
    assert torch.equal(one.total, three.total)
    first, third = (gradients(parts.adversary, [network, classifier]) for parts in (one, three))
    torch.testing.assert_close(3.0 * first[0], third[0])
    assert torch.equal(first[1], third[1])


def test_the_adversary_never_enters_the_elbo():
    module, guide, head = networked(weight=5.0)
    strong, alone = parts_of(Objective(module, guide, head), 5.0), parts_of(Objective(module, guide))
    assert torch.equal(strong.elbo, alone.elbo)
    for one, other in zip(
        gradients(strong.elbo, list(guide.parameters())),
        gradients(alone.elbo, list(guide.parameters())),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_accuracy_and_chance_are_told():
    module, guide, head = networked(weight=1.0, groups="g")
    parts = parts_of(Objective(module, guide, head), 1.0)
    assert parts.adversary_accuracy.shape == (1,)
    assert 0.0 <= float(parts.adversary_accuracy) <= 1.0
    # Rows alternate between the classes: three and two rows of each group, the first having three in one.
    assert head.chance == (pytest.approx(2 * 3 / 40),)


def test_fixed_effects_loss_ignores_group_effects():
    module, guide = pair("gaussian")
    objective = Objective(module, guide, fixed_effects_weight=0.7)
    before = parts_of(objective)
    own = [p for s, p in zip(guide.sites, guide.locations, strict=True) if s.group]
    found = torch.autograd.grad(before.fixed_effects, own, allow_unused=True, retain_graph=True)
    assert all(gradient is None or not gradient.any() for gradient in found)
    with torch.no_grad():
        for location in own:
            location.add_(100.0)
    after = parts_of(objective)
    assert torch.equal(before.fixed_effects, after.fixed_effects)
    assert not torch.equal(before.elbo, after.elbo)
    assert torch.equal(after.total, after.elbo + after.adversary + after.fixed_effects)


@pytest.mark.parametrize("name", ["gaussian", "weights"])
def test_fixed_effects_loss_by_hand(name):
    module, guide = pair(name)
    data = frame()
    with local_parameters(), seeded(0):
        guide_trace = poutine.trace(guide).get_trace(module.data, None)
    parts = parts_of(Objective(module, guide, fixed_effects_weight=0.7))
    with local_parameters():
        trace = poutine.trace(poutine.replay(module, trace=guide_trace)).get_trace()
    value = {n: s["value"].detach().numpy() for n, s in trace.nodes.items() if s["type"] == "sample"}
    mean = value["Intercept"] + value["x"] * data["x"].to_numpy()
    if name == "gaussian":
        mean = mean + np.stack([data["c"] == "mid", data["c"] == "top"], 1).astype(float) @ value["c"]
    log_density = stats.norm.logpdf(data["y"], mean, value["sigma"])
    weights = data["w"] if name == "weights" else np.ones(20)
    expected = -0.7 * np.average(log_density, weights=weights)
    assert float(parts.fixed_effects.detach()) == pytest.approx(expected, rel=1e-9)


def test_rows_of_weight_zero_count_nowhere():
    module, guide = pair("weights")
    weights = module.data.weights.clone()
    weights[4] = 0.0
    one = replace(module.data, weights=weights)
    response = module.data.response.clone()
    response[4] = 1e6
    other = replace(one, response=response)
    objective = Objective(module, guide, fixed_effects_weight=1.0)
    first, second = (parts_of(objective, batch=batch) for batch in (one, other))
    assert torch.equal(first.total, second.total)


@pytest.mark.parametrize(("fixed", "rows"), [(0.3, 20), (0.0, 16)])
def test_auxiliary_terms_of_effects_within_a_network_take_a_part_of_a_minibatch(fixed, rows):
    """Half of 40 rows for a fixed-effects loss; a quarter for an adversary alone, but not below 16."""
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
    model = pa.ARMED.from_arrays(
        x,
        (x[:, 0] > 0).numpy(),
        {"site": ["a", "b", "c"] * 20},
        family="bernoulli",
        network=network,
        adversary=pa.Adversary(0.5),
        random_effects=[pa.effects.ScaleBias(["0"], "site")],
    )
    module = model.module
    head = build_adversary(model.adversary, module, module.data, 0)
    objective = Objective(module, guide_of(module), head, fixed)
    batch = module.data.select(torch.arange(10, 50))
    inputs = [batch.inputs.clone() for _ in range(3)]
    inputs[1][rows:] += 1.0
    inputs[2][rows - 1 :] += 1.0
    one, other, more = (parts_of(objective, batch=replace(batch, inputs=some)) for some in inputs)
    # The other rows move the ELBO alone.
    assert torch.equal(one.adversary, other.adversary)
    assert torch.equal(one.fixed_effects, other.fixed_effects)
    assert not torch.equal(one.elbo, other.elbo)
    assert not torch.equal(one.adversary, more.adversary)
    # All rows of the data set stay, and so do those of few rows.
    assert objective_module._part(module.data, 4) is module.data
    few = module.data.select(torch.arange(12))
    assert objective_module._part(few, 4) is few
