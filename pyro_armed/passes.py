"""One pass of the user's network over some rows, with the group effects that stand on its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_armed import networks
from pyro_armed.batch import Batch
from pyro_armed.networks import Pass
from pyro_armed.spec import ModelSpec, Reconstruction

__all__ = ["RECONSTRUCTION", "are_draws", "input_distribution", "network_inputs", "run_rows", "single_draws"]

RECONSTRUCTION = "reconstruction"
# Input numbers that a network is given at a time where nothing is trained. It bounds its activations, and
# what fits into the processor's caches is faster: images of 64 x 64 took 0.6 times as long as with ten times
# as many.
_INPUTS = 250_000
Values = Mapping[str, Tensor]


def network_inputs(network: nn.Module, batch: Batch) -> Tensor:
    """The network's input in the precision of its weights, shape (B, ...)."""
    weights = next((p for p in network.parameters() if p.is_floating_point()), None)
    inputs: Tensor = batch.inputs  # type: ignore[assignment]
    return inputs if weights is None else inputs.to(weights.dtype)


def run_rows(
    network: nn.Module,
    spec: ModelSpec,
    batch: Batch,
    values: Values | None = None,
    layer: str | None = None,
    images: Sequence[str] = (),
) -> Pass:
    """Run the network on a batch.

    Parameters
    ----------
    network : nn.Module
        Left as it is. In evaluation mode and without gradients it gets some rows at a time.
    spec : ModelSpec
        Says on which layers group effects stand.
    batch : Batch
        Rows and the codes of their groups.
    values : mapping of str to Tensor, shape (C, K)
        Effects by name; None: those of the average group, zero.
    layer : str, optional
        The layer whose input are the features.
    images : sequence of str
        Convolutions that are to have the channels last in memory; see `networks.image_layers`.

    Returns
    -------
    Pass
    """
    inputs = network_inputs(network, batch)
    whole = network.training or torch.is_grad_enabled()
    size = max(1, len(inputs) if whole else _INPUTS // max(1, inputs[:1].numel()))
    parts = []
    for start in range(0, max(len(inputs), 1), size):
        rows = slice(start, start + size)
        changes = _changes(network, spec, batch, values, rows)
        with networks.changed_layers(network, changes), networks.channels_last(network, images):
            parts.append(networks.run_network(network, inputs[rows], layer))
    if len(parts) == 1:
        return parts[0]
    features, output, rebuilt = zip(*parts, strict=True)
    return Pass(torch.cat(features), torch.cat(output), None if rebuilt[0] is None else torch.cat(rebuilt))


def are_draws(spec: ModelSpec, values: Values | None) -> bool:
    """Whether the effects within the network are several draws, (S, C, K), rather than one, (C, K)."""
    return values is not None and any(values[layer.names[0]].dim() > 2 for layer in spec.layers)


def single_draws(spec: ModelSpec, values: Values) -> Iterator[dict[str, Tensor]]:
    """The effects within the network of each draw.

    Parameters
    ----------
    spec : ModelSpec
        Names them.
    values : mapping of str to Tensor, shape (S, C, K)
        All draws.

    Yields
    ------
    dict of str to Tensor, shape (C, K)
    """
    tables = {name: values[name] for layer in spec.layers for name in layer.names}
    for draw in range(len(next(iter(tables.values())))):
        yield {name: table[draw] for name, table in tables.items()}


def input_distribution(likelihood: Reconstruction, passed: Pass, values: Values) -> Any:
    """The inputs' distribution around their reconstruction.

    Parameters
    ----------
    likelihood : Reconstruction
        Which.
    passed : Pass
        With reconstructions, (B, ...) or (S, B, ...).
    values : mapping of str to Tensor
        With ``reconstruction_sigma`` for the normal likelihood.

    Returns
    -------
    Distribution
        Batch shape (..., B).
    """
    mean: Tensor = passed.reconstruction  # type: ignore[assignment]
    pixels = mean.dim() - passed.output.dim() + 1
    if likelihood.likelihood == "bernoulli":
        return dist.Bernoulli(logits=mean).to_event(pixels)
    sd = values[f"{RECONSTRUCTION}_sigma"].to(mean.dtype)
    return dist.Normal(mean, sd.reshape(*sd.shape, *(1,) * pixels)).to_event(pixels)


def _changes(
    network: nn.Module, spec: ModelSpec, batch: Batch, values: Values | None, rows: slice
) -> dict[str, Callable[[Tensor], Tensor]]:
    """What the effects of the rows' groups do to each layer; several grouping factors add up."""
    changes: dict[str, Callable[[Tensor], Tensor]] = {}
    for name in dict.fromkeys(layer.layer for layer in spec.layers):
        here = [layer for layer in spec.layers if layer.layer == name]
        scale = bias = None
        if values is not None:
            tables = [[values[part][batch.codes[one.group][rows]] for part in one.names] for one in here]
            scale, bias = (sum(parts[1:], parts[0]) for parts in zip(*tables, strict=True))
        changes[name] = partial(
            _changed, network.get_submodule(name), scale, bias, any(one.normalize for one in here)
        )
    return changes


def _changed(
    layer: nn.Module, scale: Tensor | None, bias: Tensor | None, normalize: bool, h: Tensor
) -> Tensor:
    return networks.scale_and_shift(layer, h, scale, bias, normalize=normalize)
