"""The short measurement before a long run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from moesaic.checkpoint.reader import Checkpoint
from moesaic.options import CompressOptions
from moesaic.packing.build import PackedBuild
from moesaic.pipeline import make_plan
from moesaic.planning.machine import peak_memory
from moesaic.planning.rehearsal import rehearse
from moesaic.records import BitPlan, LayerBits


def build_of(folder: Path, plan: BitPlan | None = None, **options: object) -> PackedBuild:
    """A packed model to be, of a plan or of 2.5 bits."""
    made = CompressOptions(**{"bits": 2.5, **options})  # type: ignore[arg-type]
    checkpoint = Checkpoint.open(folder)
    return PackedBuild(
        checkpoint, plan or make_plan(checkpoint, made)[1], made.make_quantizer(), other_bits=made.other_bits
    )


def test_one_sample_of_every_form(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """An expert of each combination of widths and one linear layer are made; nothing stays on the disk."""
    layers = {
        "model.layers.0.mlp.experts": LayerBits((1, 2, 3, 4, 8, 16, 1, 1), (1, 2, 3, 4, 8, 16, 1, 2)),
        "model.layers.1.mlp.experts": LayerBits((1,) * 8, (1,) * 8),
    }
    build = build_of(tiny_checkpoint("mixtral"), BitPlan("by hand", None, layers))
    found = rehearse(build, tmp_path)
    assert found.samples == 7 + 1
    assert found.peak_bytes <= peak_memory()
    assert min(found.round_seconds, found.read_rate, found.write_rate, found.hash_rate, found.sync_seconds) > 0
    assert list(tmp_path.iterdir()) == []
    # only the largest sample is due when no time is given
    assert rehearse(build, tmp_path, seconds=0).samples == 1 + 1


def test_nothing_to_pack(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """A run that leaves everything as it is has no rounding to measure."""
    found = rehearse(build_of(tiny_checkpoint("gpt_oss"), bits=16, other_bits=16), tmp_path)
    assert (found.samples, found.round_seconds) == (0, 0)


def test_samples_are_what_the_run_writes(tiny_checkpoint: Callable[[str], Path]) -> None:
    """A sample is made by the same steps as the real thing: it has the bytes of the layout, and is packed."""
    build = build_of(tiny_checkpoint("mixtral"), bits=2, allocator="uniform")
    (layer, *_) = build.checkpoint.layers
    sizes = [spec.size // layer.experts for unit, specs in build.units() if unit == layer.name for spec in specs][:2]
    ((expert, _, data),) = build.make_experts(layer, [3])
    assert (expert, [each.numel() for each in data]) == (3, sizes)
    name = next(iter(build.linears))
    assert build.make_linear(name).dtype == torch.uint8
