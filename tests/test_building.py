"""From a user's network and settings to a model: plans, instances, restarts, adversaries."""

import copy

import pytest
import torch
from hand_made import design, frame
from torch import nn

import pyro_armed as pa
from pyro_armed.arrays import ArrayDesign
from pyro_armed.building import NetworkPlan, build_adversary, build_module
from pyro_armed.errors import ArgumentError
from pyro_armed.local import local_parameters


def rows(formula="y ~ x + z + (1 | g)", family="gaussian"):
    made = design(formula, frame(), family, network=True)
    return made.spec, made.training.batch


def images():
    data = frame()
    x = torch.randn(20, 1, 6, 6, generator=torch.Generator().manual_seed(0)).numpy()
    made = ArrayDesign(
        x,
        data["y"].to_numpy(),
        {"g": data["g"]},
        pa.families.get("gaussian"),
        [pa.RandomEffects("g")],
        network=True,
    )
    return made.spec, made.training.batch


def plan_of(source, formula="y ~ x + z + (1 | g)", family="gaussian", last_layer="bayesian"):
    spec, data = rows(formula, family)
    plan = NetworkPlan.inspect(source, spec, data, last_layer)
    return plan, plan.complete(spec), data


def sequential(out=1, width=3):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, out))


class NoLinearEnd(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x):
        return torch.tanh(self.layer(x))


# --- plans -------------------------------------------------------------------------------------------------


def test_an_mlp_gets_its_size_from_the_data():
    plan, spec, data = plan_of(pa.networks.MLP(hidden=(5, 4)))
    assert (plan.n_features, plan.last_layer, plan.dtype) == (4, "bayesian", torch.float32)
    assert spec.n_features == 4
    assert spec.mu.features
    module = build_module(spec, {}, plan, data, 0)
    assert module.priors["features"].raw.event_shape == (4,)
    with local_parameters():
        assert module.hidden(data)[0].shape == (20, 4)


def test_a_cnn_gets_its_size_from_the_images():
    spec, data = images()
    plan = NetworkPlan.inspect(pa.networks.CNN(channels=(2,)), spec, data, "bayesian")
    assert plan.n_features > 0
    module = build_module(plan.complete(spec), {}, plan, data, 0)
    with local_parameters():
        module()
        assert module.hidden(data)[0].shape == (20, plan.n_features)


def test_a_network_of_the_users_own_is_read_from_outside_and_never_changed():
    network = sequential()
    before, keys = copy.deepcopy(network.state_dict()), set(vars(network))
    network.train()
    plan, spec, data = plan_of(network)
    assert (plan.output_layer, plan.n_features) == ("2", 3)
    module = build_module(spec, {}, plan, data, 0)
    assert module.network is not network
    with torch.no_grad():
        module.network[0].weight.add_(1.0)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())
    assert set(vars(network)) == keys
    assert network.training
    assert not network._forward_hooks


def test_a_function_makes_networks():
    made = []

    def make():
        made.append(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)))
        return made[-1]

    state = torch.get_rng_state()
    plan, spec, data = plan_of(make)
    one, same, other = (plan.instance(spec, data, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one[0].weight, same[0].weight)
    assert not torch.equal(one[0].weight, other[0].weight)
    assert len({id(network) for network in made}) == 4


def test_without_a_linear_end_the_networks_own_output_is_the_predictor():
    plan, spec, data = plan_of(NoLinearEnd())
    assert (plan.output_layer, plan.n_features, plan.last_layer) == (None, 0, "point")
    assert not spec.mu.features
    module = build_module(spec, {}, plan, data, 0)
    assert "features" not in module.priors
    with local_parameters():
        eta = module.linear_predictor(spec.mu, {"Intercept": torch.zeros(()).double()}, data, random=False)
        output = module.network(data.inputs.float())[:, 0].double()
    torch.testing.assert_close(eta, spec.response_scale * output)


def test_a_point_layer_has_no_prior_but_its_inputs_are_known():
    plan, spec, data = plan_of(sequential(), "y ~ x + z + (1 + features | g)", last_layer="point")
    module = build_module(spec, {}, plan, data, 0)
    assert "features" not in module.priors
    assert module.priors["features|g_sigma"].raw.event_shape == (3,)


def test_an_output_for_each_level():
    plan, spec, data = plan_of(sequential(out=2), "c ~ x + z + (1 | g)", "categorical")
    module = build_module(spec, {}, plan, data, 0)
    assert module.priors["features"].raw.event_shape == (3, 2)


def test_double_precision_networks_stay_so():
    plan, _, _ = plan_of(sequential().double())
    assert plan.dtype == torch.float64


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (sequential(out=2), {}, r"returned 2 column\(s\) where 1 expected"),
        (
            sequential(out=1),
            {"formula": "c ~ x + z + (1 | g)", "family": "categorical"},
            r"returned 1 column\(s\) where 2 expected",
        ),
        (nn.Linear(3, 1), {}, "network cannot be run on an example batch of shape"),
        ("mlp", {}, r"network='mlp' must be a torch.nn.Module, a function that makes one, or None"),
        (3, {}, "network=3 must be a torch.nn.Module"),
        (lambda: 3, {}, r"network=\.\.\. must return a torch.nn.Module, not int"),
        (sequential(), {"last_layer": "both"}, "last_layer='both' is not 'bayesian' or 'point'"),
        (NoLinearEnd(), {"formula": "y ~ x + z + (1 + features | g)"}, "does not end in an nn.Linear"),
        (nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 1)), {}, "has no size yet"),
        (nn.Flatten(0), {}, "must return one row per input row"),
    ],
)
def test_bad_networks(source, options, message):
    with pytest.raises(ArgumentError, match=message):
        plan_of(source, **options)


def test_no_inputs():
    made = design("y ~ 1 + (1 | g)", frame())
    with pytest.raises(ArgumentError, match="needs inputs; leave it out"):
        NetworkPlan.inspect(pa.networks.MLP(), made.spec, made.training.batch, "bayesian")


# --- restarts ----------------------------------------------------------------------------------------------


def test_restarts_redraw_the_librarys_networks():
    plan, spec, data = plan_of(pa.networks.MLP(hidden=(4,)))
    one, same, other = (plan.instance(spec, data, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)


def test_restarts_redraw_the_librarys_networks_also_where_they_have_weights_already():
    network = pa.networks.MLP(hidden=(4,)).build(2, 1)
    plan, spec, data = plan_of(network)
    one, other = (plan.instance(spec, data, seed).state_dict() for seed in (3, 4))
    assert not any(torch.equal(one[name], other[name]) for name in one)
    assert not any(torch.equal(one[name], value) for name, value in network.state_dict().items())


def test_restarts_keep_the_weights_of_a_users_network_in_copies():
    network = sequential()
    plan, spec, data = plan_of(network)
    one, other = (plan.instance(spec, data, seed) for seed in (3, 4))
    assert one is not other
    assert torch.equal(one[0].weight, network[0].weight)
    assert torch.equal(other[0].weight, network[0].weight)
    assert one[0].weight is not network[0].weight


def test_frozen_layers_stay_frozen():
    network = sequential()
    network[0].weight.requires_grad_(False)
    plan, spec, data = plan_of(network)
    made = build_module(spec, {}, plan, data, 1).network
    assert [p.requires_grad for p in made.parameters()] == [False, True, True, True]


def test_inspection_leaves_batch_statistics_alone():
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 1))
    before = network[1].running_mean.clone()
    plan, spec, data = plan_of(network)
    made = plan.instance(spec, data, 0)
    assert torch.equal(made[1].running_mean, before)
    assert int(made[1].num_batches_tracked) == 0


# --- adversaries -------------------------------------------------------------------------------------------


def head_of(settings, formula="b ~ x + z + (1 | g) + (1 | h)", family="bernoulli", **options):
    plan, spec, data = plan_of(sequential(**options), formula, family)
    return build_adversary(settings, build_module(plan.complete(spec), {}, plan, data, 0), data, 0)


def test_no_adversary():
    assert head_of(None) is None


def test_an_adversary_names_the_first_group_unless_told():
    head = head_of(pa.Adversary(1.0))
    assert head.groups == ("g",)
    assert head.classifiers[0].groups == 5
    assert head.conditional
    both = head_of(pa.Adversary(1.0, groups=("h", "g")))
    assert [classifier.groups for classifier in both.classifiers] == [3, 5]
    first, second = both.classifiers[0].state_dict(), both.classifiers[1].state_dict()
    assert not torch.equal(first["layers.0.weight"], second["layers.0.weight"])


def test_it_sees_the_response_of_a_classification():
    assert head_of(pa.Adversary(1.0)).classifiers[0].label_dim == 1
    levels = head_of(pa.Adversary(1.0), "c ~ x + z + (1 | g)", "categorical", out=2)
    assert levels.classifiers[0].label_dim == 3
    gaussian = head_of(pa.Adversary(1.0), "y ~ x + z + (1 | g)", "gaussian")
    assert gaussian.classifiers[0].label_dim == 0
    assert not gaussian.conditional


def test_bad_adversaries():
    with pytest.raises(ArgumentError, match=r"adversary's group 'k' is not in the model; it has g, h"):
        head_of(pa.Adversary(1.0, groups="k"))
    with pytest.raises(ArgumentError, match="needs a grouping factor"):
        head_of(pa.Adversary(1.0), "b ~ x + z")
    spec, data = rows()
    with pytest.raises(ArgumentError, match="needs a network with a linear output layer"):
        build_adversary(pa.Adversary(1.0), build_module(spec, {}, None, data, 0), data, 0)
    with pytest.raises(ArgumentError, match="no layer named 'body'; it has 0, 1, 2"):
        head_of(pa.Adversary(1.0, layers="body"))


def test_an_adversary_of_named_layers_needs_no_linear_output_layer():
    network = nn.Sequential(nn.Unflatten(1, (1, 2)), nn.Conv1d(1, 3, 2), nn.Flatten(), nn.AvgPool1d(3))
    plan, spec, data = plan_of(network, "b ~ x + z + (1 | g)", "bernoulli")
    module = build_module(plan.complete(spec), {}, plan, data, 0)
    head = build_adversary(pa.Adversary(1.0, layers=("1", "0")), module, data, 0)
    assert head.classifiers[0].features == 3 + 2
    with pytest.raises(ArgumentError, match="or name layers"):
        build_adversary(pa.Adversary(1.0), module, data, 0)
