"""The command ``pyro-armed``: models of CSV and Parquet files, and a demonstration."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence

from pyro_armed.cli._commands import add_evaluate, add_fit, add_predict
from pyro_armed.cli._demo import add_demo
from pyro_armed.cli._reproduce import add_reproduce
from pyro_armed.cli._text import HelpFormatter, say
from pyro_armed.errors import ArmedError

__all__ = ["main"]

DESCRIPTION = "Bayesian mixed-effects deep learning: any PyTorch network, clustered data, honest uncertainty."
EXAMPLE = """\
example:
  pyro-armed fit "use ~ age + urban + (1 | district)" women.csv --family bernoulli --out women.armed
  pyro-armed predict women.armed others.csv --new-groups marginal --out predicted.csv
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands.

    Returns
    -------
    argparse.ArgumentParser
    """
    parser = argparse.ArgumentParser(
        prog="pyro-armed", description=DESCRIPTION, epilog=EXAMPLE, formatter_class=HelpFormatter
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (add_demo, add_fit, add_predict, add_evaluate, add_reproduce):
        add(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Parameters
    ----------
    arguments : sequence of str, optional
        Command line; None: that of the process.

    Returns
    -------
    int
        0; 2 after an error of the user's, told on stderr in one sentence; 130 where the user interrupted.

    Examples
    --------
    >>> main(["predict", "nothing.armed", "rows.csv", "--out", "out.csv"])
    2
    """
    options = build_parser().parse_args(arguments)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"\s*ArviZ is undergoing a major refactor")
        warnings.showwarning = _show_warning
        try:
            options.run(options)
        except (ArmedError, OSError) as error:
            say(f"pyro-armed: error: {' '.join(str(error).split())}", sys.stderr)
            return 2
        except KeyboardInterrupt:
            say("pyro-armed: interrupted; nothing was written.", sys.stderr)
            return 130
    return 0


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    """One line without the source that issued it."""
    say(f"pyro-armed: warning: {' '.join(str(message).split())}", sys.stderr)
