"""What inference is told: values that can be used, and what follows from them."""

import math

import numpy as np
import pytest

from pyro_armed.errors import ArgumentError
from pyro_armed.inference_settings import InferenceSettings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inference": "mcmc"}, "inference='mcmc' is not one of 'svi', 'nuts'"),
        ({"guide": "normal"}, "guide='normal' is not one of 'structured', 'mean_field'"),
        ({"restarts": 0}, "restarts=0 must be a whole number of at least 1"),
        ({"restarts": True}, "restarts=True must be a whole number"),
        ({"draws": 2.5}, "draws=2.5 must be a whole number"),
        ({"draws": "many"}, "draws='many' must be a whole number"),
        ({"warmup": -1}, "warmup=-1 must be a whole number"),
        ({"seed": -1}, "seed=-1 must be a whole number of at least 0"),
        ({"seed": None}, "seed=None must be a whole number of at least 0"),
        ({"seed": 0.5}, "seed=0.5 must be a whole number"),
        ({"learning_rate": 0}, "learning_rate=0 must be a positive number"),
        ({"learning_rate": math.nan}, "learning_rate=nan must be a positive number"),
        ({"epochs": 0}, "epochs=0 must be a positive number"),
        ({"epochs": 1.5}, "epochs=1.5 must be a whole number"),
        ({"batch_size": -4}, "batch_size=-4 must be a positive number"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ArgumentError, match=message):
        InferenceSettings(**options)


def test_numbers_of_numpy_are_numbers():
    made = InferenceSettings(restarts=np.int64(2), draws=np.int32(3), seed=np.uint8(200), epochs=np.int64(2))
    assert (made.restarts, made.draws, made.seed) == (2, 3, 200)
    assert type(made.chain_seed(1)) is int
    assert made.chain_seed(1) == made.chain_seed(0) + 1


def test_learning_rates():
    assert InferenceSettings().training(network=True).learning_rate == 0.01
    assert InferenceSettings().training(network=False).learning_rate == 0.02
    assert InferenceSettings(learning_rate=0.5).training(network=True).learning_rate == 0.5


def test_seeds_of_restarts_do_not_meet():
    seeds = {InferenceSettings(seed=seed).chain_seed(restart) for seed in range(20) for restart in range(100)}
    assert len(seeds) == 2000
