"""Networks as weights and, for the library's own, a description."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from pyro_armed import networks
from pyro_armed.building import NetworkPlan
from pyro_armed.errors import ArgumentError, FileFormatError
from pyro_armed.spec import LayerEffects, Reconstruction

__all__ = ["describe", "rebuild", "rebuild_plan"]

_FLOATS = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


def describe(plan: NetworkPlan, trained: list[nn.Module], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Describe a model's networks and put their weights and buffers with the tensors.

    Parameters
    ----------
    plan : NetworkPlan
        What the model knows of its network.
    trained : list of nn.Module
        The chains' networks, each once.
    tensors : dict of str to Tensor
        Gets the state of each network.

    Returns
    -------
    dict

    Raises
    ------
    ArgumentError
        For a state that is not made of tensors.
    """
    for number, network in enumerate(trained):
        for name, value in network.state_dict().items():
            if not isinstance(value, Tensor):
                raise ArgumentError(
                    f"The network's state {name!r} is a {type(value).__name__}; a file holds tensors only."
                )
            tensors[f"network.{number}.{name}"] = value
    first = trained[0]
    return {
        "class": type(first).__name__,
        "config": first.config() if isinstance(first, networks.BuiltIn) else None,
        "count": len(trained),
        "output_layer": plan.output_layer,
        "n_features": plan.n_features,
        "last_layer": plan.last_layer,
        "dtype": str(plan.dtype).removeprefix("torch."),
        "layers": [asdict(layer) for layer in plan.layers],
        "reconstruction": None if plan.reconstruction is None else asdict(plan.reconstruction),
    }


def rebuild(described: Mapping[str, Any], tensors: Mapping[str, Tensor], source: Any) -> list[nn.Module]:
    """The chains' networks.

    Parameters
    ----------
    described : mapping
        From `describe`.
    tensors : mapping of str to Tensor
        The file's tensors.
    source : nn.Module, callable or None
        The user's network; never changed.

    Returns
    -------
    list of nn.Module
        In evaluation mode.

    Raises
    ------
    ArgumentError
        Where the file needs the user's network, or has one of the library's own.
    FileFormatError
        Where the network does not fit the stored weights.
    """
    name, config = described["class"], described["config"]
    if config is None and source is None:
        raise ArgumentError(
            f"The file holds the weights of a {name}, but not its code: pass network={name}(...) to load()."
        )
    if config is not None and source is not None:
        raise ArgumentError(f"The file describes its own network, an {name}; leave network=... out.")
    found = []
    for number in range(described["count"]):
        network = networks.from_config(config) if config is not None else _instance(source)
        prefix = f"network.{number}."
        state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        try:
            network.to(_FLOATS[described["dtype"]]).load_state_dict(state)
        except (RuntimeError, KeyError) as error:
            raise FileFormatError(
                f"The stored weights of {name} do not fit the network {type(network).__name__}: "
                f"{' '.join(str(error).split())}"
            ) from error
        found.append(network.eval())
    return found


def rebuild_plan(described: Mapping[str, Any], source: nn.Module) -> NetworkPlan:
    """What the model knows of its network."""
    rebuilt = described.get("reconstruction")
    return NetworkPlan(
        source,
        described["output_layer"],
        described["n_features"],
        described["last_layer"],
        _FLOATS[described["dtype"]],
        tuple(LayerEffects(**layer) for layer in described.get("layers", ())),
        None if rebuilt is None else Reconstruction(**rebuilt),
    )


def _instance(source: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    if isinstance(source, nn.Module):
        return networks.copy_network(source)
    network = None
    if callable(source):
        with torch.random.fork_rng(devices=[]):
            network = source()
    if not isinstance(network, nn.Module):
        raise ArgumentError(f"network={source!r} must be a torch.nn.Module or a function that makes one.")
    return network
