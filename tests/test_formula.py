import pytest

from pyro_armed.errors import FormulaError
from pyro_armed.formula import GroupTerm, parse_formula, quote, split_outside, unquote, variables


@pytest.mark.parametrize(
    ("bars", "groups", "correlated"),
    [
        ("(1 | g)", [("g",)], True),
        ("(1 || g)", [("g",)], False),
        ("(1 | a/b)", [("a",), ("a", "b")], True),
        ("(1 | a/b/c)", [("a",), ("a", "b"), ("a", "b", "c")], True),
        ("(1 | a:b)", [("a", "b")], True),
        ("(1 | a:b/c)", [("a", "b"), ("a", "b", "c")], True),
        ("(1 | a + b)", [("a",), ("b",)], True),
        ("(1 | a:a)", [("a",)], True),
        ("(1 | `my site`)", [("my site",)], True),
        ("(1 | `site (old)`:`a:b`)", [("site (old)", "a:b")], True),
        ("(1|été)", [("été",)], True),
    ],
)
def test_grouping_factors(bars: str, groups: list[tuple[str, ...]], correlated: bool) -> None:
    terms = parse_formula(f"y ~ x + {bars}").group_terms
    assert [term.group for term in terms] == groups
    assert {term.correlated for term in terms} == {correlated}
    assert {term.effects for term in terms} == {"1"}


@pytest.mark.parametrize(
    ("text", "common", "features", "effects"),
    [
        ("y ~ x", "x", False, []),
        ("y ~ (1 | g)", "1", False, [("1", False)]),
        ("y ~ 0 + x - z + (0 + x | g)", "0 + x - z", False, [("0 + x", False)]),
        ("y ~ - 1 + x", "- 1 + x", False, []),
        ("y ~ features + x + (features | g)", "x", True, [("1", True)]),
        ("y ~ (0 + features + z | g)", "1", False, [("0 + z", True)]),
        ("y ~ I(a - b) + {a + b} + (1 | g)", "I(a - b) + {a + b}", False, [("1", False)]),
        ("y ~ `a + b | c` + (1 | g)", "`a + b | c`", False, [("1", False)]),
        ("y\n~\n x\n + (1\n| g)", "x", False, [("1", False)]),
    ],
)
def test_parts(text: str, common: str, features: bool, effects: list[tuple[str, bool]]) -> None:
    parsed = parse_formula(text)
    assert (parsed.response, parsed.common, parsed.features) == ("y", common, features)
    assert [(term.effects, term.features) for term in parsed.group_terms] == effects


def test_only_the_right_hand_side() -> None:
    parsed = parse_formula("x + (1 | g)")
    assert parsed.response is None
    assert parsed.group_terms == (GroupTerm("1", False, ("g",), True),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (3, "A formula is a string"),
        ("", "needs one '~'"),
        ("y ~ ", "needs one '~'"),
        (" ~ x", "needs one '~'"),
        ("y ~ x ~ z", "needs one '~'"),
        ("y ~ x + ", "no term after"),
        ("y ~ x - ", "no term after"),
        ("y ~ x + + z", "no term after"),
        ("y ~ (x", "bracket without its partner"),
        ("y ~ x)", "bracket without its partner"),
        ("y ~ (x]", "bracket without its partner"),
        ("y ~ `x", "quote or backtick without its partner"),
        ("y ~ f(x, 'a\"b')", "both kinds of quotes"),
        ("y ~ 1 | g", "stand in brackets"),
        ("y ~ (1 | g | h)", "needs one '|'"),
        ("y ~ (1 ||| g)", "needs one '|'"),
        ("y ~ ( | g)", "needs effects and a group"),
        ("y ~ (1 | )", "needs effects and a group"),
        ("y ~ x - (1 | g)", "subtracts the group-specific term"),
        ("y ~ x - features", "subtracts 'features'"),
        ("y ~ (1 - features | g)", "subtracts 'features'"),
        ("y ~ (1 | f(g))", "not a grouping factor"),
        ("y ~ (1 | a*b)", "not a grouping factor"),
        ("y ~ (1 | a:)", "not a grouping factor"),
        ("y ~ x**2", r"write I\(x\*\*2\)"),
        ("y ~ (1 + x ** 2 | g)", r"write I\(x \*\* 2\)"),
    ],
)
def test_what_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(FormulaError, match=message):
        parse_formula(text)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("1", set()),
        ("0 + x:z", {"x", "z"}),
        ("(a + b)**2", {"a", "b"}),
        ("np.log(`my col`) + {a - b}", {"my col", "a", "b"}),
        ("C(cat, Sum) + T(cat, ref='b')", {"cat"}),
        ("Sum + C(cat)", {"Sum", "cat"}),
        ("bs(x, df=4, knots=k)", {"x", "k"}),
        ("offset(log(n))", {"n"}),
    ],
)
def test_variables(text: str, names: set[str]) -> None:
    assert variables(text) == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("_x", "backticks"),
        ("x * ", "cannot be read"),
        ("x['a']", "is for responses"),
        ("10", "the number 10 stands where a column belongs"),
        ("x:2.5", "the number 2.5|cannot be read"),
        ("((1 | g))", "inside another term"),
        ("x*(1|g)", "cannot be read"),
        ("x + (z + (1 | g))", "cannot be read"),
    ],
)
def test_variables_of_what_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(FormulaError, match=message):
        variables(text)


@pytest.mark.parametrize("name", ["x", "été", "my col", "_x", "2x", "a.b", "True", "a+b", "x|g", "~"])
def test_quoted_names_are_read_as_one_column(name: str) -> None:
    assert variables(quote(name)) == {name}
    assert unquote(quote(name)) == name
    assert parse_formula(f"{quote(name)} ~ {quote(name)}").common == quote(name)


def test_split_outside() -> None:
    assert split_outside("a, f(b, c), 'd,e', `f,g`", ",") == ["a", " f(b, c)", " 'd,e'", " `f,g`"]
