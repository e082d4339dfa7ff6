"""Where in an image a network looks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from pyro_armed.batch import Batch
from pyro_armed.diagnostics._access import fitted
from pyro_armed.diagnostics._rows import encoded_rows
from pyro_armed.errors import ArgumentError
from pyro_armed.local import local_parameters
from pyro_armed.module import MixedEffectsModule
from pyro_armed.networks import layer_outputs

__all__ = ["saliency"]

_ROWS = 128
_METHODS = ("hires-cam", "grad-cam")


def saliency(
    model: Any,
    data: Any = None,
    *,
    groups: Any = None,
    layer: str | None = None,
    output: int = 0,
    method: Literal["hires-cam", "grad-cam"] = "hires-cam",
) -> NDArray[np.floating[Any]]:
    """Class activation maps of the fixed-effects part: which region of each image raises the predictor.

    Parameters
    ----------
    model : ARMED
        Fitted to images, with a network that has convolutions.
    data : array-like, shape (N, ...), optional
        Images; None: the training rows.
    groups : mapping of str to array-like, optional
        Group labels, which the model asks for; group effects are not used.
    layer : str, optional
        A layer that gives maps; None: the last convolution that the predictor depends on.
    output : int
        The linear predictor of a categorical response, 0 for its second level.
    method : {"hires-cam", "grad-cam"}
        Whether each position of a map has its own gradient, or each map the mean of its gradients. They are
        the same where the network averages its maps over positions; behind a dense layer, which treats each
        position in its own way, Grad-CAM shows regions that the network does not use.

    Returns
    -------
    numpy.ndarray, shape (N, H, W)
        At least 0, in units of the linear predictor; coefficients at their posterior means, restart with the
        best ELBO.

    Raises
    ------
    ArgumentError
        Without convolutions, for a layer that gives no maps or that the predictor does not depend on, for an
        output that there is not, and an unknown method.

    Notes
    -----
    The layer's maps, times the predictor's gradient with respect to them, summed, cut at zero and
    interpolated to the image's size. HiResCAM: Draelos, Carin, arXiv 2011.08891, 2020. Grad-CAM: Selvaraju et
    al., ICCV 2017.

    Examples
    --------
    >>> import pyro_armed as pa
    >>> sites = pa.datasets.digits(n_sites=3, seed=0)
    >>> network = pa.networks.CNN(channels=(4,), hidden=(4,))
    >>> x, y, site = sites.images[:60], sites.labels[:60] > 4, {"site": sites.site[:60]}
    >>> model = pa.ARMED.from_arrays(x, y, site, family="bernoulli", network=network)
    >>> budget = {"epochs": 400, "schedule": "cosine", "early_stopping": False, "restarts": 1, "draws": 5}
    >>> _ = model.fit(**budget, progressbar=False)
    >>> saliency(model, x[:2], groups={"site": sites.site[:2]}).shape
    (2, 8, 8)
    """
    model = fitted(model, "saliency")
    module: MixedEffectsModule = model.module
    if not 0 <= output < module.spec.n_predictors:
        raise ArgumentError(f"output={output!r} is not one of the {module.spec.n_predictors} predictors.")
    if method not in _METHODS:
        raise ArgumentError(f"method={method!r} is not one of {', '.join(map(repr, _METHODS))}.")
    network = module.network
    convolutions = [
        name
        for name, part in (network.named_modules() if network is not None else ())
        if isinstance(part, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and name
    ]
    if layer is None and not convolutions:
        raise ArgumentError("saliency needs a network with convolutions; name another layer that gives maps.")
    batch = encoded_rows(model, data, groups=groups).batch
    chain = next(one for one in model._fitted().chains if one.module is module)
    values = {name: value.mean(0) for name, value in chain.values.items()}
    layers = [layer] if layer is not None else convolutions
    parts = [
        _maps(module.eval(), values, batch.select(rows), layers, output, method)
        for rows in torch.arange(batch.size).split(_ROWS)
    ]
    return np.asarray(torch.cat(parts).double().numpy())


def _maps(
    module: MixedEffectsModule,
    values: dict[str, Tensor],
    batch: Batch,
    layers: list[str],
    output: int,
    method: str,
) -> Tensor:
    inputs: Tensor = batch.inputs  # type: ignore[assignment]
    # Gradients pass through frozen layers too.
    batch = replace(batch, inputs=inputs.detach().clone().requires_grad_(), rows=None)
    with torch.enable_grad(), local_parameters(), layer_outputs(module.network, layers) as seen:
        eta = module.linear_predictor(module.spec.mu, values, batch, module.hidden(batch), random=False)
        score = (eta[..., output] if eta.dim() > 1 else eta).sum()
        run = {name: maps for name, maps in seen.items() if isinstance(maps, Tensor) and maps.requires_grad}
        gradients = torch.autograd.grad(score, list(run.values()), allow_unused=True) if run else ()
    used = [
        (name, maps, slope)
        for (name, maps), slope in zip(run.items(), gradients, strict=True)
        if slope is not None
    ]
    if not used:
        raise ArgumentError(f"the linear predictor does not depend on the network's layer {layers[-1]!r}.")
    name, maps, slope = used[-1]
    if maps.dim() != 4:
        raise ArgumentError(
            f"the network's layer {name!r} gives values of shape {tuple(maps.shape)}, not maps "
            "(rows, channels, height, width); name a two-dimensional convolution."
        )
    if method == "grad-cam":
        slope = slope.mean((2, 3), keepdim=True)
    weighted = (maps * slope).sum(1, keepdim=True).relu().detach()
    size = tuple(inputs.shape[-2:])
    return functional.interpolate(weighted, size=size, mode="bilinear", align_corners=False)[:, 0]
