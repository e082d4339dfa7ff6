"""Small, readable and diffable JSON: few significant digits, one line per parameter or list."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


def rounded(value: Any, digits: int = 6) -> Any:
    """``value`` with every float in it at ``digits`` significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item, digits) for item in value]
    return value


def _lines(value: Any, depth: int) -> str:
    flat = json.dumps(value, ensure_ascii=False)
    nested = isinstance(value, dict) and any(isinstance(item, dict | list) for item in value.values())
    if not isinstance(value, dict) or not value or not (nested or len(flat) > 300):
        return flat
    pad = " " * (depth + 1)
    body = ",\n".join(f"{pad}{json.dumps(key)}: {_lines(item, depth + 1)}" for key, item in value.items())
    return "{\n" + body + "\n" + " " * depth + "}"


def dump(value: dict[str, Any], path: Path) -> None:
    """Write ``value`` to ``path``; parameters keep six significant digits, effects four."""
    value = rounded(value, 9)
    for fit in value["fits"].values():
        fit["parameters"] = rounded(fit["parameters"])
        fit["effects"] = rounded(fit["effects"], 4)
    path.write_text(_lines(value, 0) + "\n", encoding="utf-8")
