"""Stored draws: chunks, and what the posterior reports on the data's scale."""

import numpy as np
import pytest
import torch
from hand_made import design, frame, mild_draws, module_of, posterior_of
from torch import Tensor

from pyro_armed.posterior import Chain, Posterior, with_row_axis


@pytest.fixture
def module():
    return module_of(design("y ~ x + c + (1 + z | g)", frame()))


def test_chunks_are_all_draws_in_order_with_an_axis_for_rows(module):
    chain = Chain(module, mild_draws(module, 7))
    parts = list(chain.chunks(3))
    assert [len(part["x"]) for part in parts] == [3, 3, 1]
    for name, value in chain.values.items():
        joined = torch.cat([part[name] for part in parts])
        expected = value if name in ("1|g", "z|g") else value[:, None]
        torch.testing.assert_close(joined, expected, rtol=0, atol=0)


def test_row_axis_broadcasts_scalars_and_vectors_against_rows(module):
    values = with_row_axis(module, mild_draws(module, 4))
    shapes = {name: tuple(value.shape) for name, value in values.items()}
    assert shapes["x"] == (4, 1)
    assert shapes["c"] == (4, 1, 2)
    assert shapes["1|g"] == (4, 5)
    assert shapes["g_corr"] == (4, 1, 2, 2)


def test_number_of_draws(module):
    posterior = posterior_of(module, draws=6, chains=3)
    assert posterior.n_draws == 6
    assert posterior.chains[2].n_draws == 6
    assert Posterior([]).attributes == {}
    assert posterior.chains[0].trace.shape == (0,)


def test_report_puts_the_intercept_at_the_zero_of_the_columns(module):
    data = frame()
    chain = Chain(module, mild_draws(module, 5))
    reported = chain.report()
    levels = np.column_stack([data["c"] == "mid", data["c"] == "top"]).mean(axis=0)
    shift = chain.values["x"] * data["x"].mean() + chain.values["c"] @ torch.as_tensor(levels)
    torch.testing.assert_close(reported["Intercept"], chain.values["Intercept"] - shift)
    for name in ("x", "c", "1|g", "z|g", "1|g_sigma", "sigma"):
        torch.testing.assert_close(reported[name], chain.values[name], rtol=0, atol=0)


def test_report_has_correlations_in_place_of_their_factor(module):
    chain = Chain(module, mild_draws(module, 5))
    correlation = chain.report()["g_corr"]
    assert correlation.shape == (5, 2, 2)
    torch.testing.assert_close(correlation.diagonal(dim1=-2, dim2=-1), torch.ones(5, 2, dtype=torch.float64))
    factor = chain.values["g_corr"]
    torch.testing.assert_close(correlation[:, 0, 1], factor[:, 1, 0] * factor[:, 0, 0])


def test_report_of_an_ordinal_model_moves_the_thresholds():
    module = module_of(design("o ~ x + (1 | g)", frame(), "ordinal"))
    chain = Chain(module, mild_draws(module, 5))
    reported = chain.report()
    expected = chain.values["threshold"] + (chain.values["x"] * frame()["x"].mean())[:, None]
    torch.testing.assert_close(reported["threshold"], expected)
    assert "Intercept" not in reported


def test_reported_effects_give_the_linear_predictor_on_raw_columns(module):
    """What a user multiplies by hand is the model's predictor: no hidden centring is left."""
    data = frame()
    chain = Chain(module, mild_draws(module, 5))
    one = chain.report()
    x, z = torch.tensor(data["x"].to_numpy()), torch.tensor(data["z"].to_numpy())
    code = torch.tensor(data["g"].str[1:].astype(int).to_numpy())
    levels = torch.tensor(np.column_stack([data["c"] == "mid", data["c"] == "top"]).astype(float))
    by_hand: Tensor = one["Intercept"][:, None] + one["x"][:, None] * x + one["c"] @ levels.T
    by_hand = by_hand + one["1|g"][:, code] + one["z|g"][:, code] * z
    batch = module.data
    assert batch is not None
    (values,) = chain.chunks(5)
    torch.testing.assert_close(module.linear_predictor(module.spec.mu, values, batch), by_hand)
