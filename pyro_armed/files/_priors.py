"""Distributions as JSON."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent

from pyro_armed.errors import ArgumentError, FileFormatError
from pyro_armed.priors import HalfStudentT

__all__ = ["decode_prior", "encode_prior"]

# Names that a file may ask for, with their arguments: reading must not be able to reach anything else.
_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "Beta": ("concentration1", "concentration0"),
    "Cauchy": ("loc", "scale"),
    "Chi2": ("df",),
    "Exponential": ("rate",),
    "Gamma": ("concentration", "rate"),
    "Gumbel": ("loc", "scale"),
    "HalfCauchy": ("scale",),
    "HalfNormal": ("scale",),
    "InverseGamma": ("concentration", "rate"),
    "LKJCholesky": ("dim", "concentration"),
    "Laplace": ("loc", "scale"),
    "LogNormal": ("loc", "scale"),
    "Logistic": ("loc", "scale"),
    "MultivariateNormal": ("loc", "scale_tril"),
    "Normal": ("loc", "scale"),
    "Pareto": ("scale", "alpha"),
    "StudentT": ("df", "loc", "scale"),
    "Uniform": ("low", "high"),
    "Weibull": ("scale", "concentration"),
}
_CLASSES: dict[str, Any] = {name: getattr(dist, name) for name in _ARGUMENTS}
_CLASSES["HalfStudentT"] = HalfStudentT
_ARGUMENTS["HalfStudentT"] = ("df", "scale")


def encode_prior(name: str, prior: Distribution) -> dict[str, Any]:
    """A distribution as a JSON-able dictionary.

    Parameters
    ----------
    name : str
        Whose prior it is, for the message.
    prior : Distribution
        Of Pyro or PyTorch, possibly with ``to_event``.

    Returns
    -------
    dict

    Raises
    ------
    ArgumentError
        For distributions outside the list of those that a file may name.

    Examples
    --------
    >>> encode_prior("x", dist.HalfNormal(2.0))
    {'class': 'HalfNormal', 'args': {'scale': {'values': 2.0, 'dtype': 'float32'}}}
    """
    if isinstance(prior, Independent):
        base = encode_prior(name, prior.base_dist)
        return {"class": "Independent", "base": base, "ndims": prior.reinterpreted_batch_ndims}
    kind = type(prior).__name__
    known = _CLASSES.get(kind)
    if known is None or type(prior) not in inspect.getmro(known):
        raise ArgumentError(
            f"The prior of {name!r}, {prior}, cannot be saved; files know {', '.join(_CLASSES)} and "
            ".to_event()."
        )
    return {"class": kind, "args": {key: _encode(getattr(prior, key)) for key in _ARGUMENTS[kind]}}


def decode_prior(config: Mapping[str, Any]) -> Distribution:
    """The distribution that `encode_prior` wrote.

    Parameters
    ----------
    config : mapping
        From JSON.

    Returns
    -------
    Distribution

    Raises
    ------
    FileFormatError
        For classes and arguments that are not on the list.
    """
    kind = config["class"]
    if kind == "Independent":
        return decode_prior(config["base"]).to_event(int(config["ndims"]))  # type: ignore[attr-defined]
    if kind not in _CLASSES or set(config["args"]) != set(_ARGUMENTS[kind]):
        raise FileFormatError(f"The file names a prior that it must not name: {kind!r}.")
    arguments = {key: _decode(config["args"][key]) for key in _ARGUMENTS[kind]}
    if kind == "HalfStudentT":  # which takes them by position only
        return HalfStudentT(*arguments.values())
    return _CLASSES[kind](**arguments)


def _encode(value: Any) -> Any:
    if isinstance(value, Tensor):
        return {"values": value.detach().cpu().tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, Mapping):
        dtypes = {"float32": torch.float32, "float64": torch.float64}
        return torch.tensor(value["values"], dtype=dtypes[value["dtype"]])
    return value
