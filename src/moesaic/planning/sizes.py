"""How large a packed folder will be, to the byte, from headers alone: nothing is read, nothing is written."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from moesaic.checkpoint.companions import find_companions
from moesaic.checkpoint.kinds import KINDS, find_blocks, kinds_of
from moesaic.checkpoint.reader import Checkpoint
from moesaic.checkpoint.writer import TensorSpec, lay_out, shard_names, split_into_shards
from moesaic.options import CompressOptions
from moesaic.packing import MANIFEST
from moesaic.packing.build import PackedBuild
from moesaic.packing.job import INDEX
from moesaic.pipeline import manifest
from moesaic.recipe import RECIPE, recipe_text
from moesaic.records import Scores

_SHA256 = "0" * 64  # in the place of one that is not known yet: as long


@dataclass(frozen=True)
class KindChange:
    """The weights of one kind before and after.

    Attributes:
        kind: one of `checkpoint.kinds.KINDS`.
        weights: numbers.
        before, after: bytes in the checkpoint and in the packed folder.
    """

    kind: str
    weights: int
    before: int
    after: int


def model_kinds(checkpoint: Checkpoint) -> dict[str, str]:
    """The kind of every parameter of the model that the checkpoint holds."""
    shapes = {name: shape for name, shape in checkpoint.shapes.items() if name in checkpoint.sources}
    kinds = kinds_of(shapes, find_blocks(shapes))
    for layer in checkpoint.layers:
        kinds[layer.router] = "routers"
        kinds.update(dict.fromkeys(layer.parameters(), "routed experts"))
    return kinds


def by_kind(build: PackedBuild) -> list[KindChange]:
    """Weights and bytes by kind, in the order of `KINDS`, those that occur."""
    checkpoint, kinds = build.checkpoint, model_kinds(build.checkpoint)
    weights, before, after = (dict.fromkeys(KINDS, 0) for _ in range(3))
    for name, kind in kinds.items():
        shape, dtype = checkpoint.parameter_shape_and_dtype(name)
        weights[kind] += math.prod(shape)
        before[kind] += math.prod(shape) * dtype.itemsize
    routed = {layer.name for layer in checkpoint.layers}
    for unit, specs in build.units():
        for spec in specs:
            name = spec.name.removesuffix(".packed") + ".weight" if spec.name.endswith(".packed") else spec.name
            after["routed experts" if unit in routed else kinds[name]] += spec.size
    return [KindChange(kind, weights[kind], before[kind], after[kind]) for kind in KINDS if before[kind]]


def folder_files(build: PackedBuild, scores: Scores | None, options: CompressOptions) -> dict[str, int]:
    """Name -> bytes of every file that `compress` will write."""
    shards = split_into_shards([specs for _, specs in build.units()], options.shard_bytes)
    names = shard_names(len(shards))
    files = {name: _file_size(specs) for name, specs in zip(names, shards, strict=True)}
    if len(shards) > 1:
        weight_map = {spec.name: name for name, specs in zip(names, shards, strict=True) for spec in specs}
        total = sum(spec.size for specs in shards for spec in specs)
        files[INDEX] = _json_size({"metadata": {"total_size": total}, "weight_map": weight_map})
    files["config.json"] = _json_size(build.config())
    files[RECIPE] = len(recipe_text(options.recipe()).encode())
    files.update({path.name: path.stat().st_size for path in find_companions(build.checkpoint.folder)})
    described = {name: {"bytes": size, "sha256": _SHA256} for name, size in files.items()}
    files[MANIFEST] = _json_size(manifest(build, described, _SHA256, scores, options))
    return files


def _file_size(specs: list[TensorSpec]) -> int:
    header, _, data = lay_out(specs)
    return 8 + len(header) + data


def _json_size(data: dict[str, object]) -> int:
    """Bytes of what `write_json` writes."""
    return len((json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode())
