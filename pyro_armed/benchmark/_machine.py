"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version

import pandas as pd

from pyro_armed.compiled import compiler_found

__all__ = ["machine"]

PACKAGES = ("pyro_armed", "torch", "pyro-ppl", "numpy", "scipy", "arviz", "gpboost")


def machine() -> pd.DataFrame:
    """Processor, system, load and versions.

    Returns
    -------
    pandas.DataFrame
        Columns ``fact`` and ``value``, text both.

    Examples
    --------
    >>> machine().columns.to_list()
    ['fact', 'value']
    """
    facts = {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "threads used": "1",
        "load at the start": _load(),
        "system": f"{platform.system()} {platform.machine()}",
        "C++ compiler": _compiler(),
        "Python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }
    return pd.DataFrame({"fact": list(facts), "value": list(facts.values())})


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _load() -> str:
    try:
        return f"{os.getloadavg()[0]:.1f} processes"
    except (OSError, AttributeError):
        return "unknown"


def _compiler() -> str:
    if not compiler_found():
        return "none"
    named = os.environ.get("CXX")
    path = next(
        found for name in ([named] if named else ["g++", "clang++", "c++"]) if (found := shutil.which(name))
    )
    done = subprocess.run([path, "--version"], capture_output=True, text=True)
    return done.stdout.splitlines()[0] if done.returncode == 0 and done.stdout else path


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
