"""The log density of the Pyro model as a function of one vector."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Independent, Normal, biject_to, constraints

from pyro_armed.batch import Batch
from pyro_armed.draws import DRAWS, without_row_axis
from pyro_armed.errors import DataError
from pyro_armed.guides import LatentSite, latent_sites
from pyro_armed.module import MixedEffectsModule
from pyro_armed.priors import PriorTable
from pyro_armed.sampling._graph import recorded
from pyro_armed.training import no_validation

__all__ = ["Density"]

Hidden = tuple[Tensor, Tensor] | None


class Density:
    """The log density of a model's unconstrained latent variables as one vector of length D.

    In double precision: leapfrog errors of 0.1 in a log density of 1e5 need more than single.

    Parameters
    ----------
    module : MixedEffectsModule
        The model.
    data : Batch
        All training rows.
    hidden : tuple of Tensor, optional
        The network's features and output for these rows.
    record : bool
        Whether to record the gradient as a graph, which halves the cost of each evaluation.

    Attributes
    ----------
    start : Tensor, shape (D,)
        A central prior value.
    compiled : bool
        Whether the gradient is a recorded graph; else autograd takes it through Pyro.

    Raises
    ------
    DataError
        Where the density at the start is not finite.
    """

    def __init__(
        self, module: MixedEffectsModule, data: Batch, hidden: Hidden = None, *, record: bool = True
    ):
        self._original = module
        self._hidden = None if hidden is None else (_double(hidden[0].cpu()), _double(hidden[1].cpu()))
        self._batch = data.to("cpu").map(_double)
        self.compiled = False
        # Distributions remember whether they check their values, which cannot be recorded.
        with no_validation():
            self._module = MixedEffectsModule(module.spec, PriorTable(module.spec, module.priors.user))
            self.sites = latent_sites(self._module, self._batch)
            self._sizes = [site.unconstrained.numel() for site in self.sites]
            self.start = torch.cat([site.start.reshape(-1) for site in self.sites])
            self._normal = self._normal_priors()
            value, gradient = self.negative(self.start)
        if not (torch.isfinite(value) and torch.isfinite(gradient).all()):
            raise DataError(
                f"The log density of '{module.spec.response}' is not finite at central values of the priors; "
                "look for infinite or huge values in the data, and priors far from them."
            )
        self._graph = recorded(self._value_and_gradient, self.start) if record else None
        self.compiled = self._graph is not None

    def negative(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """The negative log density and its gradient.

        Parameters
        ----------
        point : Tensor, shape (D,)
            Unconstrained values.

        Returns
        -------
        value : Tensor, 0-dim
        gradient : Tensor, shape (D,)
        """
        if self.compiled:
            with torch.no_grad():
                return self._graph(point)  # type: ignore[misc]
        return self._value_and_gradient(point)

    def values(self, points: Tensor) -> dict[str, Tensor]:
        """Draws as a `Chain` stores them, in the model's precision.

        Parameters
        ----------
        points : Tensor, shape (S, D)
            Unconstrained values.
        """
        size = len(points)
        sites = {}
        for site, part in zip(self.sites, points.split(self._sizes, dim=1), strict=True):
            value = biject_to(site.support)(part.reshape(size, *site.unconstrained))
            sites[site.name] = value if site.group is not None else value.unsqueeze(1)
        with torch.no_grad(), pyro.plate(DRAWS, size, dim=-2):
            values = poutine.condition(self._module.sample_latents, data=sites)(self._batch)
        priors = self._original.priors
        return {
            name: value.to(priors.device, priors.dtype)
            for name, value in without_row_axis(self._module, values).items()
        }

    def _sites(self, point: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Values of the sample sites, and the log determinant of the map from unconstrained values."""
        values, jacobian = {}, point.new_zeros(())
        for site, part in zip(self.sites, point.split(self._sizes), strict=True):
            part = part.reshape(site.unconstrained)
            if _is_real(site):
                values[site.name] = part
                continue
            bijection = biject_to(site.support)
            values[site.name] = bijection(part)
            jacobian = jacobian + bijection.log_abs_det_jacobian(part, values[site.name]).sum()
        return values, jacobian

    def _trace(self, values: Mapping[str, Tensor]) -> Mapping[str, Any]:
        model = poutine.condition(self._module, data=dict(values))
        return poutine.trace(model).get_trace(self._batch, self._hidden).nodes

    def _normal_priors(self) -> tuple[set[str], Tensor, Tensor, float]:
        """Sites with a Gaussian prior, location, 1 / sd and constant of all: one term instead of one each."""
        with torch.no_grad():
            nodes = self._trace(self._sites(self.start)[0])
        names: set[str] = set()
        locations, precisions = [], []
        for site, size in zip(self.sites, self._sizes, strict=True):
            prior, node = nodes[site.name]["fn"], nodes[site.name]
            while isinstance(prior, Independent):
                prior = prior.base_dist
            if isinstance(prior, Normal) and node["scale"] == 1.0 and _is_real(site):
                names.add(site.name)
                locations.append(prior.loc.expand(site.shape).reshape(-1))
                precisions.append(prior.scale.expand(site.shape).reshape(-1).reciprocal())
            else:
                locations.append(self.start.new_zeros(size))
                precisions.append(self.start.new_zeros(size))
        precision = torch.cat(precisions)
        used = precision[precision > 0]
        constant = float(used.log().sum()) - 0.5 * math.log(2 * math.pi) * len(used)
        return names, torch.cat(locations), precision, constant

    def _value(self, point: Tensor) -> Tensor:
        values, log_density = self._sites(point)
        names, location, precision, constant = self._normal
        standard = (point - location) * precision
        log_density = log_density - 0.5 * standard.dot(standard) + constant
        for name, node in self._trace(values).items():
            if node["type"] != "sample" or name in names or _is_bookkeeping(node):
                continue
            log_prob = node["fn"].log_prob(node["value"])
            scale = node["scale"]
            plain = not isinstance(scale, Tensor) and scale == 1.0
            log_density = log_density + (log_prob if plain else log_prob * scale).sum()
        return -log_density

    def _value_and_gradient(self, point: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            point = point.detach().requires_grad_(True)
            value = self._value(point)
            (gradient,) = torch.autograd.grad(value, point)
        return value.detach(), gradient


def _is_real(site: LatentSite) -> bool:
    """Whether the site has no bounds, so that its unconstrained value is the value."""
    support = site.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support is constraints.real


def _is_bookkeeping(node: Mapping[str, Any]) -> bool:
    return type(node["fn"]).__name__ == "_Subsample" or bool(node["infer"].get("_deterministic"))


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().double() if tensor.is_floating_point() else tensor
