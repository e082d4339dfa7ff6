"""The families that come with the library."""

from collections.abc import Mapping
from typing import Any, cast

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_armed.errors import ArgumentError
from pyro_armed.families.base import Family, _scale
from pyro_armed.families.distributions import (
    BetaMean,
    BinomialLogits,
    GammaMean,
    HalfStudentT,
    NegativeBinomialMean,
    OrderedNormal,
    PoissonLog,
)
from pyro_armed.families.links import UnitLink

__all__ = [
    "Bernoulli",
    "Beta",
    "Binomial",
    "Categorical",
    "Gamma",
    "Gaussian",
    "NegativeBinomial",
    "Ordinal",
    "Poisson",
    "StudentT",
]

_UNIT_LINKS = ("logit", "probit", "cloglog")


class Gaussian(Family):
    """Normal noise with standard deviation ``sigma``.

    Examples
    --------
    >>> Gaussian().log_prob(torch.tensor([0.0]), torch.tensor([0.0]), sigma=torch.tensor(1.0))
    tensor([-0.9189])
    """

    name = "gaussian"
    links = ("identity", "log")
    response = "real"
    auxiliaries = ("sigma",)

    def auxiliary_priors(self, scale: Any, levels: int | None = None) -> dict[str, dist.TorchDistribution]:
        """Return sigma ~ HalfStudentT(4, scale)."""
        return {"sigma": HalfStudentT(4.0, _scale(scale))}

    def distribution(self, mu: Tensor, *, sigma: Tensor) -> dist.TorchDistribution:  # type: ignore[override]
        """Return the normal distribution."""
        return dist.Normal(mu, sigma)


class StudentT(Family):
    """Noise with heavy tails: scale ``sigma`` and ``nu`` degrees of freedom.

    The mean that it reports is the centre, also where the tails are too heavy for a mean to exist.

    Examples
    --------
    >>> StudentT().mean(torch.tensor([3.0]), sigma=torch.tensor(1.0), nu=torch.tensor(0.5))
    tensor([3.])
    """

    name = "student_t"
    links = ("identity", "log")
    response = "real"
    auxiliaries = ("sigma", "nu")

    def auxiliary_priors(self, scale: Any, levels: int | None = None) -> dict[str, dist.TorchDistribution]:
        """Return sigma ~ HalfStudentT(4, scale) and nu ~ Gamma(2, 0.1)."""
        spread = _scale(scale)
        one = torch.ones_like(spread)
        return {"sigma": HalfStudentT(4.0, spread), "nu": dist.Gamma(2.0 * one, 0.1 * one)}

    def distribution(  # type: ignore[override]
        self, mu: Tensor, *, sigma: Tensor, nu: Tensor
    ) -> dist.TorchDistribution:
        """Return the Student t distribution."""
        return dist.StudentT(nu, mu, sigma)

    def mean(self, eta: Tensor, trials: Tensor | None = None, **aux: Tensor) -> Tensor:
        """Return the centre, shape (..., N)."""
        return self.link.inverse(eta)


class _UnitFamily(Family):
    """A family with its mean, or that of one trial, in (0, 1)."""

    @property
    def _unit_link(self) -> UnitLink:
        return cast(UnitLink, self.link)

    def mean(self, eta: Tensor, trials: Tensor | None = None, **aux: Tensor) -> Tensor:
        """Return the probability of a success, or the mean proportion, shape (..., N)."""
        return self.link.inverse(eta)


class Bernoulli(_UnitFamily):
    """One of two outcomes; the mean is the probability of the second.

    Examples
    --------
    >>> Bernoulli().mean(torch.tensor([0.0]))
    tensor([0.5000])
    """

    name = "bernoulli"
    links = _UNIT_LINKS
    response = "binary"

    def distribution(self, mu: Tensor) -> dist.TorchDistribution:  # type: ignore[override]
        """Return the Bernoulli distribution with probability `mu`."""
        return dist.Bernoulli(probs=mu)

    def from_predictor(
        self, eta: Tensor, trials: Tensor | None = None, **aux: Tensor
    ) -> dist.TorchDistribution:
        """Return the Bernoulli distribution, from log odds."""
        return dist.Bernoulli(logits=self._unit_link.logits(eta))


class Binomial(_UnitFamily):
    """Successes among known numbers of trials; the mean is the probability of a success in one trial.

    Examples
    --------
    >>> family = Binomial()
    >>> family.mean(torch.tensor([0.0]), trials=torch.tensor([10.0]))
    tensor([0.5000])
    >>> family.from_predictor(torch.tensor([0.0]), trials=torch.tensor([10.0])).mean
    tensor([5.])
    """

    name = "binomial"
    links = _UNIT_LINKS
    response = "binomial"

    def distribution(self, mu: Tensor, *, trials: Tensor) -> dist.TorchDistribution:  # type: ignore[override]
        """Return the binomial distribution with probability `mu`."""
        return BinomialLogits(torch.logit(mu), trials.to(mu.dtype))

    def from_predictor(
        self, eta: Tensor, trials: Tensor | None = None, **aux: Tensor
    ) -> dist.TorchDistribution:
        """Return the binomial distribution of the number of successes, from log odds.

        Raises
        ------
        ArgumentError
            Without `trials`.
        """
        if trials is None:
            raise ArgumentError("family 'binomial' needs trials: give trials=, one number for each row")
        return BinomialLogits(self._unit_link.logits(eta), torch.as_tensor(trials).to(eta))


class Categorical(Family):
    """One of K unordered levels, with K - 1 predictors: log odds of each level against the first.

    Examples
    --------
    >>> Categorical().mean(torch.zeros(1, 3))
    tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
    """

    name = "categorical"
    links = ("softmax",)
    response = "categorical"

    def n_predictors(self, levels: int | None = None) -> int:
        """Return ``levels - 1``.

        Raises
        ------
        ArgumentError
            When there are fewer than two levels.
        """
        return _check_levels(self, levels) - 1

    def distribution(self, mu: Tensor) -> dist.TorchDistribution:  # type: ignore[override]
        """Return the categorical distribution with probabilities `mu`, shape (..., N, K)."""
        return dist.Categorical(probs=mu)

    def from_predictor(
        self, eta: Tensor, trials: Tensor | None = None, **aux: Tensor
    ) -> dist.TorchDistribution:
        """Return the categorical distribution for predictors of shape (..., N, K - 1)."""
        return dist.Categorical(logits=self.link.log_inverse(eta))

    def mean(self, eta: Tensor, trials: Tensor | None = None, **aux: Tensor) -> Tensor:
        """Return the probability of each level, shape (..., N, K)."""
        return self.link.inverse(eta)


class Ordinal(Family):
    """One of K ordered levels, by a latent variable between K - 1 increasing ``threshold`` values.

    ``P(y <= k) = F(threshold_k - eta)`` with F the inverse link. The thresholds take the place of an
    intercept. They have shape (K - 1,), or (..., 1, K - 1) next to a predictor of shape (..., N).

    Examples
    --------
    >>> Ordinal().mean(torch.tensor([0.0]), threshold=torch.tensor([-1.0, 1.0]))
    tensor([[0.2689, 0.4621, 0.2689]])
    """

    name = "ordinal"
    links = _UNIT_LINKS
    response = "ordinal"
    auxiliaries = ("threshold",)

    def __init__(self, link: str | None = None) -> None:
        super().__init__(link)
        self.auxiliary_links: Mapping[str, str] = {}

    def auxiliary_priors(self, scale: Any, levels: int | None = None) -> dict[str, dist.TorchDistribution]:
        """Return threshold ~ K - 1 sorted Normal(0, 2.5) variables.

        Raises
        ------
        ArgumentError
            When there are fewer than two levels.
        """
        size = _check_levels(self, levels) - 1
        return {"threshold": OrderedNormal(2.5 * torch.ones_like(_scale(scale)), size)}

    def distribution(self, mu: Tensor, **aux: Tensor) -> dist.TorchDistribution:
        """Return the categorical distribution with probabilities `mu`, shape (..., N, K)."""
        return dist.Categorical(probs=mu)

    def from_predictor(
        self, eta: Tensor, trials: Tensor | None = None, **aux: Tensor
    ) -> dist.TorchDistribution:
        """Return the distribution of the levels' codes."""
        return dist.Categorical(logits=self._log_probabilities(eta, aux["threshold"]))

    def mean(self, eta: Tensor, trials: Tensor | None = None, **aux: Tensor) -> Tensor:
        """Return the probability of each level, shape (..., N, K)."""
        return self._log_probabilities(eta, aux["threshold"]).exp()

    def _log_probabilities(self, eta: Tensor, threshold: Tensor) -> Tensor:
        link = cast(UnitLink, self.link)
        cuts = threshold - eta.unsqueeze(-1)
        first, last = link.log_inverse(cuts[..., :1]), link.log_complement(cuts[..., -1:])
        return torch.cat([first, link.log_interval(cuts[..., :-1], cuts[..., 1:]), last], dim=-1)


class Poisson(Family):
    """Counts with variance equal to their mean.

    Examples
    --------
    >>> Poisson().mean(torch.tensor([0.0]))
    tensor([1.])
    """

    name = "poisson"
    links = ("log",)
    response = "count"

    def distribution(self, mu: Tensor) -> dist.TorchDistribution:  # type: ignore[override]
        """Return the Poisson distribution."""
        return PoissonLog(mu.log())

    def from_predictor(
        self, eta: Tensor, trials: Tensor | None = None, **aux: Tensor
    ) -> dist.TorchDistribution:
        """Return the Poisson distribution, from the logarithm of its mean."""
        return PoissonLog(self.link.log_inverse(eta))


class NegativeBinomial(Family):
    """Counts with variance ``mu + mu**2 / alpha``.

    Examples
    --------
    >>> NegativeBinomial().from_predictor(torch.tensor([0.0]), alpha=torch.tensor(2.0)).variance
    tensor([1.5000])
    """

    name = "negative_binomial"
    links = ("log",)
    response = "count"
    auxiliaries = ("alpha",)

    def distribution(self, mu: Tensor, *, alpha: Tensor) -> dist.TorchDistribution:  # type: ignore[override]
        """Return the negative binomial distribution."""
        return NegativeBinomialMean(mu.log(), alpha)

    def from_predictor(
        self, eta: Tensor, trials: Tensor | None = None, **aux: Tensor
    ) -> dist.TorchDistribution:
        """Return the negative binomial distribution, from the logarithm of its mean."""
        return NegativeBinomialMean(self.link.log_inverse(eta), aux["alpha"])


class Gamma(Family):
    """Positive responses with variance ``mu**2 / alpha``.

    With the inverse link a predictor has to be positive. Where it is not, the mean is held at the largest
    that the precision allows, and nothing pulls the predictor back: prefer the log link with networks.

    Examples
    --------
    >>> Gamma("inverse").mean(torch.tensor([4.0]), alpha=torch.tensor(1.0))
    tensor([0.2500])
    """

    name = "gamma"
    links = ("log", "inverse")
    response = "positive"
    auxiliaries = ("alpha",)

    def distribution(self, mu: Tensor, *, alpha: Tensor) -> dist.TorchDistribution:  # type: ignore[override]
        """Return the gamma distribution."""
        return GammaMean(mu.log(), alpha)

    def from_predictor(
        self, eta: Tensor, trials: Tensor | None = None, **aux: Tensor
    ) -> dist.TorchDistribution:
        """Return the gamma distribution, from the logarithm of its mean."""
        return GammaMean(self.link.log_inverse(eta), aux["alpha"])


class Beta(_UnitFamily):
    """Proportions strictly between 0 and 1, with variance ``mu (1 - mu) / (1 + kappa)``.

    Examples
    --------
    >>> Beta().from_predictor(torch.tensor([0.0]), kappa=torch.tensor(4.0)).variance
    tensor([0.0500])
    """

    name = "beta"
    links = _UNIT_LINKS
    response = "unit"
    auxiliaries = ("kappa",)

    def auxiliary_priors(self, scale: Any, levels: int | None = None) -> dict[str, dist.TorchDistribution]:
        """Return kappa ~ HalfCauchy(10)."""
        return {"kappa": dist.HalfCauchy(10.0 * torch.ones_like(_scale(scale)))}

    def distribution(self, mu: Tensor, *, kappa: Tensor) -> dist.TorchDistribution:  # type: ignore[override]
        """Return the beta distribution."""
        return BetaMean(mu.log(), torch.log1p(-mu), kappa)

    def from_predictor(
        self, eta: Tensor, trials: Tensor | None = None, **aux: Tensor
    ) -> dist.TorchDistribution:
        """Return the beta distribution, from the logarithms of its mean and of the rest."""
        link = self._unit_link
        return BetaMean(link.log_inverse(eta), link.log_complement(eta), aux["kappa"])


def _check_levels(family: Family, levels: int | None) -> int:
    if levels is None or levels < 2:
        raise ArgumentError(f"family {family.name!r} needs levels=, an integer of at least 2, not {levels!r}")
    return levels
