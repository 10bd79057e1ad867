"""Help at once: plain text, grouped, in the width of the terminal.

typer's own help draws boxes with rich; loading that takes longer than everything else a help text needs, and the boxes
leave little room for words. `--help` is answered before other options are converted, which would load pydantic.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

WIDTH = 110  # wider lines are hard to read
_HELP = ("-h", "--help")
_NEEDED = "Needed"
_LAST = ("This run", "Output", "Options")


class Command(TyperCommand):
    """A command whose help is grouped by the panels of its options."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Usage, what it does, arguments, then the options by panel."""
        formatter.write_usage(ctx.command_path, " ".join(self.collect_usage_pieces(ctx)), prefix=_bold("Usage: "))
        self.format_help_text(ctx, formatter)
        _write_panels(self.get_params(ctx), ctx, formatter)
        self.format_epilog(ctx, formatter)


class Commands(TyperGroup):
    """The command line itself: its help lists the commands by panel."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Answer `--help`, of this or of a command, before anything else is looked at."""
        before = args[: args.index("--")] if "--" in args else args
        if any(word in _HELP for word in before):
            command: Any = self.get_command(ctx, args[0])
            if command is None and not args[0].startswith("-"):
                return list(super().parse_args(ctx, args))  # a wrong name, which has an answer of its own
            if command is not None:
                ctx = typer.Context(command, info_name=args[0], parent=ctx)
            typer.echo(ctx.get_help(), color=_coloured())
            ctx.exit()
        return list(super().parse_args(ctx, args))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """What there is."""
        formatter.write_usage(ctx.command_path, "COMMAND [OPTIONS]", prefix=_bold("Usage: "))
        self.format_help_text(ctx, formatter)
        panels: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            rows = panels.setdefault(getattr(command, "rich_help_panel", None) or "Commands", [])
            rows.append((_blue(name), (command.help or "").partition("\n")[0]))
        for panel, rows in panels.items():
            with formatter.section(_bold(panel)):
                formatter.write_dl(rows)
        _write_panels(self.get_params(ctx), ctx, formatter)
        self.format_epilog(ctx, formatter)


def _write_panels(params: Iterable[Any], ctx: Any, formatter: Any) -> None:
    """What has to be given, then options by panel in order of appearance, the general ones last."""
    panels: dict[str, list[tuple[str, str]]] = {_NEEDED: []}
    for param in params:
        record = param.get_help_record(ctx)
        if record is None:
            continue
        needed = param.required or param.param_type_name == "argument"
        panel = _NEEDED if needed else getattr(param, "rich_help_panel", None) or "Options"
        panels.setdefault(panel, []).append((_blue(record[0]), record[1]))
    for panel in sorted((panel for panel, rows in panels.items() if rows), key=_LAST.__contains__):
        with formatter.section(_bold(panel)):
            formatter.write_dl(panels[panel], col_max=32)


def _coloured() -> bool:
    """Whether standard output shows colours, and the user wants them."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def _bold(text: str) -> str:
    return typer.style(text, bold=True) if _coloured() else text


def _blue(text: str) -> str:
    return typer.style(text, fg="cyan") if _coloured() else text
