"""Options that several commands have."""

from __future__ import annotations

import pytest
import typer

from moesaic.cli.parameters import parse_levels, parse_size


@pytest.mark.parametrize(("text", "levels"), [(None, None), ("2,3", (2, 3)), ("1, 2, 3", (1, 2, 3)), ("4", (4,))])
def test_levels(text: str | None, levels: tuple[int, ...] | None) -> None:
    """A list of numbers, with or without spaces."""
    assert parse_levels(text) == levels


@pytest.mark.parametrize("text", ["", "a", "2,", "2;3", "2.5"])
def test_levels_that_are_none(text: str) -> None:
    """Anything else is a wrong call."""
    with pytest.raises(typer.BadParameter, match="not a list of widths"):
        parse_levels(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("16GB", 16_000_000_000),
        ("16gb", 16_000_000_000),
        (" 1.5 GiB ", 1_610_612_736),
        ("2.3MB", 2_300_000),
        ("0.1kB", 100),
        ("7B", 7),
        ("1.9999B", 1),
        (None, None),
    ],
)
def test_sizes(text: str | None, size: int | None) -> None:
    """Decimal and binary units; exact, rounded down to bytes."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "16", "16G", "-1GB", "1e3GB", "1,5GB", "GB", "infGB", "1..2GB", "16GBs", "0x1GB"])
def test_sizes_that_are_none(text: str) -> None:
    """No unit, an ambiguous one, or no plain number: the message shows how a size looks."""
    with pytest.raises(typer.BadParameter, match="such as 16GB"):
        parse_size(text)
