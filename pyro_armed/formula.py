"""Reading mixed-model formulas.

Group-specific terms ``(effects | group)`` and ``(effects || group)`` are split off here; everything else
is read by `formulae`. The split is textual because `formulae` forgets which effects stood in the same
bars (and so which ones are correlated) and does not know ``||``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from formulae import model_description
from formulae.categorical import ENCODINGS

from pyro_armed.errors import FormulaError

__all__ = ["GroupTerm", "ParsedFormula", "parse_formula", "variables"]

FEATURES = "features"
_OPENING, _CLOSING = "([{", ")]}"
_POWER = re.compile(r"([\w.]+|`[^`]+`)\s*\*\*\s*\d+")
_PLAIN_NAME = re.compile(r"[^\W\d_][\w]*")


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
    sides = split_outside(text, "~")
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
            features = _added(sign, text) or features
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
    >>> sorted(variables("x + np.log(z) + C(livch, Sum)"))
    ['livch', 'x', 'z']
    """
    names: set[str] = set()
    for component in components(text):
        names |= _call_variables(component.call) if hasattr(component, "call") else {component.name}
    return names


def components(text: str) -> list[Any]:
    """The variables and calls that a formula of common terms is made of, as `formulae` reads them.

    Parameters
    ----------
    text : str
        Such as ``"1 + x + np.log(z)"``.

    Returns
    -------
    list
        Of `formulae`'s ``Variable`` and ``Call``.

    Raises
    ------
    FormulaError
        Where `formulae` cannot read the text, or finds group-specific terms in it.
    """
    return [part for term in describe_terms(text) for part in getattr(term, "components", ())]


def describe_terms(text: str) -> list[Any]:
    """The common terms of a formula as `formulae` reads them, not yet evaluated.

    Parameters
    ----------
    text : str
        Such as ``"1 + x + np.log(z)"``.

    Returns
    -------
    list
        Of `formulae`'s ``Intercept`` and ``Term``.

    Raises
    ------
    FormulaError
        Where `formulae` cannot read the text, or finds group-specific terms in it.
    """
    try:
        description = model_description(text)
    except Exception as error:  # formulae raises its own and whatever a half-read formula leads to
        reason = str(error).strip(" .")
        if isinstance(error, AttributeError) and "callee" in reason:  # a known fault of formulae
            raise FormulaError(
                f"The formula part {text!r} calls a function twice, once on the result of another function "
                "and once not, which formulae cannot compare; compute one of the columns in the data."
            ) from error
        hint = " Put unusual column names in backticks, such as `my column`." * ("character" in reason)
        raise FormulaError(f"The formula part {text!r} cannot be read: {reason}.{hint}") from error
    if description.group_terms:
        raise FormulaError(
            f"In {text!r}, a group-specific term is inside another term; write '+ (1 + x | group)' by itself."
        )
    for component in (part for term in description.common_terms for part in getattr(term, "components", ())):
        if not isinstance(component.name, str):
            raise FormulaError(
                f"In {text!r}, the number {component.name} stands where a column belongs; put "
                "names in backticks."
            )
        if getattr(component, "reference", None) is not None:
            raise FormulaError(
                f"In {text!r}, {component.name}[...] is for responses; use I({component.name} == ...)."
            )
    return list(description.common_terms)


def lazy_calls(call: Any) -> Iterator[Any]:
    """A function call of a formula and those among its arguments.

    Parameters
    ----------
    call : object
        The ``call`` of one of `formulae`'s ``Call``.

    Yields
    ------
    object
        `formulae`'s ``LazyCall``.
    """
    if hasattr(call, "callee"):
        yield call
    for argument in [*getattr(call, "args", ()), *getattr(call, "kwargs", {}).values()]:
        yield from lazy_calls(argument)


def unquote(name: str) -> str:
    """A column name without the backticks that protect spaces."""
    name = name.strip()
    return name[1:-1] if len(name) > 1 and name[0] == name[-1] == "`" else name


def quote(name: str) -> str:
    """A column name as a formula needs it: in backticks unless it is a plain identifier."""
    return name if _PLAIN_NAME.fullmatch(name) and name not in ("True", "False", "None") else f"`{name}`"


def split_outside(text: str, separators: str) -> list[str]:
    """Split at separators that stand outside brackets, quotes and backticks.

    Parameters
    ----------
    text : str
        Part of a formula.
    separators : str
        Characters to split at.

    Returns
    -------
    list of str

    Raises
    ------
    FormulaError
        For brackets or quotes without their partner.
    """
    parts, open_brackets, quoted, start = [], "", "", 0
    for i, char in enumerate(text):
        if quoted:
            if quoted != "`" and char in "'\"" and char != quoted:
                raise FormulaError(
                    f"The formula {text!r} has a text with both kinds of quotes; use one kind."
                )
            quoted = "" if char == quoted else quoted
        elif char in "'\"`":
            quoted = char
        elif char in _OPENING:
            open_brackets += char
        elif char in _CLOSING:
            if not open_brackets or _OPENING.index(open_brackets[-1]) != _CLOSING.index(char):
                raise FormulaError(f"The formula {text!r} has a bracket without its partner.")
            open_brackets = open_brackets[:-1]
        elif not open_brackets and char in separators:
            parts.append(text[start:i])
            start = i + 1
    if open_brackets or quoted:
        what = "quote or backtick" if quoted else "bracket"
        raise FormulaError(f"The formula {text!r} has a {what} without its partner.")
    return [*parts, text[start:]]


def _call_variables(call: Any) -> set[str]:
    """Columns inside a call; the contrasts of ``C(x, Sum)`` are none."""
    if hasattr(call, "name") and not hasattr(call, "callee"):
        return {call.name}
    arguments = [*getattr(call, "args", ()), *getattr(call, "kwargs", {}).values()]
    if getattr(call, "callee", "") == "C":
        arguments = [a for a in arguments if getattr(a, "name", "") not in ENCODINGS]
    return set().union(*(_call_variables(argument) for argument in arguments))


def _signed_terms(side: str, formula: str) -> list[tuple[str, str]]:
    terms: list[tuple[str, str]] = []
    position = 0
    sign = "+"
    for part in split_outside(side, "+-"):
        term = part.strip()
        position += len(part)
        if power := _POWER.fullmatch(term):
            raise FormulaError(
                f"In {formula!r}, {term} means {power[1]} itself; write I({term}) for the power."
            )
        if term:
            terms.append((sign, term))
        elif position > 0 and (terms or sign == "-"):
            raise FormulaError(f"The formula {formula!r} has a '+' or '-' with no term after it.")
        sign = side[position] if position < len(side) else "+"
        position += 1
    if side.rstrip().endswith(("+", "-")):
        raise FormulaError(f"The formula {formula!r} ends in '+' or '-'.")
    return terms


def _added(sign: str, formula: str) -> bool:
    if sign == "-":
        raise FormulaError(f"The formula {formula!r} subtracts 'features'; leave it out.")
    return True


def _has_bar(term: str) -> bool:
    if len(split_outside(term, "|")) > 1:
        raise FormulaError(f"Group-specific effects stand in brackets: write '({term})'.")
    return term.startswith("(") and term.endswith(")") and len(split_outside(term[1:-1], "|")) > 1


def _group_terms(term: str, formula: str) -> list[GroupTerm]:
    parts = split_outside(term[1:-1], "|")
    correlated = len(parts) == 2
    if not correlated and (len(parts) != 3 or parts[1].strip()):
        raise FormulaError(
            f"In {formula!r}, the term {term} needs one '|' (correlated) or '||' (independent)."
        )
    left, right = parts[0].strip(), parts[-1].strip()
    if not left or not right:
        raise FormulaError(f"In {formula!r}, the term {term} needs effects and a group: '(1 + x | group)'.")
    signed = _signed_terms(left, formula)
    kept = [(s, t) for s, t in signed if t != FEATURES]
    features = bool([_added(s, formula) for s, t in signed if t == FEATURES])
    effects = " ".join(f"{s} {t}" for s, t in kept).removeprefix("+ ").strip() or "1"
    return [GroupTerm(effects, features, group, correlated) for group in _factors(right, formula)]


def _factors(text: str, formula: str) -> list[tuple[str, ...]]:
    """Expand ``a/b`` to a and a:b; ``a + b`` in the bars to two factors, as Bambi does."""
    factors: list[tuple[str, ...]] = []
    for part in split_outside(text, "+"):
        levels = [
            [_column(name, text, formula) for name in split_outside(level, ":")]
            for level in split_outside(part, "/")
        ]
        for depth in range(len(levels)):
            factor = tuple(dict.fromkeys(name for level in levels[: depth + 1] for name in level))
            if factor not in factors:
                factors.append(factor)
    return factors


def _column(text: str, factor: str, formula: str) -> str:
    """One column of a grouping factor."""
    name = unquote(text)
    if not name or (name == text.strip() and not re.fullmatch(r"[^()\[\]{}|~`'\",*\-]+", name)):
        raise FormulaError(
            f"In {formula!r}, {factor!r} is not a grouping factor: use a column, 'a:b' or 'a/b'. "
            "Make a column for anything computed."
        )
    return name
