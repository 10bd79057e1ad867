"""Print `docs/cli.md`: every command with its arguments and options, taken from the command line itself.

    python -m docs.make_cli > docs/cli.md

It reads the signatures of the commands rather than the text of `--help`, which depends on the width of the terminal
and on the version of typer. A test fails when the page is stale.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from typer.models import ArgumentInfo, CommandInfo, OptionInfo

from moesaic.cli import app

HEAD = """# The command line

<!-- Written by docs/make_cli.py. Do not edit: change the commands in src/moesaic/cli and run `make docs`. -->

Every command prints what it found on standard output, and notices and progress bars on standard error. Bars appear
only on a terminal. With `--json` the output is one JSON object. The exit code is 0 for success, 1 for a failure,
2 for a wrong call and 130 for an interruption (Ctrl-C); a failure prints one line that begins with `error:`.

`moesaic --version` prints the version, `moesaic COMMAND --help` the help of a command. [Environment
variables](environment.md) have a page of their own.
"""

_METAVARS = {int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "PATH"}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a command.

    Attributes:
        names: as they are typed, such as `--out`, `-o`; for an argument its name in the usage line.
        metavar: what stands for the value, "" for a flag.
        argument: has its place instead of a name.
        required: has no default.
        default: for people, "" where there is none to show.
        panel: heading in the help, "" for the ordinary options.
        help: what it does.
    """

    names: tuple[str, ...]
    metavar: str
    argument: bool
    required: bool
    default: str
    panel: str
    help: str


def page() -> str:
    """The whole page."""
    parts = [HEAD, _contents(app.registered_commands)]
    parts += [_command(command) for command in app.registered_commands]
    return "\n".join(parts)


def parameters(command: Callable[..., Any]) -> list[Parameter]:
    """The parameters of a command in the order of its signature."""
    hints = typing.get_type_hints(command, include_extras=True)
    found = []
    for name, parameter in inspect.signature(command).parameters.items():
        kind, info = typing.get_args(hints[name])[:2]
        found.append(_parameter(name, kind, info, parameter.default))
    return found


def _parameter(name: str, kind: Any, info: ArgumentInfo | OptionInfo, default: Any) -> Parameter:
    kinds = [each for each in (typing.get_args(kind) or (kind,)) if each is not NoneType]
    required = default is inspect.Parameter.empty
    argument = isinstance(info, ArgumentInfo)
    text, shown = _split_default(info.help or "", "" if required or info.show_default is False else default)
    if argument:
        names: tuple[str, ...] = (str(info.metavar or name.upper()),)
        metavar = ""
    else:
        spelled = f"--{name.replace('_', '-')}"
        on_off = (spelled, f"--no-{name.replace('_', '-')}") if kinds[0] is bool else (spelled,)
        # inside Annotated, typer takes the first spelling for a default until it builds the command
        written = (*((info.default,) if isinstance(info.default, str) else ()), *(info.param_decls or ()))
        names = tuple(part for each in written for part in each.split("/")) or on_off
        flag = kinds[0] is bool or bool(getattr(info, "count", False))
        metavar = "" if flag else _METAVARS[kinds[0]]
    return Parameter(names, metavar, argument, required, shown, info.rich_help_panel or "", text)


def _split_default(text: str, default: Any) -> tuple[str, str]:
    """Help texts may end in `[default: …]` in words of their own, which wins over the value."""
    before, marker, words = text.partition("[default: ")
    if marker:
        return before.strip(), words.rstrip("]")
    if default is None or isinstance(default, bool):
        return text, ("on" if default else "")
    return text, f"`{default}`" if default != "" else ""


def _contents(commands: list[CommandInfo]) -> str:
    rows = [f"| [`moesaic {each.name}`](#moesaic-{each.name}) | {_first_line(each)} |" for each in commands]
    return "\n".join(["| command | what it does |", "| --- | --- |", *rows, ""])


def _first_line(command: CommandInfo) -> str:
    return inspect.cleandoc(command.callback.__doc__ or "").splitlines()[0]


def _command(command: CommandInfo) -> str:
    known = parameters(command.callback)
    lines = [f"## moesaic {command.name}", "", inspect.cleandoc(command.callback.__doc__ or ""), ""]
    lines += ["```text", f"moesaic {command.name} {' '.join(_usage(known))}", "```", ""]
    for heading, group in _groups(known):
        lines += [f"| {heading} | what it does | default |", "| --- | --- | --- |"]
        lines += [f"| {_signature(each)} | {_cell(each.help)} | {_default(each)} |" for each in group]
        lines.append("")
    return "\n".join(lines)


def _usage(known: list[Parameter]) -> Iterator[str]:
    yield from (each.names[0] for each in known if each.argument)
    yield from (f"{each.names[0]} {each.metavar}" for each in known if each.required and not each.argument)
    yield "[OPTIONS]"


def _groups(known: list[Parameter]) -> Iterator[tuple[str, list[Parameter]]]:
    """Arguments, then the options by panel in the order in which the panels first occur, the ordinary ones last."""
    arguments = [each for each in known if each.argument]
    if arguments:
        yield "argument", arguments
    panels = list(dict.fromkeys(each.panel for each in known if not each.argument))
    for panel in sorted(panels, key=lambda name: name == ""):
        title = f"option: {panel[0].lower()}{panel[1:]}" if panel else "option"
        yield title, [each for each in known if not each.argument and each.panel == panel]


def _signature(each: Parameter) -> str:
    value = f" {each.metavar}" if each.metavar else ""
    return ", ".join(f"`{name}{value}`" if place == 0 else f"`{name}`" for place, name in enumerate(each.names))


def _default(each: Parameter) -> str:
    return "required" if each.required else each.default


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
