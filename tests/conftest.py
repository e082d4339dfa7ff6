"""What every test gets: one thread, fixed seeds, validation on, and a check that no global state is left."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "Agg"

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from hypothesis import settings

settings.register_profile("pyro_armed", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("pyro_armed")

# Test modules about what ArviZ sees: they run with ArviZ 1.x as well (-m arviz1).
ARVIZ1_MODULES = {
    "test_armed",
    "test_cli",
    "test_conformal",
    "test_diagnostics",
    "test_docs",
    "test_export",
    "test_guard",
    "test_new_groups",
    "test_new_groups_adapt",
    "test_plots",
    "test_predict",
    "test_sampling",
    "test_summary",
    "test_diagnostics_groups",
    "test_diagnostics_predictive_variance",
    "test_cross_validation",
    "test_updating",
    "test_adversary_choice",
    "test_diagnostics_adversary",
    "test_diagnostics_confounding",
    "test_diagnostics_importance",
    "test_diagnostics_leakage",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in ARVIZ1_MODULES:
            item.add_marker(pytest.mark.arviz1)


def rng_state() -> tuple[Any, ...]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - the legacy global state is what must not move
    return torch.get_rng_state().tolist(), kind, np.asarray(keys).tolist(), tuple(rest), random.getstate()


def process_state() -> dict[str, Any]:
    """Process-wide settings that a library has no business to change."""
    return {
        "pyro.settings": pyro.settings.get(),
        "torch.get_default_dtype": torch.get_default_dtype(),
        "torch.get_num_threads": torch.get_num_threads(),
        "torch.is_grad_enabled": torch.is_grad_enabled(),
        "torch.are_deterministic_algorithms_enabled": torch.are_deterministic_algorithms_enabled(),
    }


@pytest.fixture(autouse=True)
def clean_process(request: pytest.FixtureRequest) -> Iterator[None]:
    """Seed, clear, validate; put everything back; fail if the test has left something behind."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    outer_settings = pyro.settings.get()
    left = set(pyro.get_param_store().keys())  # by an import or a fixture of wider scope
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng(), pyro.validation_enabled(True):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        before = process_state()
        yield
        after = process_state()
        left |= set(pyro.get_param_store().keys())
    pyro.clear_param_store()
    pyro.settings.set(**outer_settings)
    torch.set_default_dtype(dtype)
    np.random.set_state(numpy_state)  # noqa: NPY002
    random.setstate(python_state)
    torch.set_num_threads(threads)
    changed = [name for name in before if before[name] != after[name]]
    if changed:
        pytest.fail(f"The test has left changed: {', '.join(changed)}.")
    if left and request.node.get_closest_marker("global_params") is None:
        pytest.fail(
            f"Pyro's global parameter store holds {sorted(left)}; pyro_armed must not use it. A test that "
            "uses it on purpose (plain pyro.infer.SVI on model.module) carries @pytest.mark.global_params."
        )


@pytest.fixture(autouse=True)
def no_open_figures() -> Iterator[None]:
    """Close figures, without importing Matplotlib into tests that do not plot."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture
def unmoved_rng() -> Callable[[], AbstractContextManager[None]]:
    """``with unmoved_rng(): ...`` fails if the block moves a global random state (torch, NumPy, random)."""

    @contextmanager
    def check() -> Iterator[None]:
        before = rng_state()
        yield
        after = rng_state()
        names = ("torch", "numpy", "numpy", "numpy", "random")
        moved = sorted({name for name, a, b in zip(names, before, after, strict=True) if a != b})
        if moved:
            pytest.fail(f"The global random state has moved: {', '.join(moved)}.")

    return check
