"""Response families, their links, and the preparation of responses.

>>> get("poisson")
Poisson(link='log')
"""

from pyro_armed.families.base import RESPONSES, Family
from pyro_armed.families.distributions import (
    BetaMean,
    BinomialLogits,
    GammaMean,
    HalfStudentT,
    NegativeBinomialMean,
    OrderedNormal,
    PoissonLog,
)
from pyro_armed.families.links import LINKS, Link, UnitLink, get_link
from pyro_armed.families.registry import FAMILIES, from_config, get
from pyro_armed.families.response import Response, prepare_response
from pyro_armed.families.standard import (
    Bernoulli,
    Beta,
    Binomial,
    Categorical,
    Gamma,
    Gaussian,
    NegativeBinomial,
    Ordinal,
    Poisson,
    StudentT,
)

__all__ = [
    "FAMILIES",
    "LINKS",
    "RESPONSES",
    "Bernoulli",
    "Beta",
    "BetaMean",
    "Binomial",
    "BinomialLogits",
    "Categorical",
    "Family",
    "Gamma",
    "GammaMean",
    "Gaussian",
    "HalfStudentT",
    "Link",
    "NegativeBinomial",
    "NegativeBinomialMean",
    "OrderedNormal",
    "Ordinal",
    "Poisson",
    "PoissonLog",
    "Response",
    "StudentT",
    "UnitLink",
    "from_config",
    "get",
    "get_link",
    "prepare_response",
]
