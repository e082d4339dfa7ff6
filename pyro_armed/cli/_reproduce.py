"""The subcommand reproduce: the applications of the ARMED paper."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pyro_armed.cli._text import HelpFormatter, say
from pyro_armed.errors import ArgumentError

EXAMPLE = """\
example:
  pyro-armed reproduce --list
  pyro-armed reproduce spirals --out spirals

The table (NAME.csv: each seed or fold; NAME_summary.csv: mean and standard error over them), the pictures
and the full model's posterior (NAME.nc) are written to the folder.
"""


def add_reproduce(commands: Any) -> None:
    """Add ``reproduce`` to the parser."""
    parser = commands.add_parser(
        "reproduce",
        help="run an application of the ARMED paper with all baselines",
        description="Run an application of the ARMED paper with all baselines.",
        epilog=EXAMPLE,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="the application; --list shows all")
    parser.add_argument("--list", action="store_true", help="show the applications")
    parser.add_argument("--seeds", type=int, metavar="K", help="number of seeds or folds")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder (armed-NAME)")
    parser.add_argument("--quick", action="store_true", help="a size for tests: seconds")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.add_argument("--data", type=Path, nargs="+", default=[], metavar="PATH", help="your own data")
    parser.set_defaults(run=_reproduce)


def _reproduce(options: argparse.Namespace) -> None:
    from pyro_armed.reproduce import APPLICATIONS, find, run

    if options.list:
        width = max(map(len, APPLICATIONS))
        for name, one in APPLICATIONS.items():
            say(f"{name.ljust(width)}  {one.title}" + (f" (--data: {one.reads})" if one.reads else ""))
        return
    if options.name is None:
        raise ArgumentError("Name an application; pyro-armed reproduce --list shows all.")
    application = find(options.name)
    result = run(
        application,
        options.out or Path(f"armed-{application.name}"),
        seeds=options.seeds,
        quick=options.quick,
        data=options.data,
        progressbar=not options.quiet,
    )
    say(f"{application.title}\n\n{result}")
