"""Write `samples/v1/`: `PYTHONPATH=src:. python -m tests.packing.make_sample`.

Run once for each version of the format; the folder then stays as it is, since it has to load forever.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

from moesaic.options import CompressOptions
from moesaic.packing.manifest import read_manifest
from moesaic.pipeline import compress
from tests.oracles.format_v1 import PackedFolder
from tests.packing.sample_model import EXPERTS, HIDDEN, INTERMEDIATE, LAYER, LINEARS, PLAN, SAMPLE, save_sample_source


def matrices(folder: Path) -> dict[str, str]:
    """SHA-256 of every dequantized matrix (float32, row by row), as the naive decoder reads it."""
    packed, found = PackedFolder(folder), {}
    for expert in range(EXPERTS):
        first = packed.entry(LAYER, "gate_up", expert, [(INTERMEDIATE, HIDDEN)] * 2)
        down = packed.entry(LAYER, "down", expert, [(HIDDEN, INTERMEDIATE)])
        for role, matrix in zip(("gate", "up", "down"), [*first, *down], strict=True):
            found[f"{expert}.{role}"] = hashlib.sha256(matrix.astype("<f4").tobytes()).hexdigest()
    for name, shape in LINEARS.items():
        matrix = packed.linear(f"model.layers.0.self_attn.{name}", *shape)
        found[name] = hashlib.sha256(matrix.astype("<f4").tobytes()).hexdigest()
    return found


def main() -> None:
    """Make the folder anew, with the checksums that it must give forever."""
    with tempfile.TemporaryDirectory() as scratch:
        source = save_sample_source(Path(scratch) / "tiny-mixtral")
        plan = Path(scratch) / "plan.json"
        plan.write_text(json.dumps(PLAN.to_json()))
        out = compress(source, Path(scratch) / "out", CompressOptions(plan=plan))
        shutil.rmtree(SAMPLE, ignore_errors=True)
        shutil.copytree(out, SAMPLE)
    SAMPLE.with_name("v1.sha256.json").write_text(json.dumps(matrices(SAMPLE), indent=1) + "\n")
    print(f"{SAMPLE}: {read_manifest(SAMPLE)['total_bytes']} bytes")


if __name__ == "__main__":
    main()
