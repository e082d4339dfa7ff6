"""Reading mixed-model formulas.

Group-specific terms ``(effects | group)`` and ``(effects || group)`` are split off here; everything else
is read by `formulae`. The split is textual because `formulae` forgets which effects stood in the same
bars (and so which ones are correlated) and does not know ``||``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from formulae import model_description

from pyro_armed.errors import FormulaError

__all__ = ["GroupTerm", "ParsedFormula", "parse_formula", "variables"]

FEATURES = "features"
_OPENING, _CLOSING = "([{", ")]}"


@dataclass(frozen=True)
class GroupTerm:
    """One pair of bars: ``(effects | group)``.

    Attributes
    ----------
    effects : str
        Left-hand side, a formula of common terms such as ``"1 + x"``, without ``features``.
    features : bool
        Whether the network's hidden activations are among the effects.
    group : tuple of str
        Columns whose combination is the grouping factor; ``("school", "class")`` for ``school:class``.
    correlated : bool
        ``|`` asks for correlated effects, ``||`` for independent ones.
    """

    effects: str
    features: bool
    group: tuple[str, ...]
    correlated: bool


@dataclass(frozen=True)
class ParsedFormula:
    """A formula's three parts.

    Attributes
    ----------
    response : str or None
        Text left of ``~``.
    common : str
        Text of the common (fixed) effects.
    features : bool
        Whether ``features`` is one of the common effects.
    group_terms : tuple of GroupTerm
        Nested factors ``a/b`` are already expanded to ``a`` and ``a:b``.
    """

    response: str | None
    common: str
    features: bool
    group_terms: tuple[GroupTerm, ...]


def parse_formula(text: str) -> ParsedFormula:
    """Split a formula into response, common effects and group-specific terms.

    Parameters
    ----------
    text : str
        For example ``"y ~ x + (1 + x | school/class)"``.

    Returns
    -------
    ParsedFormula

    Raises
    ------
    FormulaError
        Where the text cannot be read; the message quotes the part at fault.

    Examples
    --------
    >>> parse_formula("y ~ x + (1 + x || g)").group_terms
    (GroupTerm(effects='1 + x', features=False, group=('g',), correlated=False),)
    """
    if not isinstance(text, str):
        raise FormulaError(f"A formula is a string such as 'y ~ x + (1 | group)', not {type(text).__name__}.")
    sides = _split(text, "~")
    if len(sides) > 2 or not sides[-1].strip() or (len(sides) == 2 and not sides[0].strip()):
        raise FormulaError(
            f"The formula {text!r} needs one '~' with something on each side: 'y ~ x + (1 | g)'."
        )
    response = sides[0].strip() if len(sides) == 2 else None
    common: list[str] = []
    groups: list[GroupTerm] = []
    features = False
    for sign, term in _signed_terms(sides[-1], text):
        if _has_bar(term):
            if sign == "-":
                raise FormulaError(
                    f"The formula {text!r} subtracts the group-specific term {term}; leave it out."
                )
            groups.extend(_group_terms(term, text))
        elif term == FEATURES:
            features = True
        else:
            common.append(f"{sign} {term}")
    rest = " ".join(common).removeprefix("+ ").strip() or "1"
    return ParsedFormula(response, rest, features, tuple(groups))


def variables(text: str) -> set[str]:
    """Names of the columns that a formula of common terms uses.

    Parameters
    ----------
    text : str
        Such as ``"1 + x + np.log(z)"``.

    Returns
    -------
    set of str

    Raises
    ------
    FormulaError
        Where `formulae` cannot read the text.

    Examples
    --------
    >>> sorted(variables("x + np.log(z)"))
    ['x', 'z']
    """
    try:
        return {name for name in model_description(text).var_names if name}
    except FormulaError:
        raise
    except Exception as error:
        raise FormulaError(f"The formula part {text!r} cannot be read: {error}") from error


def unquote(name: str) -> str:
    """A column name without the backticks that protect spaces."""
    name = name.strip()
    return name[1:-1] if len(name) > 1 and name[0] == name[-1] == "`" else name


def quote(name: str) -> str:
    """A column name as a formula needs it: in backticks unless it is a plain identifier."""
    return name if name.isidentifier() and name.isascii() else f"`{name}`"


def _split(text: str, separators: str) -> list[str]:
    """Split at separators that stand outside brackets, quotes and backticks."""
    parts, depth, quoted, start = [], 0, "", 0
    for i, char in enumerate(text):
        if quoted:
            quoted = "" if char == quoted else quoted
        elif char in "'\"`":
            quoted = char
        elif char in _OPENING:
            depth += 1
        elif char in _CLOSING:
            depth -= 1
            if depth < 0:
                break
        elif depth == 0 and char in separators:
            parts.append(text[start:i])
            start = i + 1
    if depth != 0 or quoted:
        what = "quote or backtick" if quoted else "bracket"
        raise FormulaError(f"The formula {text!r} has a {what} without its partner.")
    return [*parts, text[start:]]


def _signed_terms(side: str, formula: str) -> list[tuple[str, str]]:
    terms: list[tuple[str, str]] = []
    position = 0
    sign = "+"
    for part in _split(side, "+-"):
        term = part.strip()
        position += len(part)
        if term:
            terms.append((sign, term))
        elif position > 0 and (terms or sign == "-"):
            raise FormulaError(f"The formula {formula!r} has a '+' or '-' with no term after it.")
        sign = side[position] if position < len(side) else "+"
        position += 1
    if side.rstrip().endswith(("+", "-")):
        raise FormulaError(f"The formula {formula!r} ends in '+' or '-'.")
    return terms


def _has_bar(term: str) -> bool:
    if len(_split(term, "|")) > 1:
        raise FormulaError(f"Group-specific effects stand in brackets: write '({term})'.")
    return term.startswith("(") and term.endswith(")") and len(_split(term[1:-1], "|")) > 1


def _group_terms(term: str, formula: str) -> list[GroupTerm]:
    parts = _split(term[1:-1], "|")
    correlated = len(parts) == 2
    if not correlated and (len(parts) != 3 or parts[1].strip()):
        raise FormulaError(
            f"In {formula!r}, the term {term} needs one '|' (correlated) or '||' (independent)."
        )
    left, right = parts[0].strip(), parts[-1].strip()
    if not left or not right:
        raise FormulaError(f"In {formula!r}, the term {term} needs effects and a group: '(1 + x | group)'.")
    kept = [(s, t) for s, t in _signed_terms(left, formula) if t != FEATURES]
    features = len(kept) < len(_signed_terms(left, formula))
    effects = " ".join(f"{s} {t}" for s, t in kept).removeprefix("+ ").strip() or "1"
    return [GroupTerm(effects, features, group, correlated) for group in _factors(right, formula)]


def _factors(text: str, formula: str) -> list[tuple[str, ...]]:
    """Expand ``a/b`` to a and a:b; ``a + b`` in the bars to two factors, as lme4 and brms do not but Bambi does."""
    factors: list[tuple[str, ...]] = []
    for part in _split(text, "+"):
        levels = [tuple(unquote(name) for name in _split(level, ":")) for level in _split(part, "/")]
        for depth in range(len(levels)):
            factor = tuple(name for level in levels[: depth + 1] for name in level)
            if not all(name and re.fullmatch(r"[^()|~`]+", name) for name in factor):
                raise FormulaError(
                    f"In {formula!r}, {text!r} is not a grouping factor: use a column, 'a:b' or 'a/b'. "
                    "Make a column for anything computed."
                )
            if factor not in factors:
                factors.append(factor)
    return factors
