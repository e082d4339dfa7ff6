"""README, docstrings and tutorials are executed; docstrings match what they document."""

import doctest
import importlib
import inspect
import io
import pkgutil
import re
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import pyro_armed

ROOT = Path(__file__).resolve().parents[1]
TUTORIALS = sorted((ROOT / "tutorials").glob("*.py"))
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
MODULES = [
    "pyro_armed",
    *(
        info.name
        for info in pkgutil.walk_packages(pyro_armed.__path__, prefix="pyro_armed.")
        if not info.name.endswith("__main__")
    ),
]


def code_blocks(text: str, language: str) -> list[tuple[int, str]]:
    """Fenced blocks of a Markdown text with the line of their first code line."""
    pattern = re.compile(rf"^```{language}[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [(text[: match.start(1)].count("\n"), match.group(1)) for match in pattern.finditer(text)]


def run_blocks(text: str, name: str) -> int:
    """Execute a text's Python blocks in one namespace; tracebacks show the text's lines."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    blocks = code_blocks(text, "python")
    for lines_before, block in blocks:
        exec(compile("\n" * lines_before + block, name, "exec"), namespace)  # noqa: S102 - the README's own code
    return len(blocks)


def run_doctests(module: object) -> tuple[doctest.TestResults, str]:
    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    out = io.StringIO()
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        runner.run(test, out=out.write)
    return runner.summarize(verbose=False), out.getvalue()


def test_readme_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = ROOT / "README.md"
    monkeypatch.chdir(tmp_path)
    assert run_blocks(readme.read_text(encoding="utf-8"), str(readme)) >= 1, "README.md has no Python block."


def test_readme_commands() -> None:
    blocks = code_blocks((ROOT / "README.md").read_text(encoding="utf-8"), "bash")
    commands = [line for _, block in blocks for line in block.splitlines() if line.strip()]
    assert len(commands) >= 2
    demo, tests = commands[:2]
    assert "-c constraints.txt" in demo, "Without the constraints an install may take gigabytes."
    assert demo.endswith("pyro-armed demo")
    assert "pytest" in tests


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    results, report = run_doctests(importlib.import_module(name))
    assert results.failed == 0, report


def test_tutorials_are_listed() -> None:
    text = (ROOT / "tutorials" / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in TUTORIALS if path.name not in text] == []


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorials_are_percent_scripts(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# %% [markdown]", "A tutorial begins with a text cell."
    assert "# %%" in lines, "A tutorial has code cells."


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorials_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [path.name])
    runpy.run_path(str(path), run_name="__main__")


def test_the_runners_see_faults() -> None:
    assert code_blocks("a\n```python\nx = 1\n```\n```bash\nls\n```\n", "python") == [(2, "x = 1\n")]
    with pytest.raises(ZeroDivisionError):
        run_blocks("```python\nx = 0\n```\ntext\n```python\n1 / x\n```\n", "README")

    module = type(sys)("wrong", ">>> 1 + 1\n3\n")
    assert run_doctests(module)[0].failed == 1
    assert "Expected" in run_doctests(module)[1]
    assert inspect.getdoc(pyro_armed), "pyro_armed/__init__.py has no docstring."


# --- what docstrings say -----------------------------------------------------------------------------------


def is_own(obj: Any) -> bool:
    return getattr(obj, "__module__", "").split(".")[0] == "pyro_armed"


def public_names(module: ModuleType) -> list[str]:
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return list(listed)
    return [
        name
        for name, obj in vars(module).items()
        if name[0] != "_" and getattr(obj, "__module__", None) == module.__name__
    ]


def documented_objects() -> dict[str, tuple[Any, type | None]]:
    """Public functions, classes and methods of the package, with the class of a method."""
    found: dict[str, tuple[Any, type | None]] = {}
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        for name in public_names(module):
            obj = getattr(module, name)
            if not is_own(obj) or not (inspect.isclass(obj) or inspect.isroutine(obj)):
                continue
            label = f"{obj.__module__}.{obj.__qualname__}"
            found[label] = obj, None
            if inspect.isclass(obj):
                for method_name, method in vars(obj).items():
                    if method_name[0] != "_" and callable(getattr(obj, method_name)):
                        found[f"{label}.{method_name}"] = getattr(method, "__func__", method), obj
    return found


def documented_parameters(doc: str) -> list[str] | None:
    """Names in the numpydoc section "Parameters", or None without one."""
    match = re.search(
        r"^Parameters\n-{3,}\n(.*?)(?=^\S[^\n]*\n-{3,}\n|\Z)", doc + "\n", re.MULTILINE | re.DOTALL
    )
    if match is None:
        return None
    heads = re.findall(r"^(\*{0,2}\w[^:\n]*?)(?:\s*:.*)?$", match.group(1), re.MULTILINE)
    return [name.strip().lstrip("*") for head in heads for name in head.split(",")]


def signature_parameters(obj: Any) -> list[str]:
    parameters = list(inspect.signature(inspect.unwrap(obj)).parameters)
    return [name for name in parameters if name not in ("self", "cls") and name[0] != "_"]


def docstring_faults(label: str, obj: Any, owner: type | None) -> list[str]:
    doc = inspect.cleandoc(obj.__doc__) if obj.__doc__ else ""
    name = label.rsplit(".", 1)[-1]
    overrides = owner is not None and any(name in vars(base) for base in owner.__mro__[1:])
    if not doc:
        return [] if overrides else [f"{label} has no docstring."]
    if inspect.isclass(obj) and issubclass(obj, (Exception, Warning)):
        return []
    try:
        actual = signature_parameters(obj)
    except (TypeError, ValueError):
        return []
    documented = documented_parameters(doc)
    if documented is None and inspect.isclass(obj) and "__init__" in vars(obj) and obj.__init__.__doc__:
        documented = documented_parameters(inspect.cleandoc(obj.__init__.__doc__))
    if documented is None:
        # A sentence is enough for a method that overrides another, or a class made only inside the library.
        required = bool(actual) and not overrides and is_top_level(obj, owner)
        return [f'{label} has no section "Parameters" for {actual}.'] if required else []
    # Groups of related parameters may stand together in another order.
    if sorted(documented) != sorted(actual):
        return [f"{label} documents {documented}, its signature has {actual}."]
    return []


def is_top_level(obj: Any, owner: type | None) -> bool:
    api = [getattr(pyro_armed, name) for name in pyro_armed.__all__]
    return (owner or obj) in [member for member in api if not inspect.ismodule(member)]


def test_public_objects_are_documented() -> None:
    objects = documented_objects()
    assert "pyro_armed.errors.ArgumentError" in objects
    faults = [
        fault for label, (obj, owner) in objects.items() for fault in docstring_faults(label, obj, owner)
    ]
    assert not faults, "\n".join(faults)


def test_public_api_has_examples() -> None:
    api = [(name, getattr(pyro_armed, name)) for name in pyro_armed.__all__]
    callables = [(name, obj) for name, obj in api if inspect.isroutine(obj) or inspect.isclass(obj)]
    faults = [
        f"pyro_armed.{name} has no example (>>>) in its docstring."
        for name, obj in callables
        if not (inspect.isclass(obj) and issubclass(obj, (Exception, Warning)))
        and ">>>" not in (obj.__doc__ or "")
    ]
    assert not faults, "\n".join(faults)


def test_docstring_check_sees_faults() -> None:
    def good(x: int, y: int, *args: int) -> None:
        """Do it.

        Parameters
        ----------
        x, y : int
            Numbers: two of them.
        *args
            More.

        Returns
        -------
        None
        """

    def renamed(x: int) -> None:
        """Do it.

        Parameters
        ----------
        z : int
            A number.
        """

    def bare(x: int) -> None:
        pass

    assert docstring_faults("good", good, None) == []
    assert docstring_faults("renamed", renamed, None) == ["renamed documents ['z'], its signature has ['x']."]
    assert docstring_faults("bare", bare, None) == ["bare has no docstring."]


def test_names_in_all_exist_and_modules_have_docstrings() -> None:
    faults = []
    for name in MODULES:
        module = importlib.import_module(name)
        faults += [f"{name} has no docstring."] if not module.__doc__ else []
        faults += [
            f"{name}.__all__ names {n!r}." for n in getattr(module, "__all__", []) if not hasattr(module, n)
        ]
    assert not faults, "\n".join(faults)
