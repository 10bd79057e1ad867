"""The files that travel with the weights."""

from __future__ import annotations

import os
from pathlib import Path

from moesaic.checkpoint.companions import copy_companions, find_companions

WANTED = ["LICENSE", "chat_template.jinja", "generation_config.json", "merges.txt", "preprocessor_config.json"]
WANTED += ["spiece.model", "tokenizer.json", "tokenizer_config.json", "vocab.json"]
UNWANTED = ["config.json", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", ".git", "x.pkl"]


def test_companions_are_copied_and_nothing_else(tmp_path: Path) -> None:
    """Tokenizer, generation and licence files come along; weights, pickles and the configuration do not."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    for name in [*WANTED, *UNWANTED]:
        (source / name).write_text(name)
    assert copy_companions(source, target) == sorted(WANTED)
    assert sorted(os.listdir(target)) == sorted(WANTED)
    assert (target / "merges.txt").read_text() == "merges.txt"


def test_links_are_resolved_and_folders_left(tmp_path: Path) -> None:
    """A file of the hub's cache is a link: the copy is a file. A folder of a companion's name is no companion."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (tmp_path / "blob").write_text("x")
    (source / "tokenizer.json").symlink_to(tmp_path / "blob")
    (source / "tokenizer").mkdir()
    assert copy_companions(source, target) == ["tokenizer.json"]
    assert not (target / "tokenizer.json").is_symlink()


def test_found_are_those_that_are_copied(tmp_path: Path) -> None:
    """The list made beforehand is the list of what is copied."""
    (tmp_path / "source").mkdir()
    (tmp_path / "target").mkdir()
    for name in ("tokenizer.json", "LICENSE", "model.safetensors", "notes.txt"):
        (tmp_path / "source" / name).write_text("x")
    found = [path.name for path in find_companions(tmp_path / "source")]
    assert found == copy_companions(tmp_path / "source", tmp_path / "target") == ["LICENSE", "tokenizer.json"]
