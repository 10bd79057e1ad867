"""What the commands share."""

from __future__ import annotations

import pytest
import torch
import transformers

from moesaic.cli.console import (
    Bar,
    count_text,
    duration_text,
    note,
    paper,
    quiet_libraries,
    set_threads,
    size_text,
    table,
)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (11_660_000, "11.7 MB"),
        (2e9, "2.0 GB"),
        (3e12, "3.0 TB"),
        (5e15, "5000.0 TB"),
    ],
)
def test_sizes_for_people(size: float, text: str) -> None:
    """Sizes are in powers of ten with one digit after the point."""
    assert size_text(size) == text


def test_a_bar_that_is_no_terminal_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    """A bar takes several pieces of work, and steps before any, without a word."""
    with Bar(quiet=False) as bar:
        bar.advance(1)
        for work in ("one", "two"):
            bar.start(work, 2)
            bar.advance(2)
    assert capsys.readouterr() == ("", "")


def test_notes_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    """A note is one line on standard error, unless quiet."""
    note("so far so good")
    note("unheard", quiet=True)
    assert capsys.readouterr() == ("", "so far so good\n")


def test_libraries_can_be_quiet() -> None:
    """transformers' notices and bars are off."""
    quiet_libraries()
    assert transformers.logging.get_verbosity() == transformers.logging.ERROR


def test_threads() -> None:
    """A number of threads is used, none is torch's choice."""
    before = torch.get_num_threads()
    try:
        set_threads(1)
        assert torch.get_num_threads() == 1
        set_threads(None)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (999, "999"), (1000, "1.0 k"), (46.7e9, "46.7 G"), (2e12, "2.0 T")]
)
def test_counts_for_people(count: float, text: str) -> None:
    """Numbers of weights are in powers of a thousand."""
    assert count_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.25, "0.25 s"), (9.99, "10 s"), (42.4, "42 s"), (600, "10 min"), (12_000, "3 h 20 min")]
)
def test_durations_for_people(seconds: float, text: str) -> None:
    """The larger the time, the coarser the unit."""
    assert duration_text(seconds) == text


def test_tables_in_a_pipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Outside a terminal there are 100 columns and no colours; COLUMNS says otherwise."""
    monkeypatch.delenv("COLUMNS", raising=False)
    assert paper().width == 100
    made = table("what", "figure")
    made.add_row("a", "1")
    paper().print(made)
    assert "\x1b" not in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "60")
    assert paper().width == 60
