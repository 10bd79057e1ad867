"""Finished pieces of an experiment as JSON lines, so that a run that was stopped goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Journal:
    """Records by key, in a file that grows a line at a time; a line that a kill tore is dropped.

    Attributes:
        path: the file.
        found: the records so far, by key.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Open or begin a journal.

        Args:
            path: the file; its folder is made.
            settings: what the records depend on; written to the first line.

        Raises:
            ValueError: the file is of another run.
        """
        self.path = path
        self.found: dict[str, Any] = {}
        head = json.loads(json.dumps(dict(settings)))
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        sound = []
        for line in lines:
            try:
                sound.append(json.loads(line))
            except ValueError:
                break
        if sound and sound[0] != head:
            raise ValueError(f"{path} was made with other settings ({sound[0]}); choose another work folder")
        self.found = {entry["key"]: entry["value"] for entry in sound[1:]}
        if not sound or len(sound) < len(lines):
            unfinished = path.with_name(path.name + ".unfinished")
            unfinished.parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_text("".join(json.dumps(entry) + "\n" for entry in [head, *sound[1:]]), encoding="utf-8")
            os.replace(unfinished, path)

    def add(self, key: str, value: Any) -> None:
        """Keep a finished piece."""
        self.found[key] = value
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "value": value}) + "\n")
