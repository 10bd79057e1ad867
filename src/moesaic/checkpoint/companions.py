"""The files beside the weights that make a folder usable: tokenizer, processor, generation settings, licences."""

from __future__ import annotations

import shutil
from fnmatch import fnmatch
from pathlib import Path

COMPANIONS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "*.jinja",
    "generation_config.json",
    "*processor_config.json",
    "preprocessor_config.json",
    "LICENSE*",
    "NOTICE*",
    "*.py",
)


def companions(source: Path) -> list[Path]:
    """The companion files of a checkpoint folder."""
    return [
        path
        for path in sorted(source.iterdir())
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in COMPANIONS)
    ]


def copy_companions(source: Path, target: Path) -> list[str]:
    """Copy the companion files of a checkpoint folder, links resolved. Returns their names."""
    copied = companions(source)
    for path in copied:
        shutil.copyfile(path, target / path.name)
    return [path.name for path in copied]
