"""From evaluated columns to the terms and effect blocks of a specification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pyro_armed.errors import DataError, FormulaError
from pyro_armed.formula import GroupTerm
from pyro_armed.spec import EffectBlock, Term, feature_term
from pyro_armed.terms import CommonTerms

__all__ = [
    "Moments",
    "formula_block",
    "linear_terms",
    "moments_of",
    "network_terms",
    "refuse_repeated",
    "standardised",
]

Labels = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Moments:
    """What a specification needs to know of a term's columns.

    Attributes
    ----------
    center, scale : numpy.ndarray, shape (K,)
        Means and sds.
    constant : numpy.ndarray, shape (K,)
        Columns that have the same value in every row but for rounding.
    zero : numpy.ndarray, shape (K,)
        Those of them that are zero.
    plain : numpy.ndarray, shape (K,)
        Columns of zeros and ones.
    """

    center: np.ndarray
    scale: np.ndarray
    constant: np.ndarray
    zero: np.ndarray
    plain: np.ndarray

    def checked(self, name: str) -> Moments:
        """Raise where an sd cannot be computed.

        Parameters
        ----------
        name : str
            The term, for the message.

        Returns
        -------
        Moments

        Raises
        ------
        DataError
            For numbers that are too large.
        """
        if not (np.isfinite(self.center).all() and np.isfinite(self.scale).all()):
            raise DataError(
                f"The predictor '{name}' has numbers too large for their sd to be computed; rescale it."
            )
        return self


Columns = Mapping[str, np.ndarray | Moments]


def moments_of(name: str, columns: np.ndarray | Moments, weights: np.ndarray | None) -> Moments:
    """Moments of columns, or those that a pass over the rows has found."""
    if isinstance(columns, Moments):
        return columns.checked(name)
    with np.errstate(over="ignore", invalid="ignore"):
        center = np.average(columns, axis=0, weights=weights)
        scale = np.sqrt(np.average((columns - center) ** 2, axis=0, weights=weights))
        constant = np.asarray(scale <= 1e-12 * np.abs(columns).max(axis=0, initial=0.0))
    plain = np.asarray(np.isin(columns, (0.0, 1.0)).all(axis=0))
    return Moments(center, scale, constant, np.asarray(constant & (columns[0] == 0)), plain).checked(name)


def _useless(found: Moments, intercept: bool) -> np.ndarray:
    """Columns that are an intercept by another name, or nothing at all.

    Zero columns beside others stay: an interaction of factors has one for each combination without rows.
    """
    return (found.constant & ~found.zero & intercept) | (found.zero & found.zero.all())


def linear_terms(
    values: Columns,
    labels: Labels,
    centered: bool,
    weights: np.ndarray | None = None,
    skip: bool = False,
) -> tuple[Term, ...]:
    """Terms of a linear predictor.

    Parameters
    ----------
    values : mapping of str to numpy.ndarray, shape (N, K), or Moments
        Columns of each term, or what is known of them.
    labels : mapping of str to tuple of str
        Their labels; empty for scalar terms.
    centered : bool
        Whether an intercept (or thresholds) takes up the columns' means.
    weights : numpy.ndarray, shape (N,), optional
        Row weights: a row of weight 2 counts twice in means and sds too.
    skip : bool
        Whether to leave out terms with constant columns, which a network takes, rather than refuse them.

    Returns
    -------
    tuple of Term

    Raises
    ------
    DataError
        For constant columns beside an intercept.
    """
    terms = []
    for name, columns in values.items():
        found = moments_of(name, columns, weights)
        useless = _useless(found, centered)
        if useless.any():
            if skip:
                continue
            label = f"{name}[{labels[name][int(useless.argmax())]}]" if labels[name] else name
            raise DataError(
                f"The predictor '{label}' has the same value in every row; leave it out of the formula."
            )
        scale = np.where(found.constant, 1.0, found.scale)
        center = found.center if centered else np.zeros_like(found.center)
        terms.append(Term(name, tuple(center.tolist()), tuple(scale.tolist()), labels[name]))
    return tuple(terms)


def network_terms(
    values: Columns, labels: Labels, standardize: bool = True, weights: np.ndarray | None = None
) -> tuple[Term, ...]:
    """Inputs of a network: numbers are standardised, 0/1 columns stay (a rare dummy would become huge).

    Parameters
    ----------
    values : mapping of str to numpy.ndarray, shape (N, K), or Moments
        Columns of each term, or what is known of them.
    labels : mapping of str to tuple of str
        Their labels; empty for scalar terms.
    standardize : bool
        Whether anything is done at all.
    weights : numpy.ndarray, shape (N,), optional
        Row weights: a row of weight 2 counts twice in means and sds too.

    Returns
    -------
    tuple of Term
    """
    terms = []
    for name, columns in values.items():
        found = moments_of(name, columns, weights)
        plain = found.plain | (not standardize)
        center = np.where(plain, 0.0, found.center)
        scale = np.where(plain | found.constant, 1.0, found.scale)
        terms.append(Term(name, tuple(center.tolist()), tuple(scale.tolist()), labels[name]))
    return tuple(terms)


def effect_terms(
    intercept: bool, values: Columns, labels: Labels, features: bool, weights: np.ndarray | None = None
) -> tuple[Term, ...]:
    """Terms of an effect block: raw columns, features last.

    Parameters
    ----------
    intercept : bool
        Whether groups have an intercept.
    values : mapping of str to numpy.ndarray, shape (N, K), or Moments
        Columns of each slope, or what is known of them.
    labels : mapping of str to tuple of str
        Their labels; empty for scalar slopes.
    features : bool
        Whether the network's hidden activations have slopes.
    weights : numpy.ndarray, shape (N,), optional
        Row weights: a row of weight 2 counts twice in means and sds too.

    Returns
    -------
    tuple of Term

    Raises
    ------
    DataError
        For a slope on a column that is constant beside an intercept, or zero.
    """
    terms = [Term("1", (0.0,), (1.0,))] if intercept else []
    for name, columns in values.items():
        found = moments_of(name, columns, weights)
        useless = _useless(found, intercept)
        if useless.any():
            raise DataError(
                f"The group-specific slope on '{name}' has the same value in every row; leave it out."
            )
        scale = np.where(found.constant, 1.0, found.scale)
        terms.append(Term(name, (0.0,) * len(scale), tuple(scale.tolist()), labels[name]))
    return (*terms, feature_term(0)) if features else tuple(terms)


def formula_block(
    parameter: str,
    term: GroupTerm,
    effects: CommonTerms,
    values: Columns,
    weights: np.ndarray | None = None,
) -> EffectBlock:
    """The effect block of one pair of bars.

    Parameters
    ----------
    parameter : str
        Whose predictor the effects enter.
    term : GroupTerm
        The bars.
    effects : CommonTerms
        Its evaluated left side.
    values : mapping of str to numpy.ndarray, shape (N, K)
        Training columns of ``effects``.
    weights : numpy.ndarray, shape (N,), optional
        Row weights: a row of weight 2 counts twice in means and sds too.

    Returns
    -------
    EffectBlock

    Raises
    ------
    FormulaError
        Where nothing varies between the groups.
    """
    terms = effect_terms(effects.intercept, values, effects.labels, term.features, weights)
    group = ":".join(term.group)
    if not terms:
        raise FormulaError(f"The term (0 | {group}) has no effects; write (1 | {group}).")
    correlated = term.correlated and not term.features and sum(t.size for t in terms) > 1
    return EffectBlock(group, terms, correlated, parameter)


def refuse_repeated(blocks: Sequence[EffectBlock]) -> None:
    """Raise if an effect of a group is there twice.

    Parameters
    ----------
    blocks : sequence of EffectBlock
        All blocks of a model.

    Raises
    ------
    FormulaError
        Naming the effect.
    """
    seen = set()
    for block in blocks:
        for term in block.terms:
            name = block.effect_name(term)
            if name in seen:
                raise FormulaError(f"The effect {name} stands twice in the formula; keep one of the terms.")
            seen.add(name)


def standardised(terms: Sequence[Term], values: Mapping[str, np.ndarray], n_rows: int) -> np.ndarray:
    """Columns of all terms, centred and scaled, shape (N, K)."""
    if not terms:
        return np.empty((n_rows, 0))
    with np.errstate(over="ignore"):
        columns = [(values[t.name] - np.array(t.center)) / np.array(t.scale) for t in terms]
    return np.concatenate(columns, axis=1)
