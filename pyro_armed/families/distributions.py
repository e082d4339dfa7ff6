"""Distributions on the scale of the predictor, for densities that keep their digits in the tails.

Each is the textbook distribution of its name. What differs is the parametrisation: a mean of ``exp(-50)``
or a shape of ``1e6`` costs no accuracy in single precision, and second derivatives stay finite.
"""

import math
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions.utils import broadcast_all
from torch.nn.functional import logsigmoid

__all__ = [
    "BetaMean",
    "BinomialLogits",
    "GammaMean",
    "HalfStudentT",
    "NegativeBinomialMean",
    "OrderedNormal",
    "PoissonLog",
]

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
# Keeps polygamma(1, a) finite in single precision.
_MIN_SHAPE = 1e-12
_SERIES_FROM = 16.0
_SERIES = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188)


def stirling_remainder(a: Tensor) -> Tensor:
    """Return ``lgamma(a) - ((a - 1/2) log(a) - a + log(2 pi) / 2)``, accurate for small and large ``a``."""
    small = a.clamp_max(_SERIES_FROM)
    direct = torch.lgamma(small) - (small - 0.5) * small.log() + small - _HALF_LOG_2PI
    inverse = a.clamp_min(_SERIES_FROM).reciprocal()
    square = inverse * inverse
    series = torch.zeros_like(inverse)
    for coefficient in reversed(_SERIES):
        series = series * square + coefficient
    return torch.where(a < _SERIES_FROM, direct, series * inverse)


class _Elementwise(TorchDistribution):
    """A distribution of scalars given by broadcast parameters."""

    parameters_: ClassVar[tuple[str, ...]]

    def __init__(self, *values: Tensor | float, validate_args: bool | None = None) -> None:
        broadcast = broadcast_all(*values)
        for name, value in zip(self.parameters_, broadcast, strict=True):
            setattr(self, name, value)
        super().__init__(broadcast[0].shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "_Elementwise":
        new = type(self).__new__(type(self)) if _instance is None else _instance
        batch_shape = torch.Size(batch_shape)
        for name in self.parameters_:
            setattr(new, name, getattr(self, name).expand(batch_shape))
        TorchDistribution.__init__(new, batch_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self._log_density(value)

    def _log_density(self, value: Tensor) -> Tensor:
        raise NotImplementedError


def _bounded(rate: Tensor) -> Tensor:
    """Rates whose counts torch can hold: above 2**53 it draws nonsense."""
    return rate.clamp_max(2.0**53)


class PoissonLog(_Elementwise):
    """Poisson counts with a given logarithm of the rate.

    Examples
    --------
    >>> PoissonLog(torch.tensor(-100.0)).log_prob(torch.tensor(1.0))
    tensor(-100.)
    """

    parameters_ = ("log_rate",)
    arg_constraints: ClassVar = {"log_rate": constraints.real}
    support = constraints.nonnegative_integer
    log_rate: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean."""
        return self.log_rate.exp()

    @property
    def variance(self) -> Tensor:
        """Variance."""
        return self.mean

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw counts."""
        with torch.no_grad():
            return torch.poisson(_bounded(self.mean).expand(self._extended_shape(torch.Size(sample_shape))))

    def _log_density(self, value: Tensor) -> Tensor:
        return value * self.log_rate - self.log_rate.exp() - torch.lgamma(value + 1.0)


class GammaMean(_Elementwise):
    """Gamma with shape ``alpha`` and a given logarithm of the mean.

    Examples
    --------
    >>> GammaMean(torch.tensor(0.0), torch.tensor(1.0)).log_prob(torch.tensor(2.0))
    tensor(-2.)
    """

    parameters_ = ("log_mean", "alpha")
    arg_constraints: ClassVar = {"log_mean": constraints.real, "alpha": constraints.positive}
    support = constraints.positive
    has_rsample = True
    log_mean: Tensor
    alpha: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean."""
        return self.log_mean.exp()

    @property
    def variance(self) -> Tensor:
        """Variance."""
        return (2.0 * self.log_mean).exp() / self.alpha

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw values, differentiably."""
        unit = dist.Gamma(self.alpha, self.alpha, validate_args=False).rsample(sample_shape)
        return (unit * self.mean).clamp_min(torch.finfo(unit.dtype).tiny)

    def _log_density(self, value: Tensor) -> Tensor:
        # Large terms of either sign are gathered in one difference that vanishes at the mode.
        log_ratio = value.log() - self.log_mean
        centred = self.alpha * (log_ratio - torch.expm1(log_ratio))
        norm = 0.5 * self.alpha.log() - _HALF_LOG_2PI - stirling_remainder(self.alpha)
        return centred + norm - value.log()


class BetaMean(_Elementwise):
    """Beta with precision ``kappa``, and the logarithms of its mean and of one minus its mean.

    Examples
    --------
    >>> half = torch.tensor(0.5).log()
    >>> round(float(BetaMean(half, half, 2.0).log_prob(torch.tensor(0.3)).abs()), 5)
    0.0
    """

    parameters_ = ("log_mean", "log_complement", "kappa")
    arg_constraints: ClassVar = {
        "log_mean": constraints.real,
        "log_complement": constraints.real,
        "kappa": constraints.positive,
    }
    support = constraints.unit_interval
    has_rsample = True
    log_mean: Tensor
    log_complement: Tensor
    kappa: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean."""
        return self.log_mean.exp()

    @property
    def variance(self) -> Tensor:
        """Variance."""
        return (self.log_mean + self.log_complement).exp() / (1.0 + self.kappa)

    def _shapes(self) -> tuple[Tensor, Tensor]:
        a = (self.log_mean.exp() * self.kappa).clamp_min(_MIN_SHAPE)
        b = (self.log_complement.exp() * self.kappa).clamp_min(_MIN_SHAPE)
        return a, b

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw values, differentiably; rounding never puts them on 0 or 1."""
        limits = torch.finfo(self.kappa.dtype)
        draws = dist.Beta(*self._shapes(), validate_args=False).rsample(sample_shape)
        return draws.clamp(limits.tiny, 1.0 - limits.eps)

    def _log_density(self, value: Tensor) -> Tensor:
        a, b = self._shapes()
        log_value, log_rest = value.log(), torch.log1p(-value)
        centred = a * (log_value - self.log_mean) + b * (log_rest - self.log_complement)
        norm = 0.5 * (a.log() + b.log() - (a + b).log()) - _HALF_LOG_2PI
        remainder = stirling_remainder(a + b) - stirling_remainder(a) - stirling_remainder(b)
        return centred + norm + remainder - log_value - log_rest


class NegativeBinomialMean(_Elementwise):
    """Negative binomial counts with a given logarithm of the mean, and variance ``mean + mean**2 / alpha``.

    Examples
    --------
    >>> NegativeBinomialMean(torch.tensor(0.0), torch.tensor(2.0)).variance
    tensor(1.5000)
    """

    parameters_ = ("log_mean", "alpha")
    arg_constraints: ClassVar = {"log_mean": constraints.real, "alpha": constraints.positive}
    support = constraints.nonnegative_integer
    log_mean: Tensor
    alpha: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean."""
        return self.log_mean.exp()

    @property
    def variance(self) -> Tensor:
        """Variance."""
        return self.mean + self.mean.square() / self.alpha

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw counts."""
        with torch.no_grad():
            rate = dist.Gamma(self.alpha, self.alpha, validate_args=False).sample(sample_shape) * self.mean
            return torch.poisson(_bounded(rate))

    def _log_density(self, value: Tensor) -> Tensor:
        alpha = self.alpha
        logits = self.log_mean - alpha.log()
        # lgamma(alpha + y) - lgamma(alpha), whose two terms would cancel for nearly Poisson counts.
        total = alpha + value
        rising = (alpha - 0.5) * torch.log1p(value / alpha) + value * total.log() - value
        rising = rising + stirling_remainder(total) - stirling_remainder(alpha)
        kernel = alpha * logsigmoid(-logits) + value * logsigmoid(logits)
        return kernel + rising - torch.lgamma(value + 1.0)


class BinomialLogits(_Elementwise):
    """Successes among ``trials`` with given log odds.

    Examples
    --------
    >>> BinomialLogits(torch.tensor(0.0), torch.tensor(2.0)).log_prob(torch.tensor(1.0)).exp()
    tensor(0.5000)
    """

    parameters_ = ("logits", "trials")
    arg_constraints: ClassVar = {"logits": constraints.real, "trials": constraints.nonnegative_integer}
    logits: Tensor
    trials: Tensor

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        """Integers from 0 to the number of trials."""
        return constraints.integer_interval(0, self.trials)

    @property
    def mean(self) -> Tensor:
        """Mean number of successes."""
        return self.trials * torch.sigmoid(self.logits)

    @property
    def variance(self) -> Tensor:
        """Variance of the number of successes."""
        return self.mean * torch.sigmoid(-self.logits)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw numbers of successes."""
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            probability = torch.sigmoid(self.logits)
            return torch.binomial(self.trials.to(probability.dtype).expand(shape), probability.expand(shape))

    def _log_density(self, value: Tensor) -> Tensor:
        rest = self.trials - value
        choose = torch.lgamma(self.trials + 1.0) - torch.lgamma(value + 1.0) - torch.lgamma(rest + 1.0)
        return choose + value * logsigmoid(self.logits) + rest * logsigmoid(-self.logits)


class HalfStudentT(_Elementwise):
    """Absolute value of a Student t variable centred at zero.

    Examples
    --------
    >>> HalfStudentT(1.0, torch.tensor(1.0)).log_prob(torch.tensor(1.0)).exp()  # half-Cauchy: 1 / pi
    tensor(0.3183)
    """

    parameters_ = ("df", "scale")
    arg_constraints: ClassVar = {"df": constraints.positive, "scale": constraints.positive}
    support = constraints.positive
    has_rsample = True
    df: Tensor
    scale: Tensor

    def _base(self) -> dist.StudentT:
        return dist.StudentT(self.df, torch.zeros_like(self.scale), self.scale, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Mean; infinite where ``df <= 1``."""
        df = self.df.clamp_min(1.0)
        log_ratio = torch.lgamma((df + 1.0) / 2.0) - torch.lgamma(df / 2.0)
        return 2.0 * self.scale * (df / math.pi).sqrt() * log_ratio.exp() / (df - 1.0)

    @property
    def variance(self) -> Tensor:
        """Variance; infinite where ``df <= 2``."""
        second = self.scale.square() * self.df / (self.df - 2.0).clamp_min(0.0)
        return torch.where(self.df > 2.0, second - self.mean.square(), torch.inf)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw values, differentiably."""
        draws = self._base().rsample(sample_shape).abs()
        return draws.clamp_min(torch.finfo(draws.dtype).tiny)

    def _log_density(self, value: Tensor) -> Tensor:
        df, half = self.df, 0.5 * (self.df + 1.0)
        constant = torch.lgamma(half) - torch.lgamma(0.5 * df) - 0.5 * (math.pi / 4.0 * df).log()
        return constant - self.scale.log() - half * torch.log1p((value / self.scale).square() / df)


class OrderedNormal(TorchDistribution):
    """Independent normal variables around zero, sorted: a prior for the thresholds of an ordinal response.

    Parameters
    ----------
    scale : Tensor or float
        Standard deviation before sorting, shape of the batch.
    size : int
        Number of variables.
    validate_args : bool, optional
        Whether to check values, as for any distribution.

    Examples
    --------
    >>> OrderedNormal(2.5, 4).event_shape
    torch.Size([4])
    """

    arg_constraints: ClassVar = {"scale": constraints.positive}
    support = constraints.ordered_vector
    has_rsample = True

    def __init__(self, scale: Tensor | float, size: int, validate_args: bool | None = None) -> None:
        self.scale = torch.as_tensor(scale)
        super().__init__(self.scale.shape, torch.Size((size,)), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "OrderedNormal":
        """Return the distribution with a larger batch."""
        new = type(self).__new__(type(self)) if _instance is None else _instance
        new.scale = self.scale.expand(torch.Size(batch_shape))
        TorchDistribution.__init__(new, torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw sorted values, differentiably."""
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, dtype=self.scale.dtype, device=self.scale.device)
        return (noise * self.scale.unsqueeze(-1)).sort(dim=-1).values

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density on the sorted vectors: that of the unsorted times the number of orders."""
        if self._validate_args:
            self._validate_sample(value)
        scale = self.scale.unsqueeze(-1)
        terms = -0.5 * (value / scale).square() - scale.log() - _HALF_LOG_2PI
        return terms.sum(-1) + math.lgamma(self.event_shape[0] + 1.0)
