"""Options that several commands have."""

from __future__ import annotations

import pytest
import typer

from moesaic.cli.parameters import parse_levels


@pytest.mark.parametrize(("text", "levels"), [(None, None), ("2,3", (2, 3)), ("1, 2, 3", (1, 2, 3)), ("4", (4,))])
def test_levels(text: str | None, levels: tuple[int, ...] | None) -> None:
    """A list of numbers, with or without spaces."""
    assert parse_levels(text) == levels


@pytest.mark.parametrize("text", ["", "a", "2,", "2;3", "2.5"])
def test_levels_that_are_none(text: str) -> None:
    """Anything else is a wrong call."""
    with pytest.raises(typer.BadParameter, match="not a list of widths"):
        parse_levels(text)
