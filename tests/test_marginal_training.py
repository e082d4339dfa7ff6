"""The marginal likelihood of a Gaussian response and a network, against dense linear algebra."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import nn

import pyro_armed as pa
from pyro_armed import inference, marginal_training
from pyro_armed.marginal_training import MarginalTraining, can_train_marginally, train_marginally
from pyro_armed.pooled_rows import PooledRows
from pyro_armed.structured import StructuredGuide

F64 = torch.float64


def rows(n=60, seed=0):
    """Few distinct predictors, two crossed factors, and a curved mean."""
    random = np.random.default_rng(seed)
    data = pd.DataFrame({"x": random.integers(0, 4, n) / 2.0, "z": random.integers(0, 3, n) - 1.0})
    code = random.integers(0, 5, n)
    data["g"], data["h"] = [f"g{k}" for k in code], [f"h{k}" for k in random.integers(0, 3, n)]
    data["y"] = 100 + np.sin(2 * data["x"]) * data["z"] + 0.5 * random.normal(size=5)[code]
    data["y"] += 0.3 * random.normal(size=n)
    return data


def model_of(formula="y ~ x + z + (1 + z | g) + (1 | h)", data=None, network=None, **options):
    network = pa.networks.MLP(hidden=(3,)) if network is None else network
    return pa.ARMED(formula, rows() if data is None else data, network=network, **options)


def double_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()


def training_of(model):
    module = model.module.eval()
    with torch.no_grad():
        guide = StructuredGuide(module, module.data, module.hidden(module.data))
    return MarginalTraining(guide)


def theta_of(training, seed=0):
    noise = torch.randn(training.space.size, dtype=F64, generator=torch.Generator().manual_seed(seed))
    return training.space.start + 0.4 * noise


def test_density_is_that_of_the_dense_gaussian():
    training = training_of(model_of())
    module, data, theta = training.module, training.module.data, theta_of(training)
    training.set_weights(training.flat_weights() + 0.3)
    with torch.no_grad():
        values, log_prior = training.space.evaluate(theta.unsqueeze(0))
        mean = module.linear_predictor(module.spec.mu, values, data, module.hidden(data), random=False)[0]
        covariance = values["sigma"].reshape(()).square() * torch.eye(data.size, dtype=F64)
        for block in module.spec.blocks:
            sds = module.block_sds(block, values)[0, 0]
            corr = torch.eye(len(sds), dtype=F64)
            if block.correlated:
                factor = values[f"{block.group}_corr"][0, 0]
                corr = factor @ factor.mT
            columns = module.slope_columns(block, data, None)
            same = data.codes[block.group][:, None] == data.codes[block.group]
            covariance += same * (columns @ (sds[:, None] * corr * sds) @ columns.mT)
        expected = stats.multivariate_normal(mean.numpy(), covariance.numpy()).logpdf(data.response.numpy())
        expected += float(log_prior) + float(module.log_prior_of_weights())
        assert float(training.log_density(theta)) == pytest.approx(expected, rel=1e-6)


def test_gradient_is_that_of_differences():
    training = training_of(model_of(network=double_network()))
    theta, weights = theta_of(training), training.flat_weights()
    _, own, others = training.gradient(theta)

    def value(shift, weight_shift):
        training.set_weights(weights + weight_shift)
        with torch.no_grad():
            return float(training.log_density(theta + shift))

    for size, gradient, place in ((len(theta), own, 0), (len(weights), others, 1)):
        for k in range(0, size, 3):
            step = 1e-6 * torch.eye(size, dtype=F64)[k]
            none = 0.0 * (weights if place == 0 else theta)
            up, down = ((s, none) if place == 0 else (none, s) for s in (step, -step))
            slope = (value(*up) - value(*down)) / 2e-6
            assert slope == pytest.approx(float(gradient[k]), rel=1e-3, abs=1e-2)


def test_rows_with_the_same_predictors_pass_once():
    training = training_of(model_of())
    assert training.kinds.size == len(rows()[["x", "z"]].drop_duplicates())
    random = rows().assign(x=np.random.default_rng(1).normal(size=60))
    assert training_of(model_of(data=random)).kinds.size == 60


def test_a_weight_of_two_is_a_row_twice():
    weights = np.random.default_rng(2).integers(1, 3, 60)
    twice = rows().loc[np.repeat(np.arange(60), weights)].reset_index(drop=True)
    weighted = training_of(model_of("y ~ x + (1 | g)", rows().assign(w=weights), weights="w"))
    repeated = training_of(model_of("y ~ x + (1 | g)", twice))
    # Both scale priors and predictors by their own rows, so the residuals' sums are compared.
    fixed = {x: 0.1 * x for x in (0.0, 0.5, 1.0, 1.5)}
    sums = []
    for training, data in ((weighted, rows()), (repeated, twice)):
        x = data["x"].to_numpy()[marginal_training._distinct_rows(training.module.data)[0].numpy()]
        predictor = torch.tensor([fixed[one] for one in x], dtype=F64) + 100 - training.center
        sums.append(training.sums.residuals(predictor))
    torch.testing.assert_close(sums[0][0], sums[1][0])
    torch.testing.assert_close(sums[0][1], sums[1][1])


@pytest.fixture
def few_rows(monkeypatch):
    monkeypatch.setattr(marginal_training, "_ROWS_EACH", 1)


def asked(model):
    return can_train_marginally(model.module, PooledRows(model.module.data))


def test_where_it_applies(few_rows):
    def sequence(layer):
        return nn.Sequential(nn.Linear(2, 3), layer, nn.Linear(3, 1))

    binary = rows().assign(y=lambda data: (data["y"] > 100).astype(int))
    assert asked(model_of())
    assert asked(model_of(network=sequence(nn.LayerNorm(3))))
    assert not asked(model_of(network=sequence(nn.Dropout(0.3))))
    assert not asked(model_of(network=sequence(nn.BatchNorm1d(3))))
    assert not asked(model_of("y ~ x + z + (1 + features | g)"))
    assert not asked(model_of("y ~ x + z"))
    assert not asked(model_of(linear_path=False))
    assert not asked(model_of(data=binary, family="bernoulli"))
    assert not asked(model_of(["y ~ x + z + (1 | g)", "sigma ~ x"]))


def test_few_rows_for_each_weight_do_not_apply(monkeypatch):
    weights = sum(p.numel() for p in model_of().module.network.parameters())
    monkeypatch.setattr(marginal_training, "_ROWS_EACH", 60 / weights)
    assert asked(model_of())
    monkeypatch.setattr(marginal_training, "_ROWS_EACH", 61 / weights)
    assert not asked(model_of())


def test_a_network_is_left_as_it_was_asked_about(few_rows):
    model = model_of(network=nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)))
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    asked(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.module.state_dict().items())


def test_training_ends_at_a_mode(monkeypatch):
    monkeypatch.setattr(marginal_training, "_GAIN", 1e-8)
    model = model_of("y ~ x + z + (1 | g)", rows(400), double_network())
    training = training_of(model)
    start = training.gradient(training.space.start)[0]
    found = train_marginally(model.module, PooledRows(model.module.data), progressbar=False)
    value, own, others = training.gradient(found.theta)
    assert found.converged
    assert value / 400 == pytest.approx(float(found.trace.max()), abs=1e-6)
    assert value > start + 100
    assert float(others.abs().max()) < 1.0
    assert float((own / own.new_tensor(400.0).sqrt()).abs().max()) < 0.1


@pytest.mark.filterwarnings("ignore::pyro_armed.errors.ConvergenceWarning")
def test_fit_takes_it_unless_told_how_to_train(few_rows, unmoved_rng, monkeypatch):
    calls = []

    def noted(*given, **options):
        calls.append(True)
        return train_marginally(*given, **options)

    monkeypatch.setattr(inference, "train_marginally", noted)
    data = rows(200)
    options = {"restarts": 1, "draws": 50, "progressbar": False}
    fits = []
    with unmoved_rng():
        for extra in ({"seed": 0}, {"seed": 0}, {"seed": 1}, {"seed": 0, "epochs": 3, "batch_size": 50}):
            model = model_of("y ~ x + z + (1 | g)", data)
            model.fit(**options, **extra)
            fits.append(model)
    traces = [fit._posterior.chains[0].trace for fit in fits]
    assert torch.equal(traces[0], traces[1])
    assert not torch.equal(traces[0][:5], traces[2][:5])
    assert len(calls) == 3
    scores = [fit.evaluate(data).set_index("metric").loc["rmse", "value"] for fit in fits]
    assert scores[0] < 0.4 < scores[3]
