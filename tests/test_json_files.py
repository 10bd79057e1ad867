"""JSON files are read and written by themselves, without torch; more is in `test_records.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from moesaic import records
from moesaic.errors import CorruptFile
from moesaic.json_files import read_json, write_json


def test_round_trip(tmp_path: Path) -> None:
    """What is written is read, and the file ends with a line break."""
    write_json(tmp_path / "x.json", {"a": [1, "é"]})
    assert read_json(tmp_path / "x.json") == {"a": [1, "é"]}
    assert (tmp_path / "x.json").read_text(encoding="utf-8").endswith("}\n")


def test_a_list_is_no_object(tmp_path: Path) -> None:
    """A file of another form is refused by its path."""
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(CorruptFile, match=r"x\.json: holds a JSON list"):
        read_json(tmp_path / "x.json")


def test_records_has_them_too() -> None:
    """The nouns' module gives the same two functions."""
    assert (records.read_json, records.write_json) == (read_json, write_json)
