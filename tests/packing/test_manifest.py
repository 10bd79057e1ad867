"""`moesaic.json` and the check of a packed folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from moesaic.errors import CorruptFile, NotACheckpoint
from moesaic.packing import manifest
from moesaic.records import write_json


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A folder with a manifest, as `verify` wants it."""
    save_file({"a": torch.arange(100)}, tmp_path / "model.safetensors")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x.txt").write_text("x")
    (tmp_path / "empty.txt").write_text("")
    write_json(tmp_path / "moesaic.json", {"format_version": 1, "files": manifest.describe_files(tmp_path)})
    return tmp_path


def edit(folder: Path, change: Callable[[dict], object]) -> None:
    """Change the manifest."""
    data = json.loads((folder / "moesaic.json").read_text())
    change(data)
    (folder / "moesaic.json").write_text(json.dumps(data))


def test_sound_folder_passes(packed: Path) -> None:
    """What was described is what is found, sub-folders and empty files included."""
    files = manifest.verify(packed)["files"]
    assert sorted(files) == ["empty.txt", "model.safetensors", "sub/x.txt"]
    assert files["sub/x.txt"] == {"bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}


@pytest.mark.parametrize("place", [0, 20, -1])
def test_flipped_bit_is_found(packed: Path, place: int) -> None:
    """One bit in header or data is enough, and the file is named."""
    path = packed / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CorruptFile, match=r"model.safetensors: its SHA-256"):
        manifest.verify(packed)


def test_missing_short_and_long_files_are_found(packed: Path) -> None:
    """Each is named with its size."""
    path = packed / "sub" / "x.txt"
    path.write_text("xx")
    with pytest.raises(CorruptFile, match="2 bytes, the manifest says 1"):
        manifest.verify(packed)
    path.unlink()
    with pytest.raises(CorruptFile, match=r"x.txt: missing"):
        manifest.verify(packed)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "sub/../../outside"])
def test_paths_outside_the_folder_are_refused(packed: Path, name: str) -> None:
    """A manifest cannot make `verify` look elsewhere."""
    edit(packed, lambda data: data["files"].update({name: {"bytes": 1, "sha256": "0"}}))
    with pytest.raises(CorruptFile, match="outside the folder"):
        manifest.verify(packed)


@pytest.mark.parametrize("entry", [3, None, [], {}, {"bytes": "x", "sha256": "0"}, {"bytes": 1}])
def test_malformed_entries_are_a_corrupt_file(packed: Path, entry: object) -> None:
    """A damaged manifest is one line and not a stack trace."""
    edit(packed, lambda data: data["files"].update({"empty.txt": entry}))
    with pytest.raises(CorruptFile):
        manifest.verify(packed)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_other_format_versions_are_refused(packed: Path, version: object) -> None:
    """A later format is not misread; the version found and the one known are named."""
    edit(packed, lambda data: data.update(format_version=version))
    with pytest.raises(CorruptFile, match="this moesaic reads 1"):
        manifest.read_manifest(packed)


def test_no_manifest_and_no_files(packed: Path) -> None:
    """A folder of something else is not a packed model."""
    edit(packed, lambda data: data.pop("files"))
    with pytest.raises(CorruptFile, match='"files" is missing'):
        manifest.read_manifest(packed)
    (packed / "moesaic.json").unlink()
    with pytest.raises(NotACheckpoint, match=r"no moesaic.json"):
        manifest.read_manifest(packed)


def test_content_digest_depends_on_names_and_digests_not_on_order() -> None:
    """The digest of what went in is over all tensors, whatever order they were read in."""
    one = manifest.content_sha256({"a": "1", "b": "2"})
    assert one == manifest.content_sha256({"b": "2", "a": "1"})
    assert len({one, manifest.content_sha256({"a": "2", "b": "1"}), manifest.content_sha256({"a": "1"})}) == 3


def test_versions_name_what_matters() -> None:
    """The versions of what the result depends on."""
    assert set(manifest.library_versions()) == {"moesaic", "torch", "transformers", "safetensors", "python"}
