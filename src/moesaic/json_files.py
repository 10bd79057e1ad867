"""JSON objects on the disk. Apart from `records`, so that commands which need no tensors start without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moesaic.errors import CorruptFile


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        CorruptFile: no such file, not UTF-8, not JSON, or not an object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CorruptFile(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"{path}: not valid JSON ({error})") from None
    if not isinstance(data, dict):
        raise CorruptFile(f"{path}: holds a JSON {type(data).__name__}, not an object")
    return data


def json_text(data: Mapping[str, Any]) -> str:
    """What `write_json` writes."""
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON object, replacing the file only when it is complete."""
    draft = path.with_name(path.name + ".draft")
    try:
        draft.write_text(json_text(data), encoding="utf-8")
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
