"""Rows on disk: JSON lines that an interrupted run goes on from, and the compact record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from moesaic.evaluate.conditions import conditions

Row = dict[str, Any]
DIGITS = 5


class Rows:
    """The rows that are there, in a file of JSON lines.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[str, Row] = {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except ValueError:  # the line that an interruption cut off
                    continue
                self._rows[row["key"]] = row

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def add(self, key: str, row: Row) -> Row:
        """Keep a row."""
        row = {"key": key, **rounded(row)}
        self._rows[key] = row
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        return row

    def of(self, prefix: str) -> list[Row]:
        """Those whose key begins so."""
        return [row for key, row in self._rows.items() if key.startswith(prefix)]


def rounded(value: Any) -> Any:
    """Floats with five significant digits, in lists and objects too."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return {key: rounded(each) for key, each in value.items()} if isinstance(value, dict) else value


def write_record(path: Path, rows: list[Row], how: dict[str, Any]) -> None:
    """The record: conditions, and a row a line."""
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    head = json.dumps(conditions(**how), separators=(",", ":"))
    path.write_text(f'{{"conditions":{head},\n"rows":[\n{lines}\n]}}\n', encoding="utf-8")


def read_record(path: Path) -> list[Row]:
    """The rows of a record."""
    return list(json.loads(path.read_text(encoding="utf-8"))["rows"])
