"""``pyro-armed benchmark``: what steps and fits cost on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd

from pyro_armed import benchmark
from pyro_armed.cli._tables import write_table
from pyro_armed.cli._text import HelpFormatter, say, table_text
from pyro_armed.errors import DataError
from pyro_armed.files import write_whole
from pyro_armed.plots import new_figure

__all__ = ["add_benchmark"]

EXAMPLE = """\
example:
  pyro-armed benchmark --only steps restarts --out benchmarks

Every figure is a ratio within the run, of processor time on one thread: the median over interleaved
rounds, with the quartiles. The folder gets benchmark.csv, machine.csv, and a picture of each benchmark.
"""
SHOWN = ["quantity", "case", "size", "ratio", "low", "high", "to", "target", "met", "note"]


def add_benchmark(commands: Any) -> None:
    """Add ``benchmark`` to the parser."""
    parser = commands.add_parser(
        "benchmark",
        help="measure steps and fits against the bare network, Pyro, lme4 and others",
        description="Measure steps and fits against the bare network, Pyro, lme4 and others.",
        epilog=EXAMPLE,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="benchmarks to run; all if left out")
    parser.add_argument("--list", action="store_true", help="say which benchmarks there are, and stop")
    parser.add_argument(
        "--out", type=Path, default=Path("armed-benchmark"), metavar="DIR", help="folder (%(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds: a try, no figures")
    parser.add_argument("--seed", type=int, default=0, help="seed of data and fits (%(default)s)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=_benchmark)


def _benchmark(options: argparse.Namespace) -> None:
    if options.list:
        say(table_text(benchmark.describe()))
        return
    names, folder = benchmark.check_names(options.only), options.out
    if folder.exists() and not folder.is_dir():
        raise DataError(f"'{folder}' is a file; name a folder with --out.")
    new_figure()  # without Matplotlib this ends before any work is done
    machine = benchmark.machine()
    say("\n".join(f"{fact}: {value}" for fact, value in machine.itertuples(index=False)))
    frames = []
    for frame in benchmark.run(names, quick=options.quick, seed=options.seed, progressbar=not options.quiet):
        frames.append(frame)
        say(f"\n{frame['benchmark'].iloc[0]}\n{table_text(_shown(frame))}")
    _write(folder, machine, frames)
    say(f"\nTable, machine and pictures: {folder}")


def _shown(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns that have something to say."""
    text = frame[SHOWN].assign(size=frame["size"].map(lambda size: "" if pd.isna(size) else f"{size:,.0f}"))
    return text[[name for name in SHOWN if not text[name].isin(["", None]).all()]]


def _write(folder: Path, machine: pd.DataFrame, frames: list[pd.DataFrame]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for frame in frames:
        figure = benchmark.draw(frame)
        picture = folder / f"{frame['benchmark'].iloc[0]}.png"
        write_whole(picture, lambda draft, figure=figure: figure.savefig(draft, dpi=150))  # type: ignore[misc]
    write_table(folder / "machine.csv", machine)
    write_table(folder / "benchmark.csv", pd.concat(frames, ignore_index=True))
