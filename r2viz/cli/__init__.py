"""The command line: parse, call, show. Data goes to stdout, progress and notices to stderr.

One file per command. Exit codes: 0 done, 1 failed, 2 usage, 3 done but some inputs were bad (`--strict` makes it 1),
130 interrupted. torch and matplotlib are imported inside the commands that need them, so that `r2viz --help` answers
at once.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from typing import Any, NoReturn

import click

from r2viz.cli import app, cam, coverage, erf, methods, models, plot, report, rf, splits, tables, train, weights
from r2viz.cli.codes import DONE, FAILED, INTERRUPTED, USAGE
from r2viz.errors import BadTarget, R2VizError, UnknownName
from r2viz.version import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, package_name="r2viz")
def cli() -> None:
    """See and test what Res2Net looks at that ResNet does not."""


for room in (cam, plot, methods, coverage, rf, erf, splits, models, weights, tables, report, train, app):
    cli.add_command(room.command)


def _plain_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    print(f"r2viz: {message}", file=sys.stderr)


def main() -> NoReturn:
    """The console script."""
    warnings.showwarning = _plain_warning
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A file's name need not be text, nor a terminal know every letter: neither may stop the run.
            stream.reconfigure(errors="backslashreplace")
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Exit as signal:
        code = signal.exit_code
    except click.ClickException as error:
        error.show()
        code = USAGE if isinstance(error, click.UsageError) else error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("r2viz: interrupted; finished results are whole and stay", err=True)
        code = INTERRUPTED
    except R2VizError as error:
        click.echo(f"r2viz: {error}", err=True)
        code = USAGE if isinstance(error, (UnknownName, BadTarget)) else FAILED
    except BrokenPipeError:
        # Whoever read our output has gone; there is nothing left to say, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = FAILED
    sys.exit(code if isinstance(code, int) else DONE)
