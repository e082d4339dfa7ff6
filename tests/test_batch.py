"""Rows as tensors: selection, movement, and shuffles that cover the data."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hand_made import design, frame

from pyro_armed.batch import Batch, minibatches


def batch():
    made = design(
        ["y ~ x + offset(z) + (1 + x | g) + (1 | h)", "sigma ~ z"], frame(), weights="w"
    ).training.batch
    return made


def test_select_takes_the_same_rows_of_everything():
    whole = batch()
    rows = torch.tensor([7, 0, 7])
    part = whole.select(rows)
    assert (part.size, part.n_rows, part.n_rows) == (3, 20, whole.n_rows)
    assert torch.equal(part.rows, rows)
    for name in ("columns", "slopes", "codes", "offsets"):
        tables, parts = getattr(whole, name), getattr(part, name)
        assert tables
        assert set(tables) == set(parts)
        for key, table in tables.items():
            assert torch.equal(parts[key], table[rows])
    assert torch.equal(part.response, whole.response[rows])
    assert torch.equal(part.weights, whole.weights[rows])
    assert part.inputs is None
    assert whole.rows is None
    assert whole.size == 20


def test_select_with_trials_and_inputs():
    whole = design("p(s, t) ~ x + z + (1 | g)", frame(), "binomial", network=True).training.batch
    part = whole.select(torch.tensor([2, 5]))
    assert torch.equal(part.trials, whole.trials[[2, 5]])
    assert torch.equal(part.inputs, whole.inputs[[2, 5]])


def test_map_reaches_every_tensor_and_leaves_the_original():
    whole = batch()
    seen = []
    mapped = whole.map(lambda tensor: (seen.append(tensor.shape), tensor.clone())[1])
    # mu and sigma columns, three blocks' slopes (two here), two codes, an offset, response, weights
    expected = sum(len(getattr(whole, n)) for n in ("columns", "slopes", "codes", "offsets")) + 2
    assert len(seen) == expected
    assert mapped.response is not whole.response
    assert torch.equal(mapped.response, whole.response)
    assert mapped.n_rows == whole.n_rows
    moved = whole.to("meta")
    assert moved.codes["g"].device.type == "meta"
    assert whole.codes["g"].device.type == "cpu"


def test_without_response():
    whole = batch()
    assert whole.without_response().response is None
    assert whole.response is not None


def test_batches_are_frozen():
    with pytest.raises(AttributeError):
        Batch(size=1, n_rows=1).size = 2


@pytest.mark.parametrize(("n_rows", "size"), [(10, 4), (12, 4), (5, 5), (3, 10), (1, 1)])
def test_minibatches_are_of_one_size_without_repeats(n_rows, size):
    epoch = list(minibatches(n_rows, size, torch.Generator().manual_seed(0)))
    size = min(size, n_rows)
    assert [len(rows) for rows in epoch] == [size] * (n_rows // size)
    joined = torch.cat(epoch).tolist()
    assert len(set(joined)) == len(joined)
    assert set(joined) <= set(range(n_rows))


def test_each_row_comes_equally_often_also_where_batches_do_not_divide_the_rows():
    generator = torch.Generator().manual_seed(0)
    counts = Counter()
    epochs = 2000
    for _ in range(epochs):
        for rows in minibatches(7, 3, generator):
            counts.update(rows.tolist())
    expected = epochs * 6 / 7
    assert sorted(counts) == list(range(7))
    assert all(abs(count - expected) < 5 * (epochs * 6 / 49) ** 0.5 for count in counts.values())


def test_the_generator_decides():
    def order(seed):
        return torch.cat(list(minibatches(50, 10, torch.Generator().manual_seed(seed)))).tolist()

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_joined_rows_are_a_data_set_of_their_own():
    first = Batch(
        2, 9, columns={"mu": torch.ones(2, 3)}, codes={"g": torch.tensor([0, 4])}, rows=torch.arange(2)
    )
    first = replace(first, inputs=torch.zeros(2, 1), response=torch.tensor([1.0, 2.0]))
    second = Batch(1, 1, columns={"mu": torch.zeros(1, 3)}, codes={"g": torch.tensor([4])})
    inputs = torch.ones(1, 1, dtype=torch.float64)
    second = replace(second, inputs=inputs, response=torch.tensor([3.0]), weights=torch.tensor([2.0]))
    joined = first.joined(second)
    assert (joined.size, joined.n_rows, joined.rows) == (3, 3, None)
    assert joined.columns["mu"].sum(1).tolist() == [3, 3, 0]
    assert joined.codes["g"].tolist() == [0, 4, 4]
    assert joined.inputs.dtype == torch.float32
    assert joined.response.tolist() == [1, 2, 3]
    assert joined.weights.tolist() == [1, 1, 2]
    assert second.joined(first).weights.tolist() == [2, 1, 1]
    assert joined.trials is None


def test_the_first_rows_keep_what_is_said_of_the_groups():
    batch = Batch(
        4,
        9,
        codes={"g": torch.tensor([0, 1, 0, 1])},
        response=torch.arange(4.0),
        present={"g": torch.tensor([5, 7, 9])},
        group_scale={"g": torch.ones(3)},
    )
    some = batch.first(2)
    assert (some.size, some.n_rows, some.response.tolist()) == (2, 9, [0.0, 1.0])
    assert some.codes["g"].tolist() == [0, 1]
    assert some.present["g"].tolist() == [5, 7, 9]
    assert some.group_scale["g"].shape == (3,)
