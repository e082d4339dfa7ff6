"""Draw responses of a family from a linear predictor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from pyro_armed.errors import ArgumentError
from pyro_armed.simulate._checks import number, vector

Floats = NDArray[np.float64]
Sampler = Callable[[np.random.Generator, Floats, Mapping[str, Any]], NDArray[Any]]


def _gaussian(rng: np.random.Generator, eta: Floats, aux: Mapping[str, Any]) -> NDArray[Any]:
    return rng.normal(eta, aux["sigma"])


def _student_t(rng: np.random.Generator, eta: Floats, aux: Mapping[str, Any]) -> NDArray[Any]:
    return eta + aux["sigma"] * rng.standard_t(aux["nu"], eta.size)


def _bernoulli(rng: np.random.Generator, eta: Floats, aux: Mapping[str, Any]) -> NDArray[Any]:
    return (rng.random(eta.size) < expit(eta)).astype(np.int64)


def _poisson(rng: np.random.Generator, eta: Floats, aux: Mapping[str, Any]) -> NDArray[Any]:
    return rng.poisson(np.exp(eta))


def _negative_binomial(rng: np.random.Generator, eta: Floats, aux: Mapping[str, Any]) -> NDArray[Any]:
    # Variance mean + mean^2 / alpha.
    return rng.negative_binomial(aux["alpha"], aux["alpha"] / (aux["alpha"] + np.exp(eta)))


def _gamma(rng: np.random.Generator, eta: Floats, aux: Mapping[str, Any]) -> NDArray[Any]:
    return rng.gamma(aux["alpha"], np.exp(eta) / aux["alpha"])


def _beta(rng: np.random.Generator, eta: Floats, aux: Mapping[str, Any]) -> NDArray[Any]:
    mean = expit(eta)
    y = rng.beta(mean * aux["kappa"], (1 - mean) * aux["kappa"])
    # The density lives on the open interval; rounding may not leave it.
    return np.clip(y, np.finfo(float).tiny, 1 - np.finfo(float).epsneg)


def _ordinal(rng: np.random.Generator, eta: Floats, aux: Mapping[str, Any]) -> NDArray[Any]:
    # P(y <= k) = expit(threshold_k - eta): a standard logistic latent response, cut at the thresholds.
    latent = eta + rng.logistic(size=eta.size)
    return np.searchsorted(np.asarray(aux["threshold"]), latent).astype(np.int64)


# Sampler and default auxiliary parameters of each family.
_FAMILIES: dict[str, tuple[Sampler, dict[str, Any]]] = {
    "gaussian": (_gaussian, {"sigma": 1.0}),
    "student_t": (_student_t, {"sigma": 1.0, "nu": 4.0}),
    "bernoulli": (_bernoulli, {}),
    "poisson": (_poisson, {}),
    "negative_binomial": (_negative_binomial, {"alpha": 2.0}),
    "gamma": (_gamma, {"alpha": 2.0}),
    "beta": (_beta, {"kappa": 10.0}),
    "ordinal": (_ordinal, {"threshold": (-1.0, 0.0, 1.0)}),
}


def auxiliary_parameters(family: str, sigma: float, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the family's auxiliary parameters: the defaults, ``sigma`` where it has one, and those given."""
    if family not in _FAMILIES:
        raise ArgumentError(f"family {family!r} cannot be simulated; use one of {', '.join(_FAMILIES)}.")
    result = dict(_FAMILIES[family][1])
    if "sigma" in result:
        result["sigma"] = sigma
    for name, value in (given or {}).items():
        if name not in result:
            known = ", ".join(result) or "none"
            raise ArgumentError(f"auxiliary has {name!r}, but family {family!r} knows only: {known}.")
        result[name] = value
    for name, value in result.items():
        if name == "threshold":
            cuts = vector("threshold", value)
            if (np.diff(cuts) <= 0).any():
                raise ArgumentError(f"threshold has to increase, but is {value!r}.")
            result[name] = tuple(float(c) for c in cuts)
        else:
            result[name] = number(name, value, 0.0, strict=name != "sigma")
    return result


def respond(rng: np.random.Generator, family: str, eta: Floats, auxiliary: Mapping[str, Any]) -> NDArray[Any]:
    """Draw one response per row; shape (N,)."""
    return _FAMILIES[family][0](rng, eta, auxiliary)
