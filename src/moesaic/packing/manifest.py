"""`moesaic.json`: what a packed folder says about itself, and the check that it is still what it was."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from moesaic.checkpoint.headers import read_all_entries
from moesaic.errors import CorruptFile, NotACheckpoint
from moesaic.json_files import read_json
from moesaic.packing import FORMAT_VERSION, MANIFEST
from moesaic.progress import SILENT, Progress

_CHUNK = 8 << 20


def library_versions() -> dict[str, str]:
    """Versions of what the result depends on."""
    names = ("moesaic", "torch", "transformers", "safetensors")
    return {**{name: _version(name) for name in names}, "python": platform.python_version()}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def file_sha256(path: Path, progress: Progress = SILENT) -> str:
    """SHA-256 of a file, in pieces; `progress` advances by their bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
            progress.advance(len(piece))
    return digest.hexdigest()


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file of the folder, the manifest itself left out."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in paths
    }


def content_sha256(digests: Mapping[str, str]) -> str:
    """One digest over the digests of all tensors read."""
    lines = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a packed folder.

    Raises:
        NotACheckpoint: not a packed folder.
        CorruptFile: an unreadable manifest, or one of a format that this version does not know.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise NotACheckpoint(f"{folder}: no {MANIFEST}; give a folder written by `moesaic compress`")
    manifest = read_json(path)
    found = manifest.get("format_version")
    if found != FORMAT_VERSION:
        raise CorruptFile(
            f"{path}: format_version is {found!r}, this moesaic reads {FORMAT_VERSION}; use a matching release"
        )
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(_is_description(entry) for entry in files.values()):
        raise CorruptFile(f'{path}: "files" is missing or malformed; copy the folder again')
    return manifest


def _is_description(entry: object) -> bool:
    return isinstance(entry, dict) and type(entry.get("bytes")) is int and isinstance(entry.get("sha256"), str)


def verify(folder: Path, progress: Progress = SILENT) -> dict[str, Any]:
    """Check every file of a packed folder against the sizes and hashes in its manifest.

    Returns:
        The manifest.

    Raises:
        NotACheckpoint: not a packed folder.
        CorruptFile: a file is missing, too short or long, or its bytes have changed.
        InvalidPolicy: a skipping policy is there that was made for another model or plan.
    """
    manifest = read_manifest(folder)
    progress.start("verify", sum(int(wanted["bytes"]) for wanted in manifest["files"].values()))
    for name, wanted in manifest["files"].items():
        path = folder / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise CorruptFile(f"{folder / MANIFEST}: names {name!r}, a path outside the folder")
        if not path.is_file():
            raise CorruptFile(f"{path}: missing; the manifest lists it with {wanted['bytes']} bytes")
        size = path.stat().st_size
        if size != wanted["bytes"]:
            raise CorruptFile(f"{path}: has {size} bytes, the manifest says {wanted['bytes']}; copy it again")
        found = file_sha256(path, progress)
        if found != wanted["sha256"]:
            raise CorruptFile(
                f"{path}: its SHA-256 is {found[:16]}…, the manifest says {wanted['sha256'][:16]}…; copy it again"
            )
    read_all_entries(folder)
    if (folder / "pruning.json").exists():
        from moesaic.packing.pruning import read_pruning  # noqa: PLC0415  (needs torch, which a check of hashes does not)

        read_pruning(folder, manifest)
    return manifest
