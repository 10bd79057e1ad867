"""Rounding with data, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import moesaic
from moesaic import CompressOptions
from moesaic.calibrate.activations import Shelf
from moesaic.calibrate.guide import CalibratedGuide
from moesaic.calibrate.moments import SHRINKAGE, sample_rows
from moesaic.calibrate.repair import RouterRepair
from moesaic.calibrate.store import Store
from moesaic.calibrate.stream import LayerStream
from moesaic.checkpoint.reader import Checkpoint
from moesaic.checkpoint.writer import split_into_shards
from moesaic.packing.build import PackedBuild
from moesaic.packing.job import PackingJob
from moesaic.quantize import GPTQ, RTN
from moesaic.records import BitPlan, LayerBits, QuantizedWeight, write_json
from tests.tiny import CONFIGS

FAMILIES = [name for name in CONFIGS if name != "switch_transformers"]

Tiny = Callable[[str], Path]


def tokens(rows: int = 4, length: int = 16) -> Tensor:
    return torch.randint(2, 128, (rows, length), generator=torch.Generator().manual_seed(5))


def plan_for(checkpoint: Checkpoint) -> BitPlan:
    widths = (1, 2, 3, 4, 8, 16, 2, 3)
    return BitPlan("by hand", None, {layer.name: LayerBits(widths, widths[::-1]) for layer in checkpoint.layers})


def pack(
    folder: Path, out: Path, quantizer, *, guided: bool, store: Store | None = None, **how
) -> CalibratedGuide | None:
    """Write the tensors of a packed model to `out.partial`."""
    checkpoint = Checkpoint.open(folder)
    build = PackedBuild(checkpoint, plan_for(checkpoint), quantizer, other_bits=4)
    shards = split_into_shards([specs for _, specs in build.units()], 1 << 30)
    job = PackingJob(out, shards, {}, overwrite=False)
    guide = None
    if guided:
        stream = LayerStream(checkpoint, tokens(), Shelf(out.with_name("scratch")))
        guide = CalibratedGuide(stream, quantizer, store or Store(), **how)
    try:
        build.run(job, guide=guide)
    finally:
        job.abandon()
    return guide


def written(out: Path) -> dict[str, Tensor]:
    return load_file(out.with_name(out.name + ".partial") / "out" / "model.safetensors")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_quantizer_without_data_gives_the_same_bytes_with_a_guide(family: str, tiny_checkpoint: Tiny, tmp_path: Path):
    """The guided road writes every tensor that the plain one writes, and the same."""
    folder, quantizer = tiny_checkpoint(family), RTN(group_size=32, symmetric=True)
    pack(folder, tmp_path / "plain", quantizer, guided=False)
    pack(folder, tmp_path / "guided", quantizer, guided=True)
    plain, guided = written(tmp_path / "plain"), written(tmp_path / "guided")
    assert plain.keys() == guided.keys()
    for name, tensor in plain.items():
        assert torch.equal(tensor, guided[name]), name


@dataclass
class Recorder:
    """Rounds like RTN and keeps the moments it is given."""

    needs_moment: ClassVar[bool] = True
    group_size: int = 32
    symmetric: bool = True

    def __post_init__(self) -> None:
        self.moments: list[tuple[tuple[int, ...], int, Tensor]] = []

    def __call__(self, weight: Tensor, bits: int, second_moment: Tensor | None = None) -> QuantizedWeight:
        assert second_moment is not None
        self.moments.append((tuple(weight.shape), bits, second_moment.clone()))
        return RTN(self.group_size, self.symmetric)(weight, bits)


def test_moments_are_those_of_inputs_through_the_rounded_layers(
    tiny_checkpoint: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second layer an expert's moment is that of the packed model's own hidden states, shrunk as documented."""
    monkeypatch.setenv("MOESAIC_KERNELS", "reference")  # the native ones round activations too
    folder = tiny_checkpoint("mixtral")
    recorder = Recorder()
    pack(folder, tmp_path / "guided", recorder, guided=True)
    checkpoint = Checkpoint.open(folder)
    write_json(tmp_path / "plan.json", plan_for(checkpoint).to_json())
    options = CompressOptions(plan=tmp_path / "plan.json", group_size=32, symmetric=True)
    moesaic.compress(folder, tmp_path / "packed", options)
    model = moesaic.load(tmp_path / "packed", dtype=torch.float32)
    given: list[Tensor] = []
    last = checkpoint.layers[-1]
    model.get_submodule(last.name).register_forward_pre_hook(lambda _, inputs: given.extend(inputs))
    with torch.inference_mode():
        model(input_ids=tokens(), use_cache=False)
    hidden, index = given[0].float(), given[1]
    stacked = (2 * last.intermediate, last.hidden)
    found = [moment for shape, _, moment in recorder.moments if shape == stacked]
    at_large = hidden[sample_rows(len(hidden))]
    at_large = at_large.T @ at_large / len(at_large)
    packed = [expert for expert, width in enumerate(plan_for(checkpoint).layers[last.name].gate_up) if width != 16]
    assert len(found) == 2 * len(packed)
    for expert, moment in zip(packed, found[len(packed) :], strict=True):
        own = hidden[(index == expert).any(dim=1)]
        wanted = (own.T @ own + SHRINKAGE * at_large) / (len(own) + SHRINKAGE)
        assert float((moment - wanted).norm() / wanted.norm()) < 2e-3


@pytest.mark.parametrize("how", [{"affinity": True}, {"all_experts": True}])
def test_knobs_change_the_moments(how: dict, tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    """Affinity and all-experts change what a quantizer with data is given, and nothing becomes infinite."""
    plain, changed = Recorder(), Recorder()
    pack(tiny_checkpoint("mixtral"), tmp_path / "plain", plain, guided=True)
    pack(tiny_checkpoint("mixtral"), tmp_path / "changed", changed, guided=True, **how)
    first, second = plain.moments[-1][2], changed.moments[-1][2]
    assert not torch.equal(first, second)
    assert bool(torch.isfinite(second).all())


class Cut(Exception):
    """Stands for the power cut."""


class CutStore(Store):
    """A store that stops after a number of layers."""

    left = 10**9

    def put(self, name: str, tensors: dict[str, Tensor]) -> None:
        if CutStore.left == 0:
            raise Cut
        CutStore.left -= 1
        super().put(name, tensors)


@pytest.mark.parametrize("repair", [False, True])
def test_a_run_that_stopped_goes_on_to_the_same_bytes(repair: bool, tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    """A run cut off after its first layer ends, when repeated, with the tensors of an undisturbed run."""
    folder, quantizer = tiny_checkpoint("qwen2_moe"), GPTQ(group_size=32, symmetric=True)
    make = (lambda: {"repair": RouterRepair()}) if repair else dict
    whole = pack(folder, tmp_path / "whole", quantizer, guided=True, store=Store(tmp_path / "a"), **make())
    CutStore.left = 1
    with pytest.raises(Cut):
        pack(folder, tmp_path / "cut", quantizer, guided=True, store=CutStore(tmp_path / "b"), **make())
    CutStore.left = 10**9
    again = pack(folder, tmp_path / "cut", quantizer, guided=True, store=CutStore(tmp_path / "b"), **make())
    wanted, found = written(tmp_path / "whole"), written(tmp_path / "cut")
    for name, tensor in wanted.items():
        assert torch.equal(tensor, found[name]), name
    assert (whole.rare, whole.changed) == (again.rare, again.changed)
    assert bool(whole.changed) == repair
