"""Look a name up in a stage's dictionary, and be helpful when it is not there."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import TypeVar

from moesaic.errors import UnknownName

T = TypeVar("T")


def nearest(name: str, known: list[str]) -> str | None:
    """The known name closest in spelling to `name`, or None when none is close."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return close[0] if close else None


def look_up(name: str, known: Mapping[str, T], *, kind: str, group: str | None = None) -> T:
    """Return `known[name]`, else an entry point of that name in the group `moesaic.<group>`.

    Args:
        name: what the user asked for.
        known: the stage's dictionary.
        kind: the word for the thing in an error message, such as "scoring rule".
        group: entry-point group (without the prefix `moesaic.`) where other packages may add to the stage.

    Raises:
        UnknownName: with the nearest known name and the whole list.
    """
    if name in known:
        return known[name]
    others = {point.name: point for point in entry_points(group=f"moesaic.{group}")} if group else {}
    if name in others:
        loaded: T = others[name].load()
        return loaded
    names = sorted([*known, *others])
    guess = nearest(name, names)
    hint = f"; did you mean {guess!r}?" if guess else ""
    raise UnknownName(f"unknown {kind} {name!r}{hint} Known: {', '.join(names)}.")
