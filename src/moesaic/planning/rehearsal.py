"""A short measurement before a long run: the work of `compress` on a few samples, in this process.

The largest expert, one expert of every width, the largest other linear layer and the largest tensor that is kept are
read, rounded and packed as they will be, and thrown away. What that takes in memory is what the run takes at its
peak; what it takes in time is scaled to the whole model by weights.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch

from moesaic.checkpoint.reader import Checkpoint, Source
from moesaic.families import MoeLayer
from moesaic.packing.build import PackedBuild
from moesaic.planning.machine import peak_memory

SECONDS = 20.0  # after which no new sample is begun
_PROBE_BYTES = 32 << 20
_SYNCS = 8


@dataclass(frozen=True)
class Rehearsal:
    """What the samples took.

    Attributes:
        peak_bytes: the most memory that this process ever had, the samples included.
        samples: how many parts of the model were made.
        round_seconds: rounding and packing the whole model.
        read_rate, write_rate, hash_rate: bytes a second: from the disk and not its cache; to the disk, synchronised;
            through SHA-256.
        sync_seconds: until a little that is written is on the disk.
    """

    peak_bytes: int
    samples: int
    round_seconds: float
    read_rate: float
    write_rate: float
    hash_rate: float
    sync_seconds: float


def rehearse(build: PackedBuild, place: Path, *, seconds: float = SECONDS) -> Rehearsal:
    """Measure.

    Args:
        build: the packed model to be.
        place: a folder on the disk that it will be written to; a nameless file is written and thrown away.
        seconds: after which no new sample is begun.
    """
    end = time.perf_counter() + seconds
    expert_seconds, experts = _experts(build, end)
    linear_seconds, linears = _linears(build)
    _largest_other(build)
    peak = peak_memory()  # before the buffers of what follows
    write_rate, sync_seconds = _disk(place)
    return Rehearsal(
        peak_bytes=peak,
        samples=experts + linears,
        round_seconds=expert_seconds + linear_seconds,
        read_rate=_read_rate(build.checkpoint),
        write_rate=write_rate,
        hash_rate=_hash_rate(),
        sync_seconds=sync_seconds,
    )


def _experts(build: PackedBuild, end: float) -> tuple[float, int]:
    """Seconds for all routed experts, and how many were made: one of each shape and widths, the most frequent first."""
    alike: dict[tuple[object, ...], list[tuple[MoeLayer, int]]] = {}
    for layer in build.packed_layers:
        bits = build.plan.layers[layer.name]
        for expert in range(layer.experts):
            key: tuple[object, ...] = (layer.matrices, bits.gate_up[expert], bits.down[expert])
            alike.setdefault(key, []).append((layer, expert))
    largest = max(alike, key=_bytes_of, default=None)
    order = sorted(alike, key=lambda key: (key != largest, -len(alike[key])))
    measured: dict[tuple[object, ...], float] = {}
    for key in order:
        if measured and time.perf_counter() > end:
            break
        layer, expert = alike[key][0]
        measured[key] = _seconds(partial(_make, build, layer, [expert])) / layer.shape.expert_weights
    if largest is not None:  # two in a row: while one is read the run still holds the one before
        layer, expert = alike[largest][0]
        _make(build, layer, [expert, (expert + 1) % layer.experts])
    rate = sum(measured.values()) / len(measured) if measured else 0.0
    total = sum(
        measured.get(key, rate) * sum(layer.shape.expert_weights for layer, _ in members)
        for key, members in alike.items()
    )
    return total, len(measured)


def _make(build: PackedBuild, layer: MoeLayer, experts: list[int]) -> None:
    for _made in build.make_experts(layer, experts):
        pass  # held until the next one is there, as in the run


def _bytes_of(key: tuple[object, ...]) -> int:
    matrices = key[0]
    assert isinstance(matrices, tuple)
    return sum(rows * columns for _, rows, columns in matrices)


def _seconds(work: Callable[[], object]) -> float:
    """How long it takes; done once more where it is quick, since the first time also asks for memory."""
    start = time.perf_counter()
    work()
    first = time.perf_counter() - start
    if first > 1:
        return first
    work()
    return min(first, time.perf_counter() - start - first)


def _linears(build: PackedBuild) -> tuple[float, int]:
    """Seconds for all other linear layers, and how many were made: the largest."""
    shapes = build.checkpoint.shapes
    weights = {name: shapes[name][0] * shapes[name][1] for name in build.linears}
    if not weights:
        return 0.0, 0
    largest = max(weights, key=lambda name: weights[name])
    return _seconds(partial(build.make_linear, largest)) / weights[largest] * sum(weights.values()), 1


def _largest_other(build: PackedBuild) -> None:
    """Read the largest of the tensors that are kept, as `compress` will: for the peak of memory."""
    checkpoint = build.checkpoint
    whole: list[Source] = []
    cut: list[Source] = []
    for source in checkpoint.other_sources():
        if not any(name in build.linears for name in source.targets):
            (cut if source.converter is None else whole).append(source)
    sizes = {id(source): sum(_stored_bytes(checkpoint, source.tensors.values())) for source in (*whole, *cut)}
    if cut:
        for _part in islice(checkpoint.parts(max(cut, key=lambda source: sizes[id(source)])), 2):
            pass
    if whole:
        checkpoint.parameters_of(max(whole, key=lambda source: sizes[id(source)]))


def _stored_bytes(checkpoint: Checkpoint, names: Iterable[list[str]]) -> list[int]:
    stored = (checkpoint.stored[name] for each in names for name in each)
    return [each.stop - each.start for each in stored]


def _read_rate(checkpoint: Checkpoint) -> float:
    """Bytes a second from the disk: tensors from all over the checkpoint, put out of the system's cache before."""
    stored = sorted(checkpoint.stored.values(), key=lambda each: each.start - each.stop)  # the largest first
    read, spent = 0, 0.0
    for each in stored[:64]:
        length = min(each.stop - each.start, _PROBE_BYTES - read)
        with each.path.open("rb", buffering=0) as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), each.start, length, os.POSIX_FADV_DONTNEED)
            start = time.perf_counter()
            read += len(os.pread(file.fileno(), length, each.start))
            spent += time.perf_counter() - start
        if read >= _PROBE_BYTES:
            break
    return read / max(spent, 1e-9)


def _disk(place: Path) -> tuple[float, float]:
    """Bytes a second to the disk, and the seconds that a little takes to get there."""
    data = os.urandom(1 << 20)
    with tempfile.TemporaryFile(dir=place, buffering=0) as file:
        start = time.perf_counter()
        for _ in range(_PROBE_BYTES >> 20):
            file.write(data)
        os.fsync(file.fileno())
        rate = _PROBE_BYTES / (time.perf_counter() - start)
        start = time.perf_counter()
        for _ in range(_SYNCS):
            file.write(data[:4096])
            os.fsync(file.fileno())
        return rate, (time.perf_counter() - start) / _SYNCS


def _hash_rate() -> float:
    data = torch.zeros(8 << 20, dtype=torch.uint8).numpy().data
    start = time.perf_counter()
    hashlib.sha256(data)
    return len(data) / (time.perf_counter() - start)
