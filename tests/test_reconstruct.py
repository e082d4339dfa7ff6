"""Reconstructions in probabilities; the rest is tested with the passes that they are made of."""

import numpy as np
import pytest
from test_passes import ROWS, images

import pyro_armed as pa


@pytest.mark.filterwarnings("ignore::pyro_armed.errors.ConvergenceWarning")
def test_bernoulli_reconstructions_are_probabilities():
    x, y, site = images()
    network = pa.networks.AutoencoderClassifier(channels=(3,), latent=4)
    model = pa.ARMED.from_arrays(
        (x > 0).astype(float),
        y,
        {"site": site},
        family="bernoulli",
        network=network,
        reconstruction="bernoulli",
    )
    model.fit(epochs=1, restarts=1, draws=5, guide="mean_field", progressbar=False)
    assert "reconstruction_sigma" not in model.idata["posterior"]
    rebuilt = model.reconstruct(x, groups={"site": site})
    assert rebuilt["mixed"].shape == (ROWS, 6, 6)
    assert 0.0 < float(rebuilt["mixed"].min()) < float(rebuilt["mixed"].max()) < 1.0
    assert np.array_equal(rebuilt["mixed"], rebuilt["fixed"])  # no effects within the network
