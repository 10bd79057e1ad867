"""What the weights of each kind take before and after, from headers alone: nothing is read, nothing is written."""

from __future__ import annotations

import math
from dataclasses import dataclass

from moesaic.checkpoint.kinds import KINDS, find_blocks, kinds_of
from moesaic.checkpoint.reader import Checkpoint
from moesaic.packing.build import PackedBuild


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
