"""The state of training: restarts apart, laid out alike, and which tables stand in it by rows."""

import pytest
import torch
from hand_made import frame
from hand_made_guides import networked_objective, objective_of

from pyro_armed.objective import Objective
from pyro_armed.training_state import Layout, blank_state, initial_state, sparse_groups, write_back


def test_a_state_keeps_restarts_apart():
    objectives = [objective_of(), objective_of()]
    with torch.no_grad():
        objectives[1].guide.locations[0].add_(1.0)
    layout = Layout.of(objectives[0], ("g",))
    state = initial_state(layout, objectives)
    before = [[p.clone() for p in one.guide.parameters()] for one in objectives]
    for one in objectives:
        with torch.no_grad():
            for parameter in one.guide.parameters():
                parameter.zero_()
    write_back(layout, state, objectives)
    for one, values in zip(objectives, before, strict=True):
        assert all(map(torch.equal, one.guide.parameters(), values))


@pytest.mark.parametrize("count", [1, 2])
def test_a_blank_state_is_laid_out_like_a_state(count):
    objectives = [objective_of() for _ in range(count)]
    layout = Layout.of(objectives[0], ("g",))
    blank, state = blank_state(layout, objectives), initial_state(layout, objectives)
    assert list(blank) == list(state)
    for name, tensor in state.items():
        other = blank[name]
        assert (other.shape, other.stride(), other.dtype) == (tensor.shape, tensor.stride(), tensor.dtype)


def test_which_groups_are_sparse():
    objective = objective_of("y ~ x + (1 | g) + (1 | h)", data=frame(30, 2))
    data = objective.module.data
    assert sparse_groups(objective, data, 10) == ("g",)
    assert sparse_groups(objective, data, 20) == ()
    assert sparse_groups(objective, data, data.n_rows) == ()
    watched = networked_objective()
    assert sparse_groups(watched, watched.module.data, 2) == ()
    assert sparse_groups(replace_guide(objective), data, 10) == ()


def replace_guide(objective):
    return Objective(objective.module, lambda batch, hidden: None)
