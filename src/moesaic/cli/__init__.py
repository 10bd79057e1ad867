"""The command line: one file per command, each parse -> one library call -> print.

Heavy imports are inside the commands, so that `--help` is instant.
"""

from __future__ import annotations

import sys

import typer

from moesaic.cli import allocate, compress, evaluate, generate, prune, score, verify
from moesaic.errors import MoesaicError

app = typer.Typer(
    name="moesaic",
    help="Mixture-of-Experts models with a bit-width of its own for every expert.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("compress")(compress.command)
app.command("prune")(prune.command)
app.command("evaluate")(evaluate.command)
app.command("generate")(generate.command)
app.command("verify")(verify.command)
app.command("score")(score.command)
app.command("allocate")(allocate.command)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and leave.")) -> None:
    if version:
        import moesaic

        print(f"moesaic {moesaic.__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line. Exit code 2 for a wrong call, 1 for a failure, 130 for an interruption."""
    try:
        app()
    except MoesaicError as error:
        fail(str(error), error.exit_code)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        fail(f"{where}{error.strerror or error}", 1)


def fail(message: str, code: int) -> None:
    """Print one line on standard error and leave."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
