"""Modules that share no parameters, in the library's way and in plain Pyro's."""

import copy

import pyro
import pytest
import torch
from torch import nn

from pyro_armed.local import LocalPyroModule, local_parameters


class Line(LocalPyroModule):
    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(1.0))
        self.layer = nn.Linear(1, 1)

    def forward(self, x):
        return self.slope * self.layer(x)


def names(module):
    trace = pyro.poutine.trace(module).get_trace(torch.ones(1, 1))
    return {name for name, site in trace.nodes.items() if site["type"] == "param"}


def test_context_is_put_back_also_after_an_error():
    before = pyro.settings.get("module_local_params")
    with local_parameters():
        assert pyro.settings.get("module_local_params") is True
    assert pyro.settings.get("module_local_params") == before
    with pytest.raises(ZeroDivisionError), local_parameters():
        _ = 1 / 0
    assert pyro.settings.get("module_local_params") == before


def test_local_modules_leave_the_store_alone():
    with local_parameters():
        Line()(torch.ones(1, 1))
        assert len(names(Line())) == 3
    assert len(pyro.get_param_store()) == 0


@pytest.mark.global_params
def test_names_are_unique_also_of_copies():
    one, other = Line(), Line()
    copied = copy.deepcopy(one)
    twice = copy.deepcopy(copied)
    found = [names(module) for module in (one, other, copied, twice)]
    assert all(len(part) == 3 for part in found)
    assert len(set.union(*found)) == 12
    assert names(one) == found[0]


def test_a_copy_has_the_same_values_in_other_tensors():
    one = Line().eval()
    one.extra = [1, {"a": torch.ones(2)}]
    copied = copy.deepcopy(one)
    assert not copied.training
    assert torch.equal(copied.slope, one.slope)
    assert copied.slope is not one.slope
    assert copied.layer.weight is not one.layer.weight
    assert copied.extra[1]["a"] is not one.extra[1]["a"]
    holder = {"first": one, "again": one}
    both = copy.deepcopy(holder)
    assert both["first"] is both["again"]
    assert copied._pyro_context is not one._pyro_context
