"""`docs/cli.md` is generated from the commands and has to stay so."""

from __future__ import annotations

from pathlib import Path

import typer.main
from docs.make_cli import page, parameters

from moesaic.cli import app

ROOT = Path(__file__).parents[2]


def test_page_is_up_to_date() -> None:
    """A changed command or option is not documented until somebody runs `make docs`; this says so."""
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == page(), "docs/cli.md is stale: run `make docs`"


def test_page_knows_every_option_of_the_real_command() -> None:
    """The page is built from signatures; the names it shows must be those that the built command accepts."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert [each.name for each in app.registered_commands] == list(commands)
    for each in app.registered_commands:
        shown = {name for known in parameters(each.callback) if not known.argument for name in known.names}
        built = {
            name
            for option in commands[each.name].params
            if option.param_type_name == "option"
            for name in (*option.opts, *option.secondary_opts)
        }
        assert shown == built - {"--help", "-h"}


def test_page_does_not_depend_on_the_terminal(monkeypatch) -> None:
    """The same page comes out in a narrow terminal, so that it can be compared on any machine."""
    whole = page()
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("TERMINAL_WIDTH", "20")
    assert page() == whole
