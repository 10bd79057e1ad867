"""Run functions and the command line in processes of their own, which tests may kill, interrupt and starve.

The processes are forked from a server that has torch and transformers loaded, so that one costs little. Where no
process is needed, `call_cli` runs the command line in this one.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "moesaic.cli",
        "moesaic.pipeline",
        "moesaic.evaluate.run",
        "transformers.generation",
        "transformers.models.mixtral.modeling_mixtral",
        "tests.processes",
    ]
)
PATIENCE = 120  # seconds until a process counts as hung


@dataclass(frozen=True)
class Result:
    """What a finished process left: exit code (minus the signal that ended it), standard output and error."""

    code: int
    out: str
    err: str


class Running:
    """A process that is on its way."""

    def __init__(
        self, function: Callable[..., None], *args: Any, file_bytes: int | None = None, terminal: str | None = None
    ) -> None:
        """Start it.

        Args:
            function: of a module that can be imported.
            args: its arguments.
            file_bytes: the largest file that the process may write.
            terminal: path of a terminal for standard error.
        """
        self._folder = tempfile.TemporaryDirectory()
        self._out = Path(self._folder.name) / "out"
        self._err = Path(self._folder.name) / "err"
        paths = (str(self._out), terminal or str(self._err))
        self._process = _CONTEXT.Process(target=_child, args=(function, args, paths, file_bytes))
        self._process.start()

    @property
    def alive(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.is_alive()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Until the condition holds; a process that ends before is an error."""
        start = time.monotonic()
        while not condition():
            assert self.alive, "the process ended early: " + self.finish().err
            assert time.monotonic() - start < PATIENCE, "the process hangs"
            time.sleep(0.001)

    def finish(self) -> Result:
        """Wait for its end."""
        self._process.join(PATIENCE)
        assert not self.alive, "the process hangs"
        out, err = (path.read_text() if path.exists() else "" for path in (self._out, self._err))
        self._folder.cleanup()
        return Result(int(self._process.exitcode or 0), out, err)


def start_cli(*argv: object, **how: Any) -> Running:
    """Start `moesaic ARGV…` in a process of its own."""
    return Running(_cli, *map(str, argv), **how)


def run_cli(*argv: object, **how: Any) -> Result:
    """Run `moesaic ARGV…` in a process of its own to its end."""
    return start_cli(*argv, **how).finish()


def call_cli(*argv: object) -> Result:
    """Run `moesaic ARGV…` in this process; an exception that gets out is code 1 and a traceback, as it would be."""
    before, sys.argv = sys.argv, ["moesaic", *map(str, argv)]
    code = 0
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            _main()
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        except Exception:
            traceback.print_exc()
            code = 1
        finally:
            sys.argv = before
    return Result(code, out.getvalue(), err.getvalue())


def run(function: Callable[..., None], *args: Any) -> Result:
    """Run a function in a process of its own to its end."""
    return Running(function, *args).finish()


def _cli(*argv: str) -> None:
    sys.argv = ["moesaic", *argv]
    _main()


def _main() -> None:
    from moesaic.cli import main  # noqa: PLC0415

    main()


def _child(
    function: Callable[..., None], args: tuple[Any, ...], paths: tuple[str, str], file_bytes: int | None
) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    for number, path in zip((1, 2), paths, strict=True):
        file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(file, number)
        os.close(file)
    if file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    function(*args)
