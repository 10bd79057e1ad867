"""The command line: one file per command, each parse -> one library call -> print.

Heavy imports are inside the commands, so that `--help` is instant.
"""

from __future__ import annotations

import logging
import sys

import typer

from moesaic.cli import (
    allocate,
    calibrate,
    compress,
    doctor,
    evaluate,
    generate,
    inspect,
    plan,
    prune,
    report,
    score,
    verify,
)
from moesaic.cli.help import WIDTH, Command, Commands
from moesaic.errors import MoesaicError

app = typer.Typer(
    name="moesaic",
    help="Mixture-of-Experts models with a bit-width of its own for every expert.",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDTH},
)
app.command("compress", cls=Command)(compress.command)
app.command("prune", cls=Command)(prune.command)
app.command("evaluate", cls=Command)(evaluate.command)
app.command("generate", cls=Command)(generate.command)
app.command("verify", cls=Command)(verify.command)
app.command("score", cls=Command)(score.command)
app.command("calibrate", cls=Command)(calibrate.command)
app.command("allocate", cls=Command)(allocate.command)
app.command("inspect", cls=Command)(inspect.command)
app.command("plan", cls=Command)(plan.command)
app.command("report", cls=Command)(report.command)
app.command("doctor", cls=Command)(doctor.command)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and leave.")) -> None:
    if version:
        import moesaic

        print(f"moesaic {moesaic.__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line. Exit code 2 for a wrong call, 1 for a failure, 130 for an interruption."""
    try:
        app(prog_name="moesaic")
    except KeyboardInterrupt:
        fail("interrupted", 130)
    except MoesaicError as error:
        if logging.getLogger("moesaic").isEnabledFor(logging.DEBUG):
            raise
        fail(str(error), error.exit_code)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        fail(f"{where}{error.strerror or error}", 1)


def fail(message: str, code: int) -> None:
    """Print one line on standard error and leave."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
