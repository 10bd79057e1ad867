"""The silent progress of library calls."""

from __future__ import annotations

import pytest

from moesaic.progress import SILENT


def test_silent_progress_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """A library call must not write to the terminal."""
    SILENT.start("pack", 10)
    SILENT.advance(10)
    assert capsys.readouterr() == ("", "")
