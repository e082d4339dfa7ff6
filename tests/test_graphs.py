"""Graphs: constants folded, idle operations dropped, random numbers drawn outside."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_armed.graphs import direct, draws_outside, masks_as_positions, simplified


def names(graph):
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


def graph_of(function, *example):
    return make_fx(torch.func.functionalize(function))(*example)


def test_what_does_not_depend_on_arguments_is_computed_once():
    constant = torch.tensor([1.0, 2.0])
    graph = simplified(graph_of(lambda x: x * constant.exp().sum(), torch.ones(2)))
    assert names(graph) == ["aten.mul.Tensor"]
    x = torch.tensor([3.0, -1.0])
    torch.testing.assert_close(graph(x), x * constant.exp().sum())


def test_operations_that_return_their_argument_are_dropped():
    graph = simplified(graph_of(lambda x: (x.reshape(2) * 1.0 + 0.0).exp(), torch.ones(2)))
    assert names(graph) == ["aten.exp.default"]


def test_a_change_of_precision_is_not_idle():
    graph = simplified(graph_of(lambda n: n * 1.0, torch.arange(2)))
    assert graph(torch.arange(2)).dtype == torch.float32


def test_direct_graphs_say_the_same():
    graph = simplified(graph_of(lambda x: (x.exp() + x.log()).sum(), torch.ones(3)))
    x = torch.tensor([0.5, 1.0, 2.0])
    before = graph(x)
    assert torch.equal(direct(graph)(x), before)
    assert not any(name.startswith("aten.exp") for name in names(graph))


DRAWS = {
    "normal": lambda x: torch.empty(5).normal_(1.0, 2.0),
    "randn": lambda x: torch.randn(5),
    "randn_like": torch.randn_like,
    "rand": lambda x: torch.rand(5),
    "uniform": lambda x: torch.empty(5).uniform_(-2.0, 3.0),
    "bernoulli": lambda x: torch.empty(5).bernoulli_(0.3),
    "exponential": lambda x: torch.empty(5).exponential_(2.0),
    "dropout": lambda x: torch.nn.functional.dropout(x, 0.4),
}


@pytest.mark.parametrize("name", DRAWS)
def test_random_numbers_become_arguments_and_stay_the_same(name):
    x = torch.linspace(1.0, 2.0, 5)
    graph = graph_of(lambda x: x + DRAWS[name](x), x)
    draws = draws_outside(graph)
    generator = torch.Generator().manual_seed(7)
    numbers = [draw.like.clone() for draw in draws]
    for draw, filled in zip(draws, numbers, strict=True):
        draw.fill(filled, generator)
    torch.manual_seed(7)
    assert torch.equal(graph(x, *numbers), x + DRAWS[name](x))
    torch.manual_seed(8)
    assert torch.equal(graph(x, *numbers), graph(x, *numbers))


def test_draws_that_depend_on_values_are_refused():
    graph = graph_of(torch.bernoulli, torch.full((3,), 0.5))
    with pytest.raises(NotImplementedError, match="depends on other values"):
        draws_outside(graph)


def test_masks_as_positions():
    mask = torch.tensor([[True, False], [True, True]])

    def put(x, y):
        z = x.clone()
        z[..., mask] = y
        return [z, x[..., mask]]

    x, y = torch.randn(3, 2, 2), torch.randn(3, 3)
    graph = masks_as_positions(simplified(make_fx(put)(x, y)))
    for found, expected in zip(graph(x, y), put(x, y), strict=True):
        torch.testing.assert_close(found, expected)
    constants = [getattr(graph, node.target) for node in graph.graph.nodes if node.op == "get_attr"]
    assert constants
    assert all(constant.dtype == torch.int64 for constant in constants)
