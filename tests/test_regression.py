"""Linear predictors, effects and what the posterior reports, against algebra by hand."""

import copy

import numpy as np
import torch
from hand_made import design, frame, mild_draws, module_of
from scipy import special
from torch import nn

from pyro_armed.module import MixedEffectsModule
from pyro_armed.priors import PriorTable
from pyro_armed.regression import rows_times

MLP = (nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)), "2", 3)
MODELS = {
    "gaussian": ("y ~ x + c + (1 + z | g) + (1 | h)", "gaussian", (), {}),
    "ordinal": ("o ~ x + (1 | g)", "ordinal", (), {}),
    "features": ("y ~ x + z + features + (1 + features | g)", "gaussian", MLP, {"network": True}),
    "sigma": (["y ~ x + offset(z) + (1 | g)", "sigma ~ x + (1 | g)"], "gaussian", (), {}),
}


def model(name):
    formulas, family, of, options = MODELS[name]
    return module_of(design(formulas, frame(), family, **options), *copy.deepcopy(of))


def test_rows_times():
    columns = torch.randn(5, 3)
    for lead in [(), (4, 1), (2, 4, 1)]:
        flat, wide = torch.randn(*lead, 3), torch.randn(*lead, 3, 2)
        batch = lead[:-1]
        expected = (columns * flat.reshape(*batch, 1, 3)).sum(-1)
        torch.testing.assert_close(rows_times(columns, flat, 0), expected)
        expected = (columns[..., None] * wide.reshape(*batch, 1, 3, 2)).sum(-2)
        torch.testing.assert_close(rows_times(columns, wide, 1), expected)


def test_effects_have_the_covariance_of_their_block():
    """u = D(tau) L z: the draws' covariance, column by column, is D R D exactly."""
    module = model("gaussian")
    block = module.spec.blocks[0]
    factor = torch.linalg.cholesky(torch.tensor([[1.0, -0.6], [-0.6, 1.0]], dtype=torch.float64))
    values = {
        "1|g_sigma": torch.tensor(0.5).double(),
        "z|g_sigma": torch.tensor(2.0).double(),
        "g_corr": factor,
    }
    basis = torch.eye(2).double()  # two groups, z the unit vectors: rows of u are columns of D L
    u = module.scale_offsets(block, [basis[:, 0], basis[:, 1]], values)
    expected = np.array([[0.25, -0.6], [-0.6, 4.0]])
    np.testing.assert_allclose((u.T @ u).numpy(), expected, rtol=1e-12)


def test_report_puts_the_intercept_at_zero_of_the_columns():
    module, data = model("gaussian"), frame()
    values = {name: value[:3].unsqueeze(1) for name, value in mild_draws(module, 3).items()}
    eta = module.linear_predictor(module.spec.mu, values, module.data, random=False).numpy()
    told = {name: value.numpy()[:, 0] for name, value in module.report(values).items()}
    dummies = np.stack([data["c"] == "mid", data["c"] == "top"]).astype(float)
    by_hand = told["Intercept"][:, None] + told["x"][:, None] * data["x"].to_numpy() + told["c"] @ dummies
    np.testing.assert_allclose(eta, by_hand, rtol=1e-10)
    assert not np.allclose(told["Intercept"], values["Intercept"].numpy()[:, 0])
    factor = values["g_corr"][:, 0]
    np.testing.assert_allclose(told["g_corr"], (factor @ factor.mT).numpy())


def test_report_moves_thresholds_too():
    module, data = model("ordinal"), frame()
    values = {name: value.unsqueeze(1) for name, value in mild_draws(module, 4).items()}
    eta = module.linear_predictor(module.spec.mu, values, module.data, random=False)
    found = module.response_distribution({"mu": eta}, values, module.data).probs.numpy()
    told = module.report(values)
    threshold, slope = told["threshold"][:, 0].numpy(), told["x"][:, 0].numpy()
    below = special.expit(threshold[:, None, :] - (slope[:, None] * data["x"].to_numpy())[..., None])
    by_hand = np.diff(np.concatenate([np.zeros((4, 20, 1)), below, np.ones((4, 20, 1))], -1))
    np.testing.assert_allclose(found, by_hand, atol=1e-10)


def test_offset_is_added_and_group_effects_can_be_left_out():
    module, data = model("sigma"), frame()
    values = {name: value[0] for name, value in mild_draws(module, 1).items()}
    fixed = module.linear_predictor(module.spec.mu, values, module.data, random=False)
    full = module.linear_predictor(module.spec.mu, values, module.data)
    x, z = data["x"].to_numpy(), data["z"].to_numpy()
    by_hand = values["Intercept"].numpy() + values["x"].numpy() * (x - x.mean()) + z
    np.testing.assert_allclose(fixed.numpy(), by_hand, rtol=1e-10)
    code = data["g"].str[1:].astype(int).to_numpy()
    np.testing.assert_allclose((full - fixed).numpy(), values["1|g"].numpy()[code], rtol=1e-9)


def test_features_enter_with_coefficients_of_their_own_and_a_point_layer_does_not():
    module = model("features")
    hidden, output = module.hidden(module.data)
    columns = module.data.inputs.float()
    torch.testing.assert_close(hidden, torch.tanh(module.network[0](columns)).double())
    values = {name: value[0] for name, value in mild_draws(module, 1).items()}
    eta = module.linear_predictor(module.spec.mu, values, module.data)
    by_hand = values["Intercept"] + hidden @ values["features"]
    code = module.data.codes["g"]
    by_hand = by_hand + values["1|g"][code] + (values["features|g"][code] * hidden).sum(-1)
    torch.testing.assert_close(eta, by_hand)
    point = MixedEffectsModule(
        design("y ~ x + z + (1 | g)", frame(), network=True).spec.with_features(3, coefficients=False),
        PriorTable(design("y ~ x + z + (1 | g)", frame(), network=True).spec.with_features(3, False)),
        module.network,
        "2",
        module.data,
    )
    del values["features"]
    eta = point.linear_predictor(point.spec.mu, values, module.data, random=False)
    torch.testing.assert_close(eta, values["Intercept"] + point.spec.response_scale * output[:, 0])
