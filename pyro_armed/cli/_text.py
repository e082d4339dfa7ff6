"""Words on the terminal."""

from __future__ import annotations

import argparse
import sys
from typing import TextIO

import pandas as pd


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Examples keep their lines; options are wide enough for their names."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=100)


def say(text: str, file: TextIO | None = None) -> None:
    """Write a line to stdout, or elsewhere."""
    (file or sys.stdout).write(text + "\n")


def table_text(frame: pd.DataFrame, digits: int = 3) -> str:
    """A data frame as text, numbers with as many decimals.

    Parameters
    ----------
    frame : pandas.DataFrame
        Shown without its index.
    digits : int
        Decimals of floating-point numbers.

    Returns
    -------
    str
    """
    formats = {
        name: (lambda value: "" if pd.isna(value) else f"{value:.{digits}f}")
        for name in frame.columns
        if pd.api.types.is_float_dtype(frame[name])
    }
    shown = frame.copy()
    for name in frame.columns.difference(list(formats)):
        width = max(len(str(name)), *(len(str(value)) for value in frame[name]))
        shown[name] = [str(value).ljust(width) for value in frame[name]]
        shown = shown.rename(columns={name: str(name).ljust(width)})
    return shown.to_string(index=False, formatters=formats)
