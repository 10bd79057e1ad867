"""Options that commands share, and what all commands do alike."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
import typer.main
from typer.testing import CliRunner

from moesaic.cli import app
from moesaic.cli.bundles import Output, takes

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Fruit:
    """A bundle."""

    apples: Annotated[int, typer.Option(help="How many.")] = 3
    sort: Annotated[str, typer.Option(help="Which.")] = "red"


def run(*words: str) -> tuple[int, str]:
    """A small command line with one command that takes a bundle, and spells one of its options anew."""
    small = typer.Typer(rich_markup_mode=None)

    @small.command()
    @takes(fruit=Fruit, output=Output)
    def _eat(
        name: Annotated[str, typer.Argument()],
        fruit: Fruit,
        output: Output,
        sort: Annotated[int, typer.Option()] = 7,
    ) -> None:
        if name == "interrupt":
            raise KeyboardInterrupt
        output.print({"name": name, "apples": fruit.apples, "inner": fruit.sort, "sort": sort})

    result = CliRunner().invoke(small, words)
    return result.exit_code, result.output


def test_bundles_arrive_as_objects() -> None:
    """Options of a bundle can be given, and arrive under the bundle's name."""
    code, out = run("me", "--apples", "5", "--json")
    assert code == 0
    assert json.loads(out) == {"name": "me", "apples": 5, "inner": "red", "sort": 7}


def test_the_commands_own_spelling_wins() -> None:
    """An option that the command declares itself is not taken from the bundle."""
    code, out = run("me", "--sort", "9", "--json")
    assert code == 0
    assert json.loads(out)["sort"] == 9
    assert run("me", "--sort", "green")[0] == 2


def test_an_interruption_is_told() -> None:
    """Ctrl-C in a command that has nothing to go on from: exit code 130 and a word."""
    code, out = run("interrupt")
    assert code == 130
    assert "interrupted" in out


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_the_same_manners(command: str) -> None:
    """--json, -q and -v are there for all commands."""
    options = {name for param in COMMANDS[command].params for name in param.opts}
    assert {"--json", "--quiet", "-q", "--verbose", "-v"} <= options
