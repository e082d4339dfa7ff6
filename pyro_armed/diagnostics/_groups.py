"""The likelihood of a group, with its effects integrated out."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.polynomial.hermite import hermgauss
from torch import Tensor

from pyro_armed import metrics
from pyro_armed.batch import Batch
from pyro_armed.conditional import GroupConditional, Problem
from pyro_armed.design import Encoded
from pyro_armed.diagnostics._access import dataset_of, fitted
from pyro_armed.errors import ArgumentError
from pyro_armed.export import variable_name
from pyro_armed.gaussian_conditional import has_gaussian_conditional
from pyro_armed.group_gaussian import Effects
from pyro_armed.local import local_parameters
from pyro_armed.module import MixedEffectsModule, group_plate
from pyro_armed.partial_conditional import PartialConditional
from pyro_armed.posterior import Chain, Posterior
from pyro_armed.predict import Evaluated, evaluated_rows, extended_chains

__all__ = ["group_log_likelihood", "joint_log_density", "likelihood_of_chain", "only_group"]

_ELEMENTS = 2_000_000
_NODES = {1: 15, 2: 7, 3: 5}


def group_log_likelihood(model: Any, group: str | None = None) -> xr.Dataset:
    """Log density of each group's rows together, the group's own effects integrated out.

    Parameters
    ----------
    model : ARMED
        Fitted, with its training rows.
    group : str, optional
        Grouping factor; None: the only one.

    Returns
    -------
    xarray.Dataset
        One variable, named by the response, with dimensions chain, draw and the groups:
        log p(y_c | theta_s, u_s), where u are the effects of other grouping factors at their posterior draws.
        Exact for a Gaussian response, else by adaptive Gauss-Hermite quadrature (up to three effects of each
        group) or Laplace's method (more).

    Raises
    ------
    ArgumentError
        Where the model has no such grouping factor, has several and none is named, or was loaded.

    Notes
    -----
    Merkle, Furr, Rabe-Hesketh, Psychometrika 84, 2019: the marginal likelihood asks for new groups.

    Examples
    --------
    >>> import pyro_armed as pa
    >>> data = pa.simulate.mixed_model(4, 10, seed=0)
    >>> model = pa.ARMED("y ~ x1 + (1 | group)", data.frame)
    >>> _ = model.fit(restarts=1, draws=50, progressbar=False)
    >>> group_log_likelihood(model)["y"].sizes["group__factor_dim"]
    4
    """
    model = fitted(model, "group_log_likelihood")
    if model._training is None:
        raise ArgumentError("model was loaded from a file, without the training rows; fit it here.")
    module = model.module
    group = only_group(module, group)
    batch = model._training.batch
    values = [likelihood_of_chain(chain, batch, group) for chain in model._fitted().chains]
    dimension = variable_name(group_plate(group))
    known = dataset_of(model.idata, "posterior")
    coords = {dimension: known[dimension].to_numpy()} if dimension in known.coords else {}
    name = variable_name(model.spec.response)
    return xr.Dataset({name: (("chain", "draw", dimension), np.stack(values))}, coords=coords)


def only_group(module: MixedEffectsModule, group: str | None) -> str:
    """The grouping factor that is meant; an error where there are several or none."""
    if module.spec.layers:
        raise ArgumentError(
            "The likelihood of whole groups integrates their effects out, which cannot be done for effects "
            "within the network (ScaleBias); hold groups out and use evaluate()."
        )
    names = list(dict.fromkeys(block.group for block in module.spec.blocks))
    if not names:
        raise ArgumentError("The model has no group effects; add '(1 | group)' to the formula.")
    if group is None and len(names) > 1:
        raise ArgumentError(f"The model has several grouping factors; pass group=... ({', '.join(names)}).")
    if group is not None and group not in names:
        raise ArgumentError(f"group={group!r} is not a grouping factor of the model ({', '.join(names)}).")
    return group or names[0]


@torch.no_grad()
def joint_log_density(
    posterior: Posterior, encoded: Encoded, group: str, codes: np.ndarray, *, seed: int
) -> np.ndarray:
    """Log predictive density of the rows of each of K new groups together.

    Parameters
    ----------
    posterior : Posterior
        Stored draws.
    encoded : Encoded
        Rows with their response, all of them of new groups.
    group : str
        The groups' factor. The model may have no effects for it.
    codes : numpy.ndarray, shape (N,)
        The rows' groups, counted from 0.
    seed : int
        Seed of the effects of new groups of other factors.

    Returns
    -------
    numpy.ndarray, shape (K,)
        Log of the mean over draws of p(y_c | theta_s), in which the group's own effects are integrated out
        for each draw as in `group_log_likelihood`: the product over rows of densities that are each averaged
        over the draws would take the rows as independent, and an average over drawn effects of their
        product would rest on the few draws that fit.
    """
    batch, own = encoded.batch, torch.tensor(codes)
    size = int(own.max()) + 1
    batch = replace(batch, codes={**batch.codes, group: own}, rows=None)
    chains = extended_chains(posterior, encoded, "marginal", seed=seed)
    if any(block.group == group for block in chains[0].module.spec.blocks):
        parts = [likelihood_of_chain(chain, batch, group, size) for chain in chains]
    else:
        parts = [_without_effects(part, batch, own, size) for part in evaluated_rows(chains, batch)]
    return metrics.log_predictive_density(np.concatenate(parts))


def _without_effects(part: Evaluated, batch: Batch, codes: Tensor, size: int) -> np.ndarray:
    """Log densities (S, K) where rows of a group are independent given the draw."""
    distribution = part.chain_object.module.response_distribution(part.etas, part.values, batch)
    rows = distribution.log_prob(batch.response)
    rows = rows if batch.weights is None else rows * batch.weights
    return rows.new_zeros(len(rows), size).index_add(1, codes, rows).double().cpu().numpy()


@torch.no_grad()
def likelihood_of_chain(chain: Chain, batch: Batch, group: str, size: int | None = None) -> np.ndarray:
    """Log densities (S, C) of each group's rows under a chain's draws; C is ``size``, or that of training."""
    module = chain.module
    with local_parameters():
        hidden = module.eval().hidden(batch)
    # All other factors' effects are given.
    everyone = torch.arange(module.spec.group(group).size if size is None else size)
    conditional = PartialConditional(module, batch, hidden, {group: everyone})
    width = conditional.widths[group]
    order = 1 if has_gaussian_conditional(module) else _NODES.get(width, 1)
    at_once = max(1, _ELEMENTS // max(1, batch.size * width * max(width, 2) * conditional.n_columns))
    parts = []
    for values in chain.chunks(at_once):
        problem = conditional.problem(values)
        parts.append(integrated(conditional, problem, conditional.solve(problem), order))
    return torch.cat(parts).double().cpu().numpy()


def integrated(conditional: GroupConditional, problem: Problem, effects: Effects, order: int) -> Tensor:
    """Log density p(y_c | theta) of each group of the only factor by adaptive quadrature, shape (S, C).

    Parameters
    ----------
    conditional : GroupConditional
        With one grouping factor.
    problem, effects
        From ``problem`` and ``solve``.
    order : int
        Nodes of each dimension; 1 is Laplace's method.

    Returns
    -------
    Tensor, shape (S, C)
    """
    nodes, weights = (torch.as_tensor(a, dtype=problem.base.dtype) for a in hermgauss(order))
    mean, factor = effects.mean[0], effects.primary
    width = mean.shape[-1]
    total: Tensor | None = None
    for index in itertools.product(range(order), repeat=width):
        node = nodes[list(index)] * math.sqrt(2.0)
        shift = torch.linalg.solve_triangular(factor.mT, node.unsqueeze(-1), upper=True)[..., 0]
        term = conditional.by_group(problem, [mean + shift]) + float(
            weights[list(index)].log().sum() + 0.5 * node.square().sum()
        )
        total = term if total is None else torch.logaddexp(total, term)
    log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return total + 0.5 * width * math.log(2.0) - log_det  # type: ignore[operator]
