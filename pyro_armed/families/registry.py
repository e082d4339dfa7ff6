"""Families by name."""

from collections.abc import Mapping

from pyro_armed.errors import ArgumentError
from pyro_armed.families.base import Family
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

__all__ = ["FAMILIES", "from_config", "get"]

FAMILIES: dict[str, type[Family]] = {
    family.name: family
    for family in (
        Gaussian,
        StudentT,
        Bernoulli,
        Binomial,
        Categorical,
        Ordinal,
        Poisson,
        NegativeBinomial,
        Gamma,
        Beta,
    )
}

_ALIASES = {
    "normal": "gaussian",
    "t": "student_t",
    "studentt": "student_t",
    "negativebinomial": "negative_binomial",
    "cumulative": "ordinal",
}


def get(family: str | Family | type[Family], link: str | None = None) -> Family:
    """Return a family by its name, from its class, or as it is.

    Parameters
    ----------
    family : str, Family or subclass of Family
        Names are those in ``FAMILIES``, and Bambi's "t", "negativebinomial" and "cumulative".
    link : str, optional
        Name of the link; the family's first if not given.

    Raises
    ------
    ArgumentError
        For a name or link that is not known, and when an instance has another link than `link`.

    Examples
    --------
    >>> get("bernoulli", link="probit")
    Bernoulli(link='probit')
    >>> get("t")
    StudentT(link='identity')
    """
    if isinstance(family, Family):
        if link is not None and link != family.link.name:
            raise ArgumentError(
                f"link={link!r} disagrees with family={family!r}: give the link to the family only"
            )
        return family
    if isinstance(family, type) and issubclass(family, Family):
        return family(link)
    if not isinstance(family, str):
        raise ArgumentError(f"family must be a name or a families.Family, not {type(family).__name__}")
    name = family.lower()
    name = _ALIASES.get(name, name)
    if name not in FAMILIES:
        raise ArgumentError(
            f"family {family!r} is not known: use one of {', '.join(FAMILIES)}, or pass a families.Family"
        )
    return FAMILIES[name](link)


def from_config(config: Mapping[str, str], family: Family | type[Family] | None = None) -> Family:
    """Make a family again from what :meth:`Family.config` returned.

    Parameters
    ----------
    config : mapping
        With "name" and "link".
    family : Family or subclass of Family, optional
        A family of the user's own, which no file can hold. It has to have the name and link of `config`.

    Raises
    ------
    ArgumentError
        When the family is not one of the library's and is not passed, or does not match.

    Examples
    --------
    >>> from_config({"name": "gamma", "link": "inverse"})
    Gamma(link='inverse')
    """
    name, link = config["name"], config["link"]
    if family is not None:
        own = get(family, link)
        if own.name != name:
            raise ArgumentError(f"family={own!r} is not {name!r}: pass the family of that name")
        return own
    if name not in FAMILIES:
        raise ArgumentError(f"family {name!r} is not one of the library's: pass the family itself as family=")
    return FAMILIES[name](link)
