"""How much of the response's variance is between groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor

from pyro_armed.batch import Batch
from pyro_armed.diagnostics._access import fitted
from pyro_armed.diagnostics._rows import encoded_rows
from pyro_armed.errors import ArgumentError
from pyro_armed.local import local_parameters
from pyro_armed.module import MixedEffectsModule
from pyro_armed.posterior import Chain
from pyro_armed.predict import extended_chains
from pyro_armed.priors import corr_name
from pyro_armed.spec import EffectBlock

__all__ = ["icc"]

_ELEMENTS = 4_000_000
_ROWS = 200
_DRAWS = 400
_NODES = 21


def icc(model: Any, data: Any = None, *, draws: int = _DRAWS) -> pd.DataFrame:
    """Intraclass correlations: the share of each grouping factor in the variance that predictors leave.

    Parameters
    ----------
    model : ARMED
        Fitted.
    data : DataFrame, optional
        Rows to average over, with new groups or not; None: the training rows.
    draws : int
        Posterior draws to use, over all chains.

    Returns
    -------
    pandas.DataFrame
        Columns ``group``, ``scale``, ``mean``, ``sd``, ``q5``, ``q50``, ``q95``; one row for each grouping
        factor and scale.

        - ``latent``: that of the linear predictor. The residual variance is sigma^2 for a Gaussian response
          and the link's (pi^2 / 3 for logit) for binary, binomial and ordinal ones; others have none.
        - ``response``: that of the response, one trial of a binomial one. Group g's part is the variance of
          the expected response over its effects, all others' effects averaged over. Ordinal responses,
          which are not numbers, have none.

    Raises
    ------
    ArgumentError
        For models without group effects on the mean, categorical responses, and a loaded model without
        ``data``.

    Notes
    -----
    Goldstein, Browne, Rasbash, Understanding Statistics 1, 2002, with Gauss-Hermite quadrature in place of
    simulation. With random slopes the variance between groups depends on the row: variances are averaged over
    rows (Johnson, Methods in Ecology and Evolution 5, 2014); on the scale of the response over at most 200 of
    them, evenly spaced.

    Examples
    --------
    >>> import pyro_armed as pa
    >>> data = pa.simulate.mixed_model(8, 10, seed=0)
    >>> model = pa.ARMED("y ~ x1 + (1 | group)", data.frame)
    >>> _ = model.fit(restarts=1, draws=50, progressbar=False)
    >>> icc(model)[["group", "scale"]].values.tolist()
    [['group', 'latent'], ['group', 'response']]
    """
    model = fitted(model, "icc")
    spec = model.spec
    if not isinstance(draws, int) or isinstance(draws, bool) or draws < 1:
        raise ArgumentError(f"draws={draws!r} must be a whole number of at least 1.")
    if spec.n_predictors > 1:
        raise ArgumentError("icc needs a response with one linear predictor; a categorical one has several.")
    if spec.layers:
        raise ArgumentError(
            "icc shares out the variance of a linear predictor; this model also has group effects within its "
            "network (ScaleBias), whose share is not linear."
        )
    if not spec.mu.blocks:
        raise ArgumentError("icc needs group effects; add '(1 | group)' to the formula.")
    encoded = encoded_rows(model, data)
    posterior = model._fitted()
    each = min(posterior.n_draws, -(-draws // len(posterior.chains)))
    parts: dict[tuple[str, str], list[np.ndarray]] = {}
    for chain in extended_chains(posterior, encoded, "population", seed=0, draws=each):
        for key, share in _shares(chain, encoded.batch).items():
            parts.setdefault(key, []).append(share)
    rows = []
    for group in dict.fromkeys(block.group for block in spec.mu.blocks):
        for scale in ("latent", "response"):
            if (group, scale) in parts:
                values = np.concatenate(parts[group, scale])
                rows.append(
                    (group, scale, values.mean(), values.std(ddof=1), *np.quantile(values, [0.05, 0.5, 0.95]))
                )
    return pd.DataFrame(rows, columns=["group", "scale", "mean", "sd", "q5", "q50", "q95"])


@torch.no_grad()
def _shares(chain: Chain, batch: Batch) -> dict[tuple[str, str], np.ndarray]:
    """Each factor's share, (S,), on both scales as far as there is one."""
    family = chain.module.spec.family
    few = (
        torch.linspace(0, batch.size - 1, min(_ROWS, batch.size), dtype=torch.float64).round().long().unique()
    )
    shares: dict[tuple[str, str], list[Tensor]] = {}
    gaussian = family.name == "gaussian" and family.link.name == "identity"
    if gaussian or family.latent_variance() is not None:
        for one in _chunks(chain, batch, batch.size):
            for group, share in _latent(one):
                shares.setdefault((group, "latent"), []).append(share)
                if gaussian:
                    shares.setdefault((group, "response"), []).append(share)
    if not gaussian and family.response != "ordinal":
        some = replace(batch.select(few.round().long()), rows=None)
        pairs = _NODES ** min(2, len(_groups(chain.module)))
        for one in _chunks(chain, some, some.size * pairs):
            for group, share in _response(one):
                shares.setdefault((group, "response"), []).append(share)
    return {key: torch.cat(value).double().cpu().numpy() for key, value in shares.items()}


@dataclass(frozen=True)
class _Rows:
    """Some draws of a chain on some rows.

    Attributes
    ----------
    module, batch, values
        Model, rows and draws (S, 1, ...).
    etas : dict of str to Tensor, shape (S, N)
        Linear predictors, that of the mean without group effects.
    between : dict of str to Tensor, shape (S, N)
        Variance of each grouping factor's part of the mean's predictor.
    weight : Tensor, shape (N,)
        Row weights that sum to one.
    """

    module: MixedEffectsModule
    batch: Batch
    values: Mapping[str, Tensor]
    etas: dict[str, Tensor]
    between: dict[str, Tensor]
    weight: Tensor


def _chunks(chain: Chain, batch: Batch, width: int) -> Iterator[_Rows]:
    module = chain.module.eval()
    with local_parameters():
        hidden = module.hidden(batch)
    weight = batch.weights if batch.weights is not None else torch.ones(batch.size, dtype=module.priors.dtype)
    for values in chain.chunks(max(1, _ELEMENTS // max(1, width))):
        etas = {
            p.parameter: module.linear_predictor(p, values, batch, hidden, random=p.parameter != "mu")
            for p in module.spec.predictors
        }
        size = len(next(iter(values.values())))
        etas = {name: eta.expand(size, batch.size) for name, eta in etas.items()}
        between = {
            group: sum(
                _block_variance(module, block, values, module.slope_columns(block, batch, hidden))
                for block in module.spec.mu.blocks
                if block.group == group
            )
            for group in _groups(module)
        }
        yield _Rows(module, batch, values, etas, between, weight / weight.sum())  # type: ignore[arg-type]


def _block_variance(
    module: MixedEffectsModule, block: EffectBlock, values: Mapping[str, Tensor], columns: Tensor
) -> Tensor:
    """Variance w' Sigma w of each row, shape (S, N)."""
    sds = module.block_sds(block, values)[:, 0]
    scaled = columns * sds.unsqueeze(1)
    if block.correlated:
        scaled = scaled @ values[corr_name(module.spec, block)][:, 0]
    return scaled.square().sum(-1)


def _groups(module: MixedEffectsModule) -> list[str]:
    return list(dict.fromkeys(block.group for block in module.spec.mu.blocks))


def _latent(one: _Rows) -> Iterator[tuple[str, Tensor]]:
    residual: Any = one.module.spec.family.latent_variance()
    if residual is None:
        sigma = one.module.auxiliaries(one.etas, one.values)["sigma"]
        residual = sigma.square().expand(-1, one.batch.size) @ one.weight
    between = {group: variance @ one.weight for group, variance in one.between.items()}
    total = sum(between.values()) + residual
    for group, variance in between.items():
        yield group, variance / total


def _response(one: _Rows) -> Iterator[tuple[str, Tensor]]:
    """Var over u_g of E[y | u_g], divided by Var(y), both averaged over rows."""
    nodes, weights = (torch.as_tensor(a, dtype=one.weight.dtype) for a in hermegauss(_NODES))
    weights = weights / weights.sum()
    whole = sum(one.between.values()).sqrt()  # type: ignore[union-attr]
    mean, variance = _moments(one, one.etas["mu"] + nodes[:, None, None] * whole)
    average = torch.einsum("k,ksn->sn", weights, mean)
    spread = torch.einsum("k,ksn->sn", weights, (mean - average).square())
    total = (spread + torch.einsum("k,ksn->sn", weights, variance)) @ one.weight
    if len(one.between) == 1:
        yield next(iter(one.between)), spread @ one.weight / total
        return
    for group, own in one.between.items():
        rest = (whole.square() - own).clamp_min(0.0).sqrt()
        shift = nodes[:, None, None] * own.sqrt() + (nodes[:, None, None] * rest).unsqueeze(1)
        mean, _ = _moments(one, one.etas["mu"] + shift)
        expected = torch.einsum("j,jksn->ksn", weights, mean)
        spread = torch.einsum("k,ksn->sn", weights, (expected - average).square())
        yield group, spread @ one.weight / total


def _moments(one: _Rows, eta: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of a response, of one trial of a binomial one."""
    batch = (
        one.batch
        if one.batch.trials is None
        else replace(one.batch, trials=torch.ones_like(one.batch.trials))
    )
    distribution = one.module.response_distribution({**one.etas, "mu": eta}, one.values, batch)
    return distribution.mean.expand_as(eta), distribution.variance.expand_as(eta)
