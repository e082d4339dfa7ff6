"""Streams of random numbers: repeatable, one for each purpose, no trace in the global state."""

import itertools

import pytest
import torch

from pyro_armed.seeds import generator_for, seeded, stream


def test_a_stream_is_repeatable_and_known():
    assert stream(0, "start") == stream(0, "start")
    assert 0 <= stream(2**40, "start") < 2**63
    # A change of these numbers changes the numbers of every seed that users have written down.
    assert stream(0, "minibatches") == 3122503468527792038


def test_purposes_and_seeds_have_streams_of_their_own():
    keys = [
        (seed, *purpose)
        for seed in range(50)
        for purpose in [("a",), ("b",), ("a", 0), ("a", 1), (), ("b", 1)]
    ]
    found = [stream(*key) for key in keys]
    assert len(set(found)) == len(keys)
    first = torch.stack([torch.randn(200, generator=generator_for(*key)) for key in keys[:12]])
    for a, b in itertools.combinations(first, 2):
        assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.35


def test_generators_do_not_touch_the_global_state(unmoved_rng):
    with unmoved_rng():
        one = torch.randn(3, generator=generator_for(3, "x"))
    assert torch.equal(one, torch.randn(3, generator=generator_for(3, "x")))


def test_seeded_starts_from_the_seed_and_puts_the_state_back(unmoved_rng):
    with unmoved_rng():
        with seeded(5):
            one = torch.rand(3)
        with seeded(5):
            assert torch.equal(torch.rand(3), one)
    assert not torch.equal(torch.rand(3), one)


def test_without_a_seed_the_state_goes_on_and_comes_back(unmoved_rng):
    with unmoved_rng(), seeded(None):
        one = torch.rand(3)
    assert torch.equal(torch.rand(3), one)


def test_the_state_is_put_back_after_an_error(unmoved_rng):
    def fail():
        with seeded(5):
            torch.rand(3)
            raise ZeroDivisionError

    with unmoved_rng(), pytest.raises(ZeroDivisionError):
        fail()


def test_devices_without_a_state_of_their_own_are_passed_over(unmoved_rng):
    with unmoved_rng(), seeded(1, [torch.device("cpu"), torch.device("meta")]):
        torch.rand(2)
