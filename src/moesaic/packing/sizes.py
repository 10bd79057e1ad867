"""How large the folder of a packed model is going to be, to the byte, before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from moesaic.checkpoint.companions import find_companions
from moesaic.checkpoint.writer import file_bytes, shard_names, split_into_shards
from moesaic.packing.build import PackedBuild
from moesaic.packing.job import INDEX, MANIFEST, index_of
from moesaic.records import json_text

_HASH = "0" * 64  # as long as any other

Files = dict[str, dict[str, Any]]


def predict_files(
    build: PackedBuild,
    shard_bytes: int,
    extra: Mapping[str, int],
    manifest: Callable[[Files, str], Mapping[str, Any]],
) -> dict[str, int]:
    """Name -> bytes of all files, from headers and the plan only.

    Args:
        build: knows the tensors.
        shard_bytes: largest file of tensors.
        extra: files that are written beside, with their sizes.
        manifest: makes the manifest from the description of all other files and the hash of the source's contents.
    """
    shards = split_into_shards([specs for _, specs in build.units()], shard_bytes)
    file_of = dict(zip(shard_names(len(shards)), shards, strict=True))
    sizes = {name: file_bytes(specs) for name, specs in file_of.items()}
    if len(file_of) > 1:
        sizes[INDEX] = text_bytes(index_of(file_of))
    sizes |= {path.name: path.stat().st_size for path in find_companions(build.checkpoint.folder)}
    sizes["config.json"] = text_bytes(build.config())
    sizes |= extra
    files = {name: {"bytes": size, "sha256": _HASH} for name, size in sizes.items()}
    sizes[MANIFEST] = text_bytes(manifest(files, _HASH))
    return sizes


def with_own_size(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest, with the size of the whole folder, itself included, at `plan.reached.size`."""
    others, size = manifest["total_bytes"], 0
    while True:  # ends: the size grows with its own number of digits, by one at most
        plan = manifest["plan"]
        manifest = {**manifest, "plan": {**plan, "reached": {**plan["reached"], "size": size}}}
        found = others + text_bytes(manifest)
        if found == size:
            return manifest
        size = found


def stored_bpw(build: PackedBuild) -> float:
    """Stored bits per weight of the routed experts, scales, zero points and padding included."""
    shapes = [layer.shape for layer in build.checkpoint.layers]
    return 8 * build.expert_bytes() / sum(shape.experts * shape.expert_weights for shape in shapes)


def text_bytes(data: Mapping[str, Any]) -> int:
    """Bytes of a JSON file."""
    return len(json_text(data).encode())
