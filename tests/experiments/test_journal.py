"""Finished pieces of an experiment survive a kill and are not mixed with those of other settings."""

from pathlib import Path

import pytest
from experiments.journal import Journal


def test_a_torn_line_is_dropped_and_the_rest_kept(tmp_path: Path) -> None:
    """A kill in the middle of a line costs that line alone."""
    path = tmp_path / "work" / "journal.jsonl"
    journal = Journal(path, {"seed": 1})
    journal.add("a", [1.0])
    journal.add("b", [2.0])
    path.write_text(path.read_text()[:-5])
    again = Journal(path, {"seed": 1})
    assert again.found == {"a": [1.0]}
    again.add("b", [3.0])
    assert Journal(path, {"seed": 1}).found == {"a": [1.0], "b": [3.0]}


def test_other_settings_are_refused(tmp_path: Path) -> None:
    """Pieces that were measured otherwise are never taken over."""
    Journal(tmp_path / "journal.jsonl", {"seed": 1})
    with pytest.raises(ValueError, match="other settings"):
        Journal(tmp_path / "journal.jsonl", {"seed": 2})
