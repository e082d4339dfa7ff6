"""Priors: defaults that fit the data's scale, and the user's own by name.

Defaults, with s the sd of the response for identity links and 1 otherwise, and sd(x) the sd of a column:

======================  ==========================================================================
centred intercept       Normal(link of the mean response, 2.5 s)
coefficient of x        Normal(0, 2.5 s / sd(x))
last hidden layer (F)   Normal(0, 2.5 s / sqrt(F)) for each activation
sd between groups       HalfStudentT(3, 2.5 s / sd(x)); HalfNormal(2.5 s / sqrt(F)) for activations
correlations            LKJ(1)
auxiliary parameters    the family's own, such as HalfStudentT(4, s) for sigma
scales within layers    HalfNormal(0.5) for their sd between groups
biases within layers    HalfNormal(0.5 sd(h)), with sd(h) = 1 where the layer is normalised
noise of inputs         HalfNormal(sd of the inputs), where the network reconstructs them
======================  ==========================================================================

The intercept's prior holds at the mean of the predictors, as in brms and Bambi.
"""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.transforms import Transform, _InverseTransform

from pyro_armed.errors import ArgumentError
from pyro_armed.families import HalfStudentT
from pyro_armed.spec import FEATURES, INTERCEPT, EffectBlock, ModelSpec, Predictor

__all__ = ["HalfStudentT", "Prior", "PriorTable"]


@dataclass(frozen=True)
class Prior:
    """How one named quantity is drawn.

    The model draws ``raw`` and reports ``shift + unit * raw``: raw values are of order one whatever the
    units of the data, which guides and samplers need.

    Attributes
    ----------
    name : str
        Name in the posterior.
    distribution : Distribution
        Prior on the data's scale, of the quantity's shape.
    raw : Distribution
        Prior of the raw value.
    shift, unit : Tensor
        From raw to the data's scale.
    """

    name: str
    distribution: Distribution
    raw: Any
    shift: Tensor
    unit: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Prior:
        """The prior with ``function`` applied to each of its tensors."""
        return Prior(
            self.name,
            map_tensors(self.distribution, function),
            map_tensors(self.raw, function),
            function(self.shift),
            function(self.unit),
        )


class PriorTable(Mapping[str, Prior]):
    """The priors of a model by the names of its parameters.

    Parameters
    ----------
    spec : ModelSpec
        The model's structure, features included.
    user : mapping of str to Distribution, optional
        Priors that replace the defaults, on the data's scale.
    dtype : torch.dtype
        Type of the parameters.

    Raises
    ------
    ArgumentError
        For names that the model does not have, values that are not distributions, wrong shapes or supports.
    """

    def __init__(
        self, spec: ModelSpec, user: Mapping[str, Any] | None = None, dtype: torch.dtype = torch.float64
    ):
        if user is not None and not isinstance(user, Mapping):
            raise ArgumentError(
                f"priors must be a mapping of names to distributions, not {type(user).__name__}."
            )
        self.spec, self.dtype = spec, dtype
        self.user = dict(user or {})
        self._priors: dict[str, Prior] = {}
        self._used: set[str] = set()
        for predictor in spec.predictors:
            self._add_common(predictor)
        for block in spec.blocks:
            self._add_block(block)
        for layer in spec.layers:
            for name, unit in zip(layer.names, (1.0, layer.spread), strict=True):
                self._add(f"{name}_sigma", dist.HalfNormal(0.5 * unit), ())
        if spec.reconstruction is not None and spec.reconstruction.likelihood == "normal":
            self._add("reconstruction_sigma", dist.HalfNormal(spec.reconstruction.scale), ())
        modelled = {predictor.parameter for predictor in spec.predictors}
        scale = torch.tensor(spec.response_scale, dtype=dtype)
        for name, prior in spec.family.auxiliary_priors(scale, len(spec.levels) or None).items():
            if name not in modelled:
                self._add(name, prior, tuple(prior.event_shape))
        if unknown := [name for name in self.user if name not in self._used]:
            near = difflib.get_close_matches(unknown[0], self._priors, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ArgumentError(
                f"priors has {unknown[0]!r}, which this model does not have.{hint} "
                f"Known: {', '.join(self._priors)}."
            )

    def __getitem__(self, name: str) -> Prior:
        return self._priors[name]

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self._priors)

    def __len__(self) -> int:
        return len(self._priors)

    def apply(self, function: Callable[[Tensor], Tensor]) -> None:
        """Move the priors' tensors, as `torch.nn.Module._apply` does for parameters."""
        self._priors = {name: prior.map(function) for name, prior in self._priors.items()}

    @property
    def device(self) -> torch.device:
        """Where the priors' tensors are."""
        return next(iter(self._priors.values())).shift.device

    def describe(self) -> dict[str, Distribution]:
        """Priors on the data's scale by name, as drawn."""
        return {name: prior.distribution for name, prior in self._priors.items()}

    def _add_common(self, predictor: Predictor) -> None:
        spec = self.spec
        s = spec.response_scale if predictor.parameter == "mu" else 1.0
        outputs = (spec.n_predictors,) if predictor.parameter == "mu" and spec.n_predictors > 1 else ()
        if predictor.intercept:
            center = (
                spec.response_center if predictor.parameter == "mu" else _auxiliary_center(spec, predictor)
            )
            name = predictor.common_name(INTERCEPT)
            self._add(name, dist.Normal(center, 2.5 * s), outputs, shift=center, unit=s)
        for term in predictor.terms:
            shape = ((term.size,) if term.is_vector else ()) + outputs
            scale = _shaped(term.scale, shape, len(outputs))
            self._add(
                predictor.common_name(term.name), dist.Normal(0.0, 2.5 * s / scale), shape, unit=s / scale
            )
        if predictor.features and spec.n_features:
            s_feature = s / math.sqrt(spec.n_features)
            shape = (spec.n_features, *outputs)
            self._add(
                predictor.common_name(FEATURES), dist.Normal(0.0, 2.5 * s_feature), shape, unit=s_feature
            )

    def _add_block(self, block: EffectBlock) -> None:
        s = self.spec.response_scale if block.parameter == "mu" else 1.0
        outputs = (self.spec.n_predictors,) if block.parameter == "mu" and self.spec.n_predictors > 1 else ()
        for term in block.terms:
            shape = ((term.size,) if term.is_vector else ()) + outputs
            prior: Distribution
            if term.name == FEATURES:
                prior = dist.HalfNormal(2.5 * s / math.sqrt(max(self.spec.n_features, 1)))
            else:
                prior = HalfStudentT(3.0, 2.5 * s / _shaped(term.scale, shape, len(outputs)))
            self._add(f"{block.effect_name(term)}_sigma", prior, shape)
        if block.correlated:
            self._add(
                corr_name(self.spec, block), dist.LKJCholesky(block.size, 1.0), (block.size, block.size)
            )

    def _add(
        self, name: str, default: Distribution, shape: tuple[int, ...], shift: Any = 0.0, unit: Any = 1.0
    ) -> None:
        shift, unit = (torch.as_tensor(value, dtype=self.dtype) for value in (shift, unit))
        chosen = default
        if name in self.user:
            self._used.add(name)
            chosen = _checked(name, self.user[name], default)
        chosen = map_tensors(chosen, lambda tensor: tensor.to(self.dtype))
        full = _expanded(name, chosen, shape)
        raw = _location_scale(chosen, shift, unit)
        if raw is None:
            shift, unit = torch.zeros_like(shift), torch.ones_like(unit)
        self._priors[name] = Prior(
            name, full, full if raw is None else _expanded(name, raw, shape), shift, unit
        )


def corr_name(spec: ModelSpec, block: EffectBlock) -> str:
    """Name of a block's correlation matrix: ``"district_corr"`` where the group has one such block."""
    others = [b for b in spec.blocks if b.correlated and b.group == block.group]
    return f"{block.group}_corr" if len(others) == 1 else f"{block.key}_corr"


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A copy of a distribution with ``function`` applied to its floating tensors, nested ones included."""
    if isinstance(value, Tensor):
        return function(value) if value.is_floating_point() else value
    if isinstance(value, (list, tuple)):
        return type(value)(map_tensors(item, function) for item in value)
    if isinstance(value, _InverseTransform):
        return map_tensors(value.inv, function).inv
    if isinstance(value, (Distribution, Transform)):
        changed = copy.copy(value)
        for key, item in vars(value).items():
            if key == "_inv":  # a transform's inverse, which refers back to it
                changed.__dict__[key] = None
            elif isinstance(item, (Tensor, list, Distribution, Transform)):
                changed.__dict__[key] = map_tensors(item, function)
        return changed
    return value


def _shaped(scale: tuple[float, ...], shape: tuple[int, ...], n_outputs: int) -> Tensor:
    """Column scales with the shape of the effect: scalar terms drop the axis, outputs add one at the end."""
    tensor = torch.tensor(scale, dtype=torch.float64)
    if len(shape) == n_outputs:
        return tensor[0]
    return tensor[:, None] if n_outputs else tensor


def _auxiliary_center(spec: ModelSpec, predictor: Predictor) -> float:
    return math.log(max(spec.response_scale, 1e-12)) if predictor.parameter == "sigma" else 0.0


def _checked(name: str, prior: Any, default: Distribution) -> Distribution:
    if not isinstance(prior, TorchDistributionMixin):
        kind = prior.__name__ if isinstance(prior, type) else type(prior).__name__
        if isinstance(prior, Distribution):
            raise ArgumentError(
                f"The prior of {name!r} is PyTorch's {kind}; take pyro.distributions.{kind} instead."
            )
        raise ArgumentError(
            f"The prior of {name!r} must be a Pyro distribution such as dist.Normal(0., 1.), not {kind}."
        )
    wanted, given = _innermost(default.support), _innermost(prior.support)
    if getattr(prior.support, "is_discrete", False):
        raise ArgumentError(f"The prior of {name!r} must be continuous; {prior} is not.")
    if wanted in (constraints.positive, constraints.nonnegative):
        if given not in (constraints.positive, constraints.nonnegative) and not _is_positive_interval(given):
            raise ArgumentError(
                f"The prior of {name!r} must be positive, such as dist.HalfNormal(1.); {prior} is not."
            )
    elif wanted is not constraints.real and given is not wanted:
        raise ArgumentError(
            f"The prior of {name!r} must be one of the same kind as its default, {default}; {prior} is not."
        )
    return prior


def _innermost(constraint: Any) -> Any:
    while hasattr(constraint, "base_constraint"):
        constraint = constraint.base_constraint
    return constraint


def _is_positive_interval(constraint: Any) -> bool:
    lower = getattr(constraint, "lower_bound", None)
    return lower is not None and bool((torch.as_tensor(lower) >= 0).all())


def _expanded(name: str, prior: Any, shape: tuple[int, ...]) -> Any:
    current = tuple(prior.batch_shape + prior.event_shape)
    if current == shape:
        return prior.to_event(len(prior.batch_shape))
    n_batch = len(shape) - len(prior.event_shape)
    try:
        if n_batch < 0 or shape[n_batch:] != tuple(prior.event_shape):
            raise ValueError("the event shape does not fit")
        return prior.expand(shape[:n_batch]).to_event(n_batch)
    except (RuntimeError, ValueError) as error:
        raise ArgumentError(
            f"The prior of {name!r} has shape {current}; the parameter has shape {shape}."
        ) from error


def _location_scale(prior: Distribution, shift: Tensor, unit: Tensor) -> Distribution | None:
    """The prior of ``(value - shift) / unit`` for location-scale families, else None."""
    if isinstance(prior, (dist.Normal, dist.Laplace, dist.Cauchy)):
        return type(prior)((prior.loc - shift) / unit, prior.scale / unit)
    if isinstance(prior, dist.StudentT):
        return dist.StudentT(prior.df, (prior.loc - shift) / unit, prior.scale / unit)
    return None
