"""The command line as a whole: help, version, exit codes, what goes to standard output and what to standard error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import moesaic
from tests.processes import call_cli

COMMANDS = ("compress", "evaluate", "generate", "verify", "score", "allocate", "inspect", "plan", "doctor")
SCRIPT = Path(sys.executable).with_name("moesaic")


def test_help_is_instant() -> None:
    """`moesaic --help` takes less than a second of processor time and does not import torch."""
    before = os.times()
    done = subprocess.run([SCRIPT, "--help"], capture_output=True, text=True, check=True)
    after = os.times()
    assert after.children_user + after.children_system - before.children_user - before.children_system < 1
    for command in COMMANDS:
        assert command in done.stdout
    command = [sys.executable, "-X", "importtime", "-m", "moesaic", "--help"]
    traced = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in traced.stderr.splitlines()}
    assert "moesaic.cli.compress" in imported
    assert not imported & {"torch", "transformers", "numpy", "safetensors"}


def test_version_of_the_installed_command() -> None:
    """`moesaic --version` prints name and version."""
    done = subprocess.run([SCRIPT, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"moesaic {moesaic.__version__}\n"
    assert done.stderr == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    """`moesaic COMMAND -h` says what the command is for, on standard output."""
    result = call_cli(command, "-h")
    assert result.code == 0
    assert f"{command} [OPTIONS]" in result.out
    assert result.err == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("compresss",),
        ("--nonesuch",),
        ("compress",),
        ("compress", "MODEL"),
        ("compress", "MODEL", "-o", "OUT", "--bits", "many"),
        ("compress", "MODEL", "-o", "OUT", "--threads", "0", "--bits", "2"),
        ("compress", "MODEL", "-o", "OUT", "--shard-size", "0", "--bits", "2"),
        ("compress", "MODEL", "-o", "OUT", "--levels", "a,b", "--bits", "2"),
        ("evaluate", "OUT"),
        ("evaluate", "OUT", "--text", "FILE", "--window", "1"),
        ("generate", "OUT", "--prompt", "a", "--max-new-tokens", "0"),
        ("generate", "OUT", "--prompt", "a", "--temperature", "-1"),
    ],
)
def test_a_wrong_call(arguments: tuple[str, ...]) -> None:
    """Wrong calls get exit code 2 and a word on standard error, at once, before any model is looked for."""
    result = call_cli(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert result.err
    assert "Traceback" not in result.err


def test_no_command_prints_the_help() -> None:
    """`moesaic` alone shows what there is."""
    result = call_cli()
    assert "compress" in result.out + result.err
    assert "Traceback" not in result.err


def test_an_error_of_the_installed_command(tmp_path: Path) -> None:
    """A failure is one line on standard error, exit code 1, nothing on standard output."""
    command = [SCRIPT, "verify", tmp_path / "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {tmp_path / 'nowhere'}: ")
    assert done.stderr.count("\n") == 1
