"""How large a model is: its routed experts, and the whole folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic.checkpoint.reader import Checkpoint
from moesaic.errors import CorruptFile
from moesaic.packing.job import MANIFEST
from moesaic.packing.manifest import read_manifest
from moesaic.records import STORED_WIDTH


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model folder.

    Attributes:
        code_bits: average code bits of a routed expert's weight, in the papers' sense.
        stored_bpw: bytes on disk of the routed experts' weights with all metadata, times 8, over their number.
        expert_bytes: these bytes.
        expert_weights: their number.
        total_bytes: manifest and all files that it names (not records that were saved beside them); the tensors' files
            of a folder that is not packed.
    """

    code_bits: float
    stored_bpw: float
    expert_bytes: int
    expert_weights: int
    total_bytes: int


def measure_sizes(folder: Path, *, trust_remote_code: bool = False) -> Sizes:
    """Sizes of a packed folder, or of an ordinary checkpoint.

    Raises:
        MoesaicError: neither of the two, or a damaged manifest.
    """
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder)
        absent = [key for key in ("code_bits", "stored_bpw", "expert_bytes", "expert_weights") if key not in manifest]
        if absent:
            raise CorruptFile(f'{folder / MANIFEST}: no "{absent[0]}"; the manifest is damaged, copy it again')
        return Sizes(
            code_bits=manifest["code_bits"],
            stored_bpw=manifest["stored_bpw"],
            expert_bytes=manifest["expert_bytes"],
            expert_weights=manifest["expert_weights"],
            total_bytes=sum(path.stat().st_size for path in _own_files(folder, manifest)),
        )
    checkpoint = Checkpoint.open(folder, trust_remote_code=trust_remote_code)
    weights = size = 0
    for layer in checkpoint.layers:
        weights += layer.experts * layer.shape.expert_weights
        itemsize = checkpoint.parameter_shape_and_dtype(layer.parameters()[0])[1].itemsize
        size += layer.experts * layer.shape.expert_weights * itemsize
    files = {stored.path for stored in checkpoint.stored.values()}
    total = sum(path.stat().st_size for path in files)
    return Sizes(float(STORED_WIDTH), 8 * size / weights, size, weights, total)


def _own_files(folder: Path, manifest: Mapping[str, Any]) -> list[Path]:
    """The manifest and the files that it names, so far as they are there."""
    named = [folder / name for name in (MANIFEST, *manifest["files"])]
    return [path for path in named if path.is_file()]
