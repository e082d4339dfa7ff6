"""Link functions: between a linear predictor and the mean of a response.

Every function is elementwise, differentiable twice and free of branches on values, so that it can be mapped,
traced and compiled. The links onto (0, 1) are distribution functions as well, and know their logarithms.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_armed.errors import ArgumentError

__all__ = ["LINKS", "Link", "UnitLink", "get_link"]

# exp() of more overflows in single precision, and inf - inf would follow.
_MAX_EXPONENT = 80.0
# Below this, log(1 - exp(-exp(x))) is x to double precision.
_TINY_EXPONENT = -37.0


class Link:
    """A link function and its inverse.

    Attributes
    ----------
    name : str
        The name by which a family asks for it.
    domain : str
        Where the mean lives: "real", "positive", "unit" or "simplex".
    latent_variance : float or None
        Variance of the latent variable whose distribution function the inverse link is, if there is one.

    Examples
    --------
    >>> get_link("log").inverse(torch.tensor(0.0))
    tensor(1.)
    """

    name: ClassVar[str]
    domain: ClassVar[str] = "real"
    latent_variance: ClassVar[float | None] = None

    def link(self, mu: Tensor) -> Tensor:
        """Linear predictor of a mean."""
        raise NotImplementedError

    def inverse(self, eta: Tensor) -> Tensor:
        """Mean of a linear predictor."""
        raise NotImplementedError

    def log_inverse(self, eta: Tensor) -> Tensor:
        """Logarithm of the mean, without leaving the log scale where that can be avoided."""
        return self.inverse(eta).log()

    def __repr__(self) -> str:
        return f"<link {self.name}>"


class _Identity(Link):
    name = "identity"

    def link(self, mu: Tensor) -> Tensor:
        return mu

    def inverse(self, eta: Tensor) -> Tensor:
        return eta


class _Log(Link):
    name = "log"
    domain = "positive"

    def link(self, mu: Tensor) -> Tensor:
        return mu.log()

    def inverse(self, eta: Tensor) -> Tensor:
        return eta.exp()

    def log_inverse(self, eta: Tensor) -> Tensor:
        return eta


class _Inverse(Link):
    """1 / mu. A predictor at or below zero has no mean: it is held at the smallest usable one."""

    name = "inverse"
    domain = "positive"

    def link(self, mu: Tensor) -> Tensor:
        return mu.reciprocal()

    def inverse(self, eta: Tensor) -> Tensor:
        return eta.clamp_min(torch.finfo(eta.dtype).eps).reciprocal()

    def log_inverse(self, eta: Tensor) -> Tensor:
        return -eta.clamp_min(torch.finfo(eta.dtype).eps).log()


class UnitLink(Link):
    """A link whose inverse is a distribution function F.

    Examples
    --------
    >>> probit = get_link("probit")
    >>> [round(float(f(torch.tensor(-10.0))), 3) for f in (probit.inverse, probit.log_inverse)]
    [0.0, -53.231]
    """

    domain = "unit"

    def log_complement(self, eta: Tensor) -> Tensor:
        """Return ``log(1 - F(eta))``."""
        raise NotImplementedError

    def log_interval(self, low: Tensor, high: Tensor) -> Tensor:
        """Return ``log(F(high) - F(low))`` for ``low < high``, stable in both tails."""
        raise NotImplementedError

    def logits(self, eta: Tensor) -> Tensor:
        """Log odds of ``F(eta)``."""
        return self.log_inverse(eta) - self.log_complement(eta)


class _Logit(UnitLink):
    name = "logit"
    latent_variance = math.pi**2 / 3

    def link(self, mu: Tensor) -> Tensor:
        return torch.logit(mu)

    def inverse(self, eta: Tensor) -> Tensor:
        return torch.sigmoid(eta)

    def log_inverse(self, eta: Tensor) -> Tensor:
        return logsigmoid(eta)

    def log_complement(self, eta: Tensor) -> Tensor:
        return logsigmoid(-eta)

    def log_interval(self, low: Tensor, high: Tensor) -> Tensor:
        return logsigmoid(high) + logsigmoid(-low) + _log1mexp(_gap(low, high))

    def logits(self, eta: Tensor) -> Tensor:
        return eta


class _Probit(UnitLink):
    name = "probit"
    latent_variance = 1.0

    def link(self, mu: Tensor) -> Tensor:
        return torch.special.ndtri(mu)

    def inverse(self, eta: Tensor) -> Tensor:
        return torch.special.ndtr(eta)

    def log_inverse(self, eta: Tensor) -> Tensor:
        return _log_ndtr(eta)

    def log_complement(self, eta: Tensor) -> Tensor:
        return _log_ndtr(-eta)

    def log_interval(self, low: Tensor, high: Tensor) -> Tensor:
        # Reflected into the lower tail, where the difference keeps its digits.
        high = low + _gap(low, high)
        upper = low + high > 0
        low, high = torch.where(upper, -high, low), torch.where(upper, -low, high)
        log_high = _log_ndtr(high)
        return log_high + _log1mexp((log_high - _log_ndtr(low)).clamp_min(torch.finfo(low.dtype).tiny))


class _Cloglog(UnitLink):
    name = "cloglog"
    latent_variance = math.pi**2 / 6

    def link(self, mu: Tensor) -> Tensor:
        return (-torch.log1p(-mu)).log()

    def inverse(self, eta: Tensor) -> Tensor:
        return -torch.expm1(-eta.clamp_max(_MAX_EXPONENT).exp())

    def log_inverse(self, eta: Tensor) -> Tensor:
        inner = _log1mexp(eta.clamp(_TINY_EXPONENT, _MAX_EXPONENT).exp())
        return torch.where(eta < _TINY_EXPONENT, eta, inner)

    def log_complement(self, eta: Tensor) -> Tensor:
        return -eta.clamp_max(_MAX_EXPONENT).exp()

    def log_interval(self, low: Tensor, high: Tensor) -> Tensor:
        gap = _gap(low, high)
        return self.log_complement(low) + self.log_inverse(low + gap + _log1mexp(gap))


class _Softmax(Link):
    """K probabilities (..., K) from K - 1 predictors (..., K - 1): log odds against the first level."""

    name = "softmax"
    domain = "simplex"

    def link(self, mu: Tensor) -> Tensor:
        return mu[..., 1:].log() - mu[..., :1].log()

    def inverse(self, eta: Tensor) -> Tensor:
        return self.log_inverse(eta).exp()

    def log_inverse(self, eta: Tensor) -> Tensor:
        reference = torch.zeros_like(eta[..., :1])
        return torch.log_softmax(torch.cat([reference, eta], dim=-1), dim=-1)


def _log1mexp(x: Tensor) -> Tensor:
    """Return ``log(1 - exp(-x))`` for positive x."""
    return (-torch.expm1(-x)).log()


def _gap(low: Tensor, high: Tensor) -> Tensor:
    """Width of an interval, kept positive where rounding has closed it."""
    return (high - low).clamp_min(torch.finfo(low.dtype).eps)


def _log_ndtr(x: Tensor) -> Tensor:
    """Logarithm of the normal distribution function.

    torch's own cannot be mapped with vmap, and its second derivative is not a number far to the right.
    """
    left, right = x.clamp_max(1.0), x.clamp_min(1.0)
    lower = torch.special.erfcx(-left / math.sqrt(2.0)).log() - 0.5 * left * left - math.log(2.0)
    upper = torch.log1p(-0.5 * torch.special.erfc(right / math.sqrt(2.0)))
    return torch.where(x < 1.0, lower, upper)


LINKS: dict[str, Link] = {
    link.name: link for link in (_Identity(), _Log(), _Logit(), _Probit(), _Cloglog(), _Inverse(), _Softmax())
}


def get_link(name: str) -> Link:
    """Return the link of that name.

    Raises
    ------
    ArgumentError
        When there is no such link.

    Examples
    --------
    >>> get_link("logit")
    <link logit>
    """
    if name not in LINKS:
        raise ArgumentError(f"link {name!r} is not known: use one of {', '.join(LINKS)}")
    return LINKS[name]
