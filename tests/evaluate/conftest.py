"""Models that the tests of the measures share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from moesaic import CompressOptions, compress
from tests.talking import talking_copy, write_text


@pytest.fixture(scope="package")
def source(tiny_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mixtral with a tokenizer; not to be changed."""
    return talking_copy(tiny_checkpoint("mixtral"), tmp_path_factory.mktemp("source") / "mixtral")


@pytest.fixture(scope="package")
def packed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, packed at 2.5 bits; not to be changed."""
    return compress(source, tmp_path_factory.mktemp("packed") / "mixtral", CompressOptions(bits=2.5))


@pytest.fixture(scope="package")
def switch(tiny_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Switch Transformer with a tokenizer; not to be changed."""
    folder = tmp_path_factory.mktemp("switch") / "switch"
    return talking_copy(tiny_checkpoint("switch_transformers"), folder)


@pytest.fixture(scope="package")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short text."""
    return write_text(tmp_path_factory.mktemp("text") / "prose.txt")
