"""Models that the tests of the command line share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from moesaic import CompressOptions, compress
from tests.talking import talking_copy, write_text
from tests.tiny import save_tiny


@pytest.fixture(scope="package")
def mixtral(tiny_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mixtral with a tokenizer; not to be changed."""
    return talking_copy(tiny_checkpoint("mixtral"), tmp_path_factory.mktemp("source") / "mixtral")


@pytest.fixture(scope="package")
def packed(mixtral: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, packed at 2.5 bits; not to be changed."""
    return compress(mixtral, tmp_path_factory.mktemp("packed") / "mixtral", CompressOptions(bits=2.5))


@pytest.fixture(scope="package")
def long_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of several layers, which takes a while to compress with HQQ; not to be changed."""
    folder = tmp_path_factory.mktemp("long") / "mixtral"
    return save_tiny(folder, "mixtral", num_hidden_layers=4, hidden_size=128, intermediate_size=320)


@pytest.fixture(scope="package")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short text."""
    return write_text(tmp_path_factory.mktemp("text") / "prose.txt")
