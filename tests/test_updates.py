"""A step as a function of tensors: Adam, clipping, and the tables of which only some rows move."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hand_made import frame
from hand_made_guides import networked_objective, objective_of

from pyro_armed.compiled import unchecked_priors
from pyro_armed.local import local_parameters
from pyro_armed.seeds import seeded
from pyro_armed.training import TrainingSettings, no_validation, train
from pyro_armed.training_state import (
    first_values,
    group_tables,
    initial_state,
    rows_key,
    write_back,
)
from pyro_armed.updates import RARE, Update

CONTROLS = torch.tensor([0.5, 0.02, 0.01], dtype=torch.float64)


def walk(update, state, data, rows, controls=CONTROLS, seed=0):
    """Take eager steps; returns their records."""
    with local_parameters(), no_validation(), seeded(seed):
        return torch.stack([update(state, data.tensors(), some, controls) for some in rows])


def test_steps_are_those_of_torchs_adam():
    objective, other = networked_objective(), networked_objective()
    data = objective.module.data
    rows = [torch.tensor([0, 3, 4, 9, 11, 17]), torch.tensor([1, 2, 5, 6, 7, 8])] * 4
    update = Update(objective, data, 6, clip=math.inf)
    state = initial_state(update.layout, [objective])
    records = walk(update, state, data, rows)
    write_back(update.layout, state, [objective])
    trained = [*other.guide.parameters(), *other.module.parameters()]
    adam = torch.optim.Adam(
        [
            {"params": trained, "lr": 0.02},
            {"params": other.adversary.classifiers.parameters(), "lr": 0.01, "weight_decay": 0.1},
        ],
        betas=(0.9, 0.99),
    )
    expected = []
    with local_parameters(), no_validation(), seeded(0):
        for some in rows:
            adam.zero_grad()
            parts = other(data.select(some), 0.5)
            parts.total.backward()
            adam.step()
            expected.append(torch.cat([-parts.elbo.detach()[None], parts.adversary_accuracy]))
    torch.testing.assert_close(records, torch.stack(expected).double(), rtol=1e-6, atol=1e-7)
    for one, two in ((objective.guide, other.guide), (objective.module, other.module)):
        for name, value in one.state_dict().items():
            torch.testing.assert_close(value, two.state_dict()[name], rtol=1e-5, atol=1e-6)
    for one, two in zip(
        objective.adversary.classifiers.parameters(), other.adversary.classifiers.parameters(), strict=True
    ):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_first_values_are_those_of_the_first_state():
    objective = objective_of(data=unbalanced())
    data = objective.module.data
    update = Update(objective, data, 10, 10.0, ("g",))
    batch, present = update.select(data.tensors(), torch.arange(10))
    assert "codes.g" in batch
    assert int(present["g"].max()) == update.dummies["g"]  # padding
    state = initial_state(update.layout, [objective])
    values, fixed = first_values(update.layout, objective, present)
    expected = update.values(state, present)
    assert set(values) == set(expected)
    assert all(torch.equal(values[name], value) for name, value in expected.items())
    assert {name: state[name].tolist() for name in update.layout.fixed} == {
        name: tensor.tolist() for name, tensor in fixed.items()
    }


# --- clipping ----------------------------------------------------------------------------------------------


def clipped(gradient, usual, clip=10.0):
    """Gradient after clipping, as it is found in Adam's mean, and the new usual norm."""
    objective = objective_of("y ~ 1 + (1 | g)")
    update = Update(objective, objective.module.data, 20, clip)
    state = initial_state(update.layout, [objective])
    state["norm"].fill_(usual)
    name = "guide.locations.0"
    made = {n: torch.zeros_like(v) for n, v in update.values(state, {}).items()}
    made[name] = torch.full_like(made[name], gradient)
    update.ascend(state, made, {}, CONTROLS)
    (key,) = update.layout.dense
    position = list(update.layout.dense[key]).index(name)
    assert position == 0
    return float(state[f"{key}.mean"][0]) / 0.1, float(state["norm"])


def test_ordinary_gradients_are_left_alone():
    assert clipped(5.0, math.inf) == pytest.approx((5.0, 5.0))
    assert clipped(5.0, 1.0) == pytest.approx((5.0, 0.95 + 0.25))


def test_large_gradients_are_shortened():
    assert clipped(500.0, 1.0) == pytest.approx((10.0, 0.95 + 0.5))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("usual", [math.inf, 2.0])
def test_gradients_that_are_no_numbers_are_dropped_and_forgotten(bad, usual):
    assert clipped(bad, usual) == (0.0, usual)


def test_a_restart_without_a_learning_rate_stays_where_it_is():
    objective = objective_of()
    update = Update(objective, objective.module.data, 20, 10.0)
    state = initial_state(update.layout, [objective])
    walk(update, state, objective.module.data, [None])
    before = {key: state[key].clone() for key in update.layout.dense}
    walk(update, state, objective.module.data, [None] * 3, torch.tensor([0.5, 0.0, 0.0]).double())
    assert all(torch.equal(state[key], value) for key, value in before.items())


# --- groups that a batch does not have ---------------------------------------------------------------------


def unbalanced():
    """Groups of 1 to 4 rows."""
    data = frame(5, 4)
    return data.drop(index=[1, 2, 3, 5, 6, 9]).reset_index(drop=True)


def test_only_the_rows_of_present_groups_move():
    objective = objective_of("y ~ x + (1 + z | g)", data=unbalanced())
    data = objective.module.data
    update = Update(objective, data, 3, 10.0, ["g"])
    state = initial_state(update.layout, [objective])
    before = {name: table.clone() for name, table in group_tables(update.layout, state).items()}
    rows = torch.tensor([0, 1, 2])  # groups 0 and 1
    present = data.codes["g"][rows].unique().tolist()
    walk(update, state, data, [rows])
    for name, value in before.items():
        moved = (group_tables(update.layout, state)[name] != value).reshape(6, -1).any(-1)[:-1]
        assert moved.nonzero()[:, 0].tolist() == present
    assert state[rows_key("g")][:-1, -1].nonzero()[:, 0].tolist() == present


def test_the_gradient_over_all_batches_is_that_of_all_groups():
    """What the batches of size three say on average is what a step on all tables says."""
    objective = objective_of("y ~ x + (1 + z | g)", data=frame(3, 3).drop(index=[1, 2]))
    data, guide = objective.module.data, objective.guide
    with torch.no_grad():
        for site, location, log_scale in zip(guide.sites, guide.locations, guide.log_scales, strict=True):
            if site.group:  # so narrow that their draw is their mean in every batch
                location.uniform_(-1.0, 1.0)
                log_scale.fill_(-32.0)
    sums, elbo = {}, []
    update = Update(objective, data, 3, 10.0, ["g"])
    state = initial_state(update.layout, [objective])
    batches = [torch.tensor(rows) for rows in itertools.combinations(range(data.n_rows), 3)]
    with local_parameters(), no_validation():
        for rows in batches:
            batch, present = update.select(data.tensors(), rows)
            with seeded(3):
                gradient, record = update.gradient(update.values(state, present), {}, batch, CONTROLS[0])
            elbo.append(float(record[0]))
            for name, table in group_tables(update.layout, state).items():
                total = sums.setdefault(name, torch.zeros_like(table))
                total.index_add_(0, present["g"], gradient[name])
        whole = Update(objective, data, data.n_rows, 10.0)
        with seeded(3):
            full, record = whole.gradient(
                whole.values(initial_state(whole.layout, [objective]), {}), {}, data.tensors(), CONTROLS[0]
            )
    assert np.mean(elbo) == pytest.approx(float(record[0]), rel=1e-9)
    for name in update.layout.tables:
        if "locations" in name:
            torch.testing.assert_close(sums[name][:-1] / len(batches), full[name], rtol=1e-7, atol=1e-9)


def test_padding_changes_nothing():
    """Three rows of one group and one row of it: the padding's draws and divergences do not count."""
    objective = objective_of("y ~ x + (1 | g)", data=unbalanced())
    data = objective.module.data
    update = Update(objective, data, 4, 10.0, ["g"])
    rows = (data.codes["g"] == 4).nonzero()[:, 0]
    states = [initial_state(update.layout, [objective]) for _ in range(2)]
    for table in group_tables(update.layout, states[1]).values():
        table[-1].fill_(3.0)
    records = [walk(update, state, data, [rows]) for state in states]
    assert torch.equal(records[0], records[1])
    assert torch.equal(*(state[rows_key("g")][:-1] for state in states))


def test_rows_of_tables_are_adams_of_their_own():
    """A group that is met rarely moves as Adam moves at its first steps, not by moments of old steps."""
    objective = objective_of("y ~ x + (1 | g)", data=unbalanced())
    data = objective.module.data
    update = Update(objective, data, 3, math.inf, ["g"])
    state = initial_state(update.layout, [objective])
    name = next(name for name in update.layout.tables if "locations" in name)
    table = group_tables(update.layout, state)[name]
    start = table.clone()
    rows = (data.codes["g"] == 4).nonzero()[:3, 0]
    walk(update, state, data, [torch.tensor([1, 2, 3])] * 30)
    assert float(start[4]) == float(table[4])
    walk(update, state, data, [rows])
    moved = float((table[4] - start[4]).abs())
    assert moved == pytest.approx(0.02 * RARE, rel=1e-6)  # Adam's first step is the learning rate


def test_training_touches_tables_row_by_row(monkeypatch):
    objective = objective_of("y ~ x + (1 | g)", data=frame(40, 2))
    data = replace(objective.module.data)
    places = []
    select = Update.select

    def watched(self, source, rows):
        batch, present = select(self, source, rows)
        places.append(present["g"].numel())
        return batch, present

    monkeypatch.setattr(Update, "select", watched)
    settings = TrainingSettings(max_steps=60, batch_size=8, learning_rate=0.1)
    result = train(objective, data, settings, seed=0, progressbar=False)
    assert set(places) == {8}
    assert result.elbo[-20:].mean() > result.elbo[:20].mean()


@pytest.mark.parametrize(
    ("formula", "family", "sparse"),
    [
        ("y ~ x + (1 + x || g)", "gaussian", ()),
        ("y ~ x + (1 + x || g)", "gaussian", ("g",)),
        ("count ~ x + (1 | g)", "poisson", ()),
        ("b ~ x + z + (1 | g)", "bernoulli", ()),
    ],
)
def test_a_step_follows_its_objective_to_another_device(formula, family, sparse):
    """Tensors on "meta" have no numbers, but do not mix with those of the CPU any more than a GPU's do."""
    data = frame().assign(count=lambda rows: rows["y"].abs().round())
    objective = networked_objective() if family == "bernoulli" else objective_of(formula, family, data)
    update = Update(objective, objective.module.data, 6, 10.0, sparse)
    moved = objective.module.data.to("meta")
    objective.to("meta", moved)
    for tables in (update.counts, update.factors):
        tables.update({name: tensor.to("meta") for name, tensor in tables.items()})
    update.frame = update.frame.to("meta")
    state = initial_state(update.layout, [objective])
    with local_parameters(), no_validation(), unchecked_priors([objective]):
        record = update(state, moved.tensors(), torch.arange(6, device="meta"), CONTROLS.to("meta"))
    assert record.device.type == "meta"
    assert {tensor.device.type for tensor in state.values()} == {"meta"}
    assert objective.module.priors.device.type == "meta"
