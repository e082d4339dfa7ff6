"""Scores of separation against scikit-learn; latents and saliency of a small network."""

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import nn

import pyro_armed as pa
from pyro_armed import diagnostics, plots
from pyro_armed.errors import ArgumentError

pytestmark = [
    pytest.mark.arviz1,
    pytest.mark.filterwarnings("ignore::pyro_armed.errors.ConvergenceWarning"),
]


@pytest.mark.parametrize("spread", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("groups", [2, 7])
def test_scores_are_those_of_scikit_learn(spread, groups):
    rng = np.random.default_rng(int(10 * spread) + groups)
    codes = rng.permutation(np.arange(90) % groups)
    points = rng.normal(size=(90, 4)) + spread * rng.normal(size=(groups, 4))[codes]
    names = np.array([f"g{c}" for c in codes])
    assert diagnostics.davies_bouldin(points, names) == pytest.approx(
        metrics.davies_bouldin_score(points, codes)
    )
    assert diagnostics.calinski_harabasz(points, names) == pytest.approx(
        metrics.calinski_harabasz_score(points, codes)
    )


@pytest.mark.parametrize("score", [diagnostics.davies_bouldin, diagnostics.calinski_harabasz])
def test_scores_of_bad_input(score):
    with pytest.raises(ArgumentError, match="fewer than two groups"):
        score(np.zeros((3, 1)), ["a"] * 3)
    with pytest.raises(ArgumentError, match=r"one row for each of the 2 groups' labels.*\(3, 1\)"):
        score(np.zeros((3, 1)), ["a", "b"])
    with pytest.raises(ArgumentError, match="missing labels"):
        score(np.zeros((3, 1)), ["a", "b", None])


class Corner(nn.Module):
    """Looks at the lower right corner only."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)
        self.head = nn.Linear(2, 1)

    def forward(self, x):
        maps = torch.relu(self.conv(x.unsqueeze(1)))
        return self.head(maps[:, :, 8:, 8:].mean((2, 3)))


@pytest.fixture(scope="module")
def fitted():
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    x = 0.1 * rng.normal(size=(60, 12, 12))
    x[y == 1, 9:, 9:] += 2.0
    site = np.array(["a", "b", "c"])[np.arange(60) % 3]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Corner()
    model = pa.ARMED.from_arrays(
        x, y, {"site": site}, family="bernoulli", network=network,
        random_effects=[pa.RandomEffects("site"), pa.effects.ScaleBias("conv", "site")],
    )  # fmt: skip
    model.fit(epochs=40, restarts=1, draws=20, guide="mean_field", progressbar=False)
    return model, x, y, site


def test_saliency_lies_where_the_label_is(fitted):
    model, x, y, site = fitted
    maps = diagnostics.saliency(model, x[:20], groups={"site": site[:20]})
    assert maps.shape == (20, 12, 12)
    assert maps.min() >= 0.0
    inside = maps[:, 8:, 8:].sum((1, 2)) / maps.sum((1, 2)).clip(1e-12)
    assert inside[y[:20] == 1].min() > 0.4  # the corner is 11 % of the image
    by_name = diagnostics.saliency(model, x[:20], groups={"site": site[:20]}, layer="conv")
    assert np.allclose(maps, by_name)
    assert len(diagnostics.saliency(model)) == 60


class Flattened(nn.Module):
    """A dense layer on each position of the maps."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.head = nn.Linear(3 * 12 * 12, 1)

    def forward(self, x):
        return self.head(self.conv(x.unsqueeze(1)).flatten(1))


@pytest.fixture(scope="module")
def flattened():
    """Bright lower right corners have the label; bright upper left corners mean nothing."""
    rng = np.random.default_rng(1)
    y = np.arange(120) % 2
    x = 0.1 * rng.normal(size=(120, 12, 12))
    x[y == 1, 9:, 9:] += 2.0
    x[:, :4, :4] += 2.0 * rng.integers(0, 2, (120, 1, 1))
    site = np.array(["a", "b", "c"])[np.arange(120) % 3]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Flattened()
    model = pa.ARMED.from_arrays(x, y, {"site": site}, family="bernoulli", network=network, standardize=False)
    model.fit(epochs=150, restarts=1, draws=10, guide="mean_field", progressbar=False)
    return model, x, y


def test_saliency_of_a_dense_layer_is_each_position_s_contribution(flattened):
    model, x, _ = flattened
    with torch.no_grad():
        maps = model.module.network.conv(torch.as_tensor(x, dtype=torch.float32).unsqueeze(1)).numpy()
    weights = model.idata["posterior"]["features"].mean(("chain", "draw")).to_numpy().reshape(3, 12, 12)
    expected = (maps * weights).sum(1).clip(0)
    np.testing.assert_allclose(diagnostics.saliency(model), expected, rtol=1e-3, atol=1e-5)


def test_saliency_behind_a_dense_layer_lies_where_the_label_is_unlike_grad_cam(flattened):
    model, _, y = flattened

    def inside(method):
        maps = diagnostics.saliency(model, method=method)[y == 1]
        return maps[:, 8:, 8:].sum() / maps.sum()

    assert inside("hires-cam") > 0.8
    assert inside("grad-cam") < 0.6


def test_saliency_of_averaged_maps_is_the_same_by_both_methods():
    rng = np.random.default_rng(0)
    x, y, site = rng.normal(size=(24, 8, 8)), np.arange(24) % 2, np.array(["a", "b"])[np.arange(24) // 2 % 2]
    network = nn.Sequential(
        nn.Unflatten(1, (1, 8)), nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 1)
    )
    model = pa.ARMED.from_arrays(x, y, {"site": site}, family="bernoulli", network=network)
    model.fit(epochs=2, restarts=1, draws=5, guide="mean_field", progressbar=False)
    both = [diagnostics.saliency(model, method=method) for method in ("hires-cam", "grad-cam")]
    assert both[0].max() > 0
    np.testing.assert_allclose(*both, rtol=1e-4, atol=1e-6)


def test_saliency_of_bad_input(fitted):
    model, _, _, _ = fitted
    with pytest.raises(ArgumentError, match="'hires-cam', 'grad-cam'"):
        diagnostics.saliency(model, method="cam")
    with pytest.raises(ArgumentError, match="output=1 is not one of the 1 predictors"):
        diagnostics.saliency(model, output=1)
    with pytest.raises(ArgumentError, match=r"'head' gives values of shape|does not depend on"):
        diagnostics.saliency(model, layer="head")
    with pytest.raises(ArgumentError, match="no layer named 'conv7'"):
        diagnostics.saliency(model, layer="conv7")


def test_latents_with_and_without_group_effects(fitted):
    model, x, _, site = fitted
    fixed = diagnostics.latents(model)
    assert fixed.shape == (60, 2)
    with torch.no_grad():
        assert np.allclose(fixed, model.module.hidden(model._training.batch)[0])
    mixed = diagnostics.latents(model, x, groups={"site": site}, random=True)
    assert not np.allclose(fixed, mixed)
    with pytest.raises(ArgumentError, match="is for groups of the training data; 'site' has others"):
        diagnostics.latents(model, x[:1], groups={"site": ["new"]}, random=True)


# --- pictures ----------------------------------------------------------------------------------------------


def test_counterfactual_predictions(fitted):
    model, x, _, _ = fitted
    figure = plots.counterfactual_groups(model, x[:3], "site", figure=plots.new_figure())
    assert len(figure.axes) == 3
    ax = figure.axes[1]
    rows = {"site": ["b"]}
    drawn = model.predict(x[1:2], groups=rows, draws=20)["predictions"]["y"].to_numpy()
    shown = ax.lines[0].get_xdata()
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["a", "b", "c"]
    assert shown[1] == pytest.approx(drawn.mean(), abs=1e-6)
    with pytest.raises(ArgumentError, match=r"group='year' is not a grouping factor of the model \(site\)"):
        plots.counterfactual_groups(model, x[:3], "year")
    with pytest.raises(ArgumentError, match="labels has 'z', which is not a group of 'site'"):
        plots.counterfactual_groups(model, x[:3], "site", labels=["z"])
    with pytest.raises(ArgumentError, match="data has 13 rows; give 1 to 12"):
        plots.counterfactual_groups(model, x[:13], "site")


def test_counterfactual_images():
    rng = np.random.default_rng(0)
    x, y, site = rng.normal(size=(24, 6, 6)), np.arange(24) % 2, np.array(["a", "b"])[np.arange(24) // 12]
    network = pa.networks.AutoencoderClassifier(channels=(2,), latent=2)
    effects = [pa.effects.ScaleBias(network.conv_layers, "site")]
    model = pa.ARMED.from_arrays(
        x, y, {"site": site}, family="bernoulli", network=network, random_effects=effects
    )
    model.fit(epochs=1, restarts=1, draws=5, guide="mean_field", progressbar=False)
    figure = plots.counterfactual_groups(model, x[:2], "site", figure=plots.new_figure())
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles == ["as given", "fixed effects", "a", "b"]
    shown = np.asarray(figure.axes[3].images[0].get_array())
    wanted = model.reconstruct(x[:1], groups={"site": ["b"]}, draws=5)["mixed"].to_numpy()[0]
    assert np.allclose(shown, wanted, atol=1e-6)


def test_pictures_of_latents_and_saliency(fitted):
    model, x, _, site = fitted
    maps = diagnostics.saliency(model, x[:4], groups={"site": site[:4]})
    figure = plots.saliency(x[:4], maps, figure=plots.new_figure())
    assert len(figure.axes) == 8
    spaces = {"fixed": diagnostics.latents(model), "mixed": diagnostics.latents(model, random=True)}
    figure = plots.latents(spaces, site, figure=plots.new_figure())
    score = diagnostics.davies_bouldin(spaces["fixed"], site)
    assert f"Davies-Bouldin {score:.1f}" in figure.axes[0].get_title()
    with pytest.raises(ArgumentError, match="give one map each"):
        plots.saliency(x[:3], maps)
    with pytest.raises(ArgumentError, match="spaces must be a dictionary"):
        plots.latents([], site)
