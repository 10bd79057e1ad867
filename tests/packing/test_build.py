"""From a checkpoint and a plan to packed tensors, checked with the naive decoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from moesaic.checkpoint.reader import Checkpoint
from moesaic.checkpoint.writer import split_into_shards
from moesaic.errors import CorruptFile
from moesaic.packing.build import PackedBuild
from moesaic.packing.job import PackingJob
from moesaic.quantize import RTN
from moesaic.records import BitPlan, LayerBits, write_json
from tests.checkpoint.raw import change
from tests.oracles.format_v1 import PackedFolder

Make = Callable[[str], Path]
QUICK = RTN(group_size=32, clip=False)
MIXED = LayerBits((1, 2, 3, 4, 8, 16, 2, 2), (8, 16, 1, 2, 3, 4, 16, 2))
SAME = LayerBits((2,) * 8, (2,) * 8)
STORED = LayerBits((16,) * 8, (16,) * 8)
FAMILIES = ["mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "switch_transformers"]


class Counted:
    """Progress that adds up."""

    def __init__(self) -> None:
        self.total = self.done = 0

    def start(self, what: str, total: int) -> None:
        """Work begins."""
        self.total = total

    def advance(self, steps: int) -> None:
        """Steps done."""
        self.done += steps


def prepare(folder: Path, bits: LayerBits | list[LayerBits], other: int = 4) -> PackedBuild:
    """A build with those widths in every layer, or layer by layer."""
    checkpoint = Checkpoint.open(folder)
    each = bits if isinstance(bits, list) else [bits] * len(checkpoint.layers)
    plan = BitPlan("test", None, {layer.name: one for layer, one in zip(checkpoint.layers, each, strict=True)})
    return PackedBuild(checkpoint, plan, QUICK, other_bits=other)


def write(build: PackedBuild, target: Path, shard_bytes: int = 10**9) -> Counted:
    """Run the build into a published folder."""
    counted = Counted()
    shards = split_into_shards([specs for _, specs in build.units()], shard_bytes)
    job = PackingJob(target, shards, {}, overwrite=False)
    try:
        build.run(job, counted)
    except BaseException:
        job.abandon()
        raise
    job.close_files()
    job.write_index()
    write_json(job.out / "config.json", build.config())
    job.publish()
    return counted


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bits", [MIXED, SAME], ids=["mixed", "same"])
def test_every_expert_lies_where_the_page_says(
    tiny_checkpoint: Make, tmp_path: Path, family: str, bits: LayerBits
) -> None:
    """The naive decoder finds, for every expert, what the quantizer made of the source's matrices; biases too."""
    build = prepare(tiny_checkpoint(family), bits)
    write(build, tmp_path / "out")
    packed = PackedFolder(tmp_path / "out")
    layer = build.checkpoint.layers[-1]
    shapes = {role: (rows, columns) for role, rows, columns in layer.matrices}
    for expert in range(layer.experts):
        source = build.checkpoint.expert(layer, expert)
        first = [role for role in ("gate", "up") if role in shapes]
        for entry, roles in (("gate_up", first), ("down", ["down"])):
            found = packed.entry(layer.name, entry, expert, [shapes[role] for role in roles])
            for role, matrix in zip(roles, found, strict=True):
                original = source.matrices()[role]
                width = bits.entry(entry)[expert]
                wanted = original.float() if width == 16 else QUICK(original, width).dequantize()
                assert np.array_equal(matrix, wanted.numpy()), (expert, role)
        for role, bias in source.biases().items():
            assert np.array_equal(packed.tensor(f"{layer.name}.{role}_bias")[expert], bias.float().numpy())


@pytest.mark.parametrize("family", FAMILIES)
def test_other_tensors_and_linears(tiny_checkpoint: Make, tmp_path: Path, family: str) -> None:
    """Linear layers are packed at their width; routers, norms, embeddings and the head are the source's bits."""
    build = prepare(tiny_checkpoint(family), SAME)
    write(build, tmp_path / "out")
    packed = PackedFolder(tmp_path / "out")
    held = load_file(tmp_path / "out" / "model.safetensors")
    for name in build.checkpoint.linears:
        weight = build.checkpoint.parameter(f"{name}.weight")
        assert np.array_equal(packed.linear(name, *weight.shape), QUICK(weight, 4).dequantize().numpy())
        assert f"{name}.weight" not in held
    for source in build.checkpoint.other_sources():
        for name, tensor in build.checkpoint.parameters_of(source).items():
            if name not in build.linears:
                assert torch.equal(held[name], tensor)
    assert all(torch.equal(held[layer.router].float(), build.checkpoint.router(layer)) for layer in build.packed_layers)


@pytest.mark.parametrize("family", FAMILIES)
def test_sixteen_bits_keep_the_layers_own_tensors(tiny_checkpoint: Make, tmp_path: Path, family: str) -> None:
    """A layer of width 16 throughout is left as the module has it: nothing of it is packed."""
    build = prepare(tiny_checkpoint(family), STORED, other=16)
    write(build, tmp_path / "out")
    held = load_file(tmp_path / "out" / "model.safetensors")
    assert not any(tensor.dtype == torch.uint8 for tensor in held.values())
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["experts"] == {}
    assert config["linears"]["modules"] == []
    for layer in build.checkpoint.layers:
        for name in layer.parameters():
            assert torch.equal(held[name], build.checkpoint.parameter(name))


@pytest.mark.parametrize("family", FAMILIES)
def test_expert_bytes_are_those_on_disk(tiny_checkpoint: Make, tmp_path: Path, family: str) -> None:
    """The count behind `stored_bpw` is what the file holds, biases and the marker left out."""
    checkpoint = Checkpoint.open(tiny_checkpoint(family))
    bits = [MIXED if i % 2 == 0 else STORED for i in range(len(checkpoint.layers))]
    build = prepare(tiny_checkpoint(family), bits)
    write(build, tmp_path / "out")
    held = load_file(tmp_path / "out" / "model.safetensors")
    wanted = 0
    for layer, one in zip(build.checkpoint.layers, bits, strict=True):
        names = [f"{layer.name}.{entry}.b{width}" for entry in ("gate_up", "down") for width in set(one.entry(entry))]
        if one == STORED:
            names = [name for name in layer.parameters() if not name.endswith("bias")]
        wanted += sum(held[name].numel() * held[name].element_size() for name in names)
    assert build.expert_bytes() == wanted


def test_config_names_widths_and_modules(tiny_checkpoint: Make) -> None:
    """`quantization_config` says all that a reader needs, and the source's settings stay."""
    build = prepare(tiny_checkpoint("qwen3_moe"), MIXED)
    config = build.config()
    quantization = config.pop("quantization_config")
    assert config == json.loads((tiny_checkpoint("qwen3_moe") / "config.json").read_text())
    assert quantization["quant_method"] == "moesaic"
    assert quantization["experts"]["model.layers.1.mlp.experts"]["down"] == "8 16 1 2 3 4 16 2"
    assert (quantization["group_size"], quantization["symmetric"]) == (32, False)
    assert "model.layers.0.mlp.down_proj" in quantization["linears"]["modules"]
    untouched = quantization["modules_to_not_convert"]
    assert {"lm_head", "model.layers.1.mlp.gate", "model.embed_tokens"} <= set(untouched)
    assert not set(untouched) & set(quantization["linears"]["modules"])
    json.dumps(quantization)


@pytest.mark.parametrize("family", FAMILIES)
def test_progress_ends_at_its_total(tiny_checkpoint: Make, tmp_path: Path, family: str) -> None:
    """The steps add up, also in a run that finds everything done."""
    for bits in (MIXED, STORED):
        counted = write(prepare(tiny_checkpoint(family), bits), tmp_path / f"out{bits.gate_up[0]}")
        assert counted.done == counted.total > 0


def test_every_tensor_is_written_once_in_a_unit_of_its_own(tiny_checkpoint: Make) -> None:
    """Units have names of their own and share no tensor: that is what the journal relies on."""
    for family in FAMILIES:
        units = prepare(tiny_checkpoint(family), MIXED).units()
        names = [spec.name for _, specs in units for spec in specs]
        assert len(names) == len(set(names))
        assert len({name for name, _ in units}) == len(units)


def test_shards_and_threads_change_no_tensor(tiny_checkpoint: Make, tmp_path: Path) -> None:
    """Many small files hold the same tensors as one, whatever the number of threads."""
    write(prepare(tiny_checkpoint("mixtral"), MIXED), tmp_path / "one")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        write(prepare(tiny_checkpoint("mixtral"), MIXED), tmp_path / "many", shard_bytes=50_000)
    finally:
        torch.set_num_threads(threads)
    files = list((tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 2
    held = {name: tensor for path in files for name, tensor in load_file(path).items()}
    wanted = load_file(tmp_path / "one" / "model.safetensors")
    assert set(held) == set(wanted)
    assert all(torch.equal(held[name], tensor) for name, tensor in wanted.items())


def test_digests_cover_every_tensor_of_the_source(tiny_checkpoint: Make, tmp_path: Path) -> None:
    """The digest of the inputs speaks of every tensor of the checkpoint."""
    build = prepare(tiny_checkpoint("mixtral"), SAME)
    job = PackingJob(tmp_path / "out", [[spec for _, specs in build.units() for spec in specs]], {}, overwrite=False)
    build.run(job)
    assert set(job.digests) == set(load_file(tiny_checkpoint("mixtral") / "model.safetensors"))
    job.abandon()


def test_nan_in_an_expert_stops_the_build(own_checkpoint: Make, tmp_path: Path) -> None:
    """NaN names file and tensor, and nothing appears under the target's name."""
    folder = own_checkpoint("mixtral")
    weight = torch.full((64, 96), float("nan"), dtype=torch.bfloat16)
    change(folder, model__layers__1__block_sparse_moe__experts__7__w2__weight=weight)
    with pytest.raises(CorruptFile, match=r"experts.7.w2.weight holds 6144 NaN"):
        write(prepare(folder, SAME), tmp_path / "out")
    assert not (tmp_path / "out").exists()
