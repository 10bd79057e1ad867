"""How commands share options: a bundle is a dataclass whose fields are options, and `takes` spreads it in a command.

    @takes(flags=CompressFlags, output=Output)
    def command(model: p.Model, flags: CompressFlags, output: Output) -> None: ...

has the options of both dataclasses, and gets them as two objects.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from moesaic.cli.console import Bar


@dataclass(frozen=True)
class Output:
    """What a command says, and how."""

    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.", rich_help_panel="Output")] = False
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress bar, no notices.", rich_help_panel="Output")
    ] = False
    verbose: Annotated[
        int,
        typer.Option(
            "--verbose",
            "-v",
            count=True,
            show_default=False,
            help="Say what is being done; twice: with the libraries' notices, and the traceback of a failure.",
            rich_help_panel="Output",
        ),
    ] = 0

    def begin(self, *, libraries: bool = True) -> None:
        """Set notices to what was asked for. To be called before anything is read.

        Args:
            libraries: the command uses transformers, whose notices are to be kept out too.
        """
        import logging

        level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(self.verbose, 2)]
        logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
        logging.getLogger("moesaic").setLevel(logging.ERROR if self.quiet else level)
        if libraries and self.verbose < 2:
            from moesaic.cli.console import quiet_libraries

            quiet_libraries()

    def bar(self) -> Bar:
        """A progress bar, which is silent where none is wanted."""
        from moesaic.cli.console import Bar

        return Bar(quiet=self.quiet or self.json_)

    def note(self, text: str) -> None:
        """One line on standard error."""
        if not (self.quiet or self.json_):
            print(text, file=sys.stderr)

    def print(self, found: Mapping[str, Any], show: Callable[[], None] | None = None) -> None:
        """The result: as JSON where that was asked for, else as `show` prints it.

        Args:
            found: the result.
            show: prints it for people; None for a command whose result is a file.
        """
        if self.json_:
            print(json.dumps(found, ensure_ascii=False))
        elif show is not None:
            show()


def takes(**bundles: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of some bundles; an option that the command spells itself wins over a bundle's.

    An interruption (Ctrl-C) that the command does not answer itself ends it with a word and exit code 130.

    Args:
        bundles: name of the command's parameter -> dataclass whose fields are `Annotated` options with defaults.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = _parameters(command, leave=set(bundles))
        spread = {name: _parameters(bundle, leave=set(own)) for name, bundle in bundles.items()}

        @functools.wraps(command)
        def call(**given: Any) -> None:
            made = {
                name: bundles[name](**{key: given.pop(key) for key in parameters})
                for name, parameters in spread.items()
            }
            try:
                command(**given, **made)
            except KeyboardInterrupt:
                print("interrupted; nothing was written", file=sys.stderr)
                raise typer.Exit(130) from None

        every = [*own.values(), *(each for parameters in spread.values() for each in parameters.values())]
        call.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
        call.__annotations__ = {each.name: each.annotation for each in every}
        return call

    return decorate


def _parameters(of: Callable[..., Any], *, leave: set[str]) -> dict[str, inspect.Parameter]:
    """The parameters of a command or the fields of a bundle, with their real types."""
    hints = typing.get_type_hints(of, include_extras=True)
    if dataclasses.is_dataclass(of):
        defaults = {field.name: field.default for field in dataclasses.fields(of)}
    else:
        defaults = {name: each.default for name, each in inspect.signature(of).parameters.items()}
    keyword = inspect.Parameter.KEYWORD_ONLY  # in any order
    return {
        name: inspect.Parameter(name, keyword, default=default, annotation=hints[name])
        for name, default in defaults.items()
        if name not in leave
    }
