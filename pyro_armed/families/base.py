"""What a response family is, and how to write one."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_armed.errors import ArgumentError, DataError
from pyro_armed.families.links import Link, get_link

__all__ = ["RESPONSES", "Family"]

RESPONSES = ("real", "positive", "unit", "count", "binary", "binomial", "categorical", "ordinal")


class Family:
    """How a response is distributed around its predictor.

    To make your own, subclass it, name the links and the response, and write :meth:`distribution`. Then pass
    an instance as ``family``. A model that was saved with it has to be loaded with it.

    Attributes
    ----------
    name : str
        Name of the family.
    links : tuple of str
        Names of the links it allows; the first is the default.
    response : str
        Which values the response has: "real", "positive", "unit" (strictly between 0 and 1), "count",
        "binary", "binomial", "categorical" or "ordinal".
    auxiliaries : tuple of str
        Names of the parameters besides the mean. They reach :meth:`distribution` as keyword arguments, of a
        shape that broadcasts against the predictor: (), (..., 1), or (..., N) when modelled. An auxiliary
        that is a vector, as ordinal thresholds are, has its own dimension last: (T,) or (..., 1, T).
    auxiliary_links : dict of str to str
        The link of each auxiliary when it has a predictor of its own; "log" if not said. An auxiliary that is
        missing here cannot have one.
    link : Link
        The link in use.

    Parameters
    ----------
    link : str, optional
        Name of one of `links`.

    Raises
    ------
    ArgumentError
        When the family does not have that link.

    Examples
    --------
    Wind speeds are often Rayleigh distributed:

    >>> import math
    >>> class Rayleigh(Family):
    ...     name = "rayleigh"
    ...     links = ("log",)
    ...     response = "positive"
    ...
    ...     def distribution(self, mu):
    ...         return dist.Weibull(mu * 2.0 / math.sqrt(math.pi), 2.0)
    >>> family = Rayleigh()
    >>> family.log_prob(torch.tensor([1.0, 3.0]), torch.zeros(2))
    tensor([-0.3338, -5.5184])
    >>> family.mean(torch.zeros(2))
    tensor([1., 1.])
    """

    name: ClassVar[str]
    links: ClassVar[tuple[str, ...]]
    response: ClassVar[str]
    auxiliaries: ClassVar[tuple[str, ...]] = ()
    auxiliary_links: Mapping[str, str] = {}

    def __init__(self, link: str | None = None) -> None:
        missing = [field for field in ("name", "links", "response") if not getattr(self, field, None)]
        if missing:
            raise ArgumentError(
                f"family class {type(self).__name__} has no {' and no '.join(missing)}: "
                "set them in the class body"
            )
        if self.response not in RESPONSES:
            raise ArgumentError(
                f"family {self.name!r} has response={self.response!r}: use one of {', '.join(RESPONSES)}"
            )
        if link is not None and link not in self.links:
            raise ArgumentError(
                f"family {self.name!r} has no link {link!r}: use one of {', '.join(map(repr, self.links))}"
            )
        self.link: Link = get_link(link or self.links[0])
        self.auxiliary_links = dict.fromkeys(self.auxiliaries, "log") | dict(type(self).auxiliary_links)

    @property
    def identity_scale(self) -> bool:
        """Whether the predictor is on the scale of the response, so that priors have to follow its spread."""
        return self.response == "real" and self.link.name == "identity"

    def n_predictors(self, levels: int | None = None) -> int:
        """Return the number R of predictors per row: 1, or for a categorical response its levels less one."""
        return 1

    def auxiliary_priors(self, scale: Any, levels: int | None = None) -> dict[str, dist.TorchDistribution]:
        """Return the default prior of each auxiliary parameter.

        Parameters
        ----------
        scale : float or Tensor
            Spread of the response. A 0-d tensor decides the dtype and device of the priors as well.
        levels : int, optional
            Number of levels of an ordinal response.

        Returns
        -------
        dict
            Half-Cauchy with scale 1 for each, unless the family says otherwise.
        """
        one = torch.ones_like(_scale(scale))
        return {name: dist.HalfCauchy(one) for name in self.auxiliaries}

    def distribution(self, mu: Tensor, **aux: Tensor) -> dist.TorchDistribution:
        """Return the distribution of responses with mean `mu`, shape (..., N); a family's own part."""
        raise NotImplementedError(f"family {self.name!r} has to define distribution(self, mu, **auxiliaries)")

    def from_predictor(
        self, eta: Tensor, trials: Tensor | None = None, **aux: Tensor
    ) -> dist.TorchDistribution:
        """Return the distribution of the responses.

        Parameters
        ----------
        eta : Tensor
            Linear predictor, shape (..., N), or (..., N, R) for a categorical response.
        trials : Tensor, optional
            Numbers of trials of a binomial response, shape (N,).
        **aux : Tensor
            Auxiliary parameters.

        Returns
        -------
        TorchDistribution
            Batch shape (..., N), event shape ().
        """
        return self.distribution(self.link.inverse(eta), **aux)

    def mean(self, eta: Tensor, trials: Tensor | None = None, **aux: Tensor) -> Tensor:
        """Return the expected response, shape (..., N).

        It is the probability of the second level for a binary response, of a success in one trial for a
        binomial one, and of each level, shape (..., N, K), for a categorical or ordinal one.
        """
        return self.from_predictor(eta, trials, **aux).mean

    def log_prob(self, y: Tensor, eta: Tensor, trials: Tensor | None = None, **aux: Tensor) -> Tensor:
        """Return the log density of each response, shape (..., N).

        Parameters
        ----------
        y : Tensor
            Responses, shape (N,): numbers, or codes from 0 for binary, categorical and ordinal ones.
        eta, trials, **aux
            As for :meth:`from_predictor`.
        """
        return self.from_predictor(eta, trials, **aux).log_prob(y.to(eta.dtype))

    def start(self, y: Any, trials: Any = None) -> float:
        """Return the link of the mean response, always finite: the centre of the intercept's prior.

        It is 0 where there is more than one predictor, or thresholds instead of an intercept.

        Raises
        ------
        DataError
            When there are no responses.
        """
        values = np.asarray(y, dtype=np.float64)
        if not values.size:
            raise DataError("the response has no rows: give at least one")
        if self.link.domain == "simplex" or self.response == "ordinal":
            return 0.0
        total = float(values.sum())
        count = float(values.size) if trials is None else float(np.asarray(trials, dtype=np.float64).sum())
        mean = total / count
        if self.link.domain == "unit":
            # Half a success and half a failure more keep an all-or-nothing response finite.
            mean = (total + 0.5) / (count + 1.0)
        elif self.link.domain == "positive":
            floor = 0.5 / count if self.response == "count" else 1e-6
            mean = max(mean, 1e-3 * float(np.abs(values).mean()), floor)
        return float(self.link.link(torch.tensor(mean, dtype=torch.float64)))

    def latent_variance(self) -> float | None:
        """Return the residual variance on the latent scale, for intraclass correlations, or None.

        Binary, binomial and ordinal responses have one: pi**2 / 3 for logit, 1 for probit and pi**2 / 6
        for cloglog.
        """
        return self.link.latent_variance if self.response in ("binary", "binomial", "ordinal") else None

    def config(self) -> dict[str, str]:
        """Return what :func:`from_config` needs to make the family again; JSON can hold it.

        Examples
        --------
        >>> from pyro_armed.families import Bernoulli
        >>> Bernoulli("probit").config()
        {'name': 'bernoulli', 'link': 'probit'}
        """
        return {"name": self.name, "link": self.link.name}

    def __repr__(self) -> str:
        return f"{type(self).__name__}(link={self.link.name!r})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.link is getattr(other, "link", None)

    def __hash__(self) -> int:
        return hash((type(self), self.link.name))


def _scale(scale: Any) -> Tensor:
    """Scale as a floating tensor."""
    tensor = torch.as_tensor(scale)
    return tensor if tensor.is_floating_point() else tensor.to(torch.get_default_dtype())
