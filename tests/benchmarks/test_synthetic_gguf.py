"""The GGUF files that llama.cpp is timed with, read back with the format's own library."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from benchmarks.synthetic_gguf import TARGET_RMS, TYPES, Shape, bits_per_weight, random_blocks, write
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize

SHAPE = Shape("qwen3moe", hidden=256, intermediate=512, experts=4, top_k=2, layers=2, heads=2, key_value_heads=1)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_random_blocks_are_weights_of_a_sensible_size(kind: Type) -> None:
    """Every weight is finite, their mean is near zero and their size the wanted one: the router stays awake."""
    blocks = random_blocks(kind, 1500, np.random.default_rng(1))
    assert blocks.shape[1] * 8 / gguf.GGML_QUANT_SIZES[kind][0] == bits_per_weight(kind)
    values = dequantize(blocks, kind).astype(np.float64)
    assert np.isfinite(values).all()
    assert np.sqrt((values**2).mean()) == pytest.approx(TARGET_RMS, rel=0.1)
    assert abs(values.mean()) < 0.2 * TARGET_RMS
    assert len(np.unique(blocks, axis=0)) == 1500


@pytest.mark.parametrize("kind", [Type.Q2_K, Type.IQ1_M])
def test_the_file_holds_the_model(kind: Type, tmp_path: Path) -> None:
    """Names, shapes and types of all tensors, and the numbers that llama.cpp builds the model from."""
    path = tmp_path / "model.gguf"
    write(path, SHAPE, kind)
    reader = gguf.GGUFReader(path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == 3 + 2 * (6 + 2 + 1 + 3)
    up, down = tensors["blk.1.ffn_up_exps.weight"], tensors["blk.0.ffn_down_exps.weight"]
    assert up.tensor_type == down.tensor_type == kind
    assert up.shape.tolist() == [256, 512, 4]  # GGUF counts from the innermost
    assert down.shape.tolist() == [512, 256, 4]
    assert np.isfinite(dequantize(np.array(down.data), kind)).all()
    assert tensors["blk.0.ffn_gate_inp.weight"].tensor_type == Type.F32
    assert tensors["blk.0.attn_q.weight"].tensor_type == Type.Q8_0
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "qwen3moe"
    assert fields["qwen3moe.expert_count"] == 4
    assert fields["qwen3moe.expert_used_count"] == 2
    assert fields["qwen3moe.block_count"] == 2


def test_the_model_without_experts_is_a_plain_one(tmp_path: Path) -> None:
    """What is subtracted has the same attention, and a feed-forward layer of next to nothing."""
    path = tmp_path / "model.gguf"
    write(path, SHAPE.without_experts(), Type.Q8_0)
    reader = gguf.GGUFReader(path)
    names = {tensor.name for tensor in reader.tensors}
    assert "blk.1.ffn_up.weight" in names
    assert not any("exps" in name or "inp" in name for name in names)
    assert "llama.expert_count" not in reader.fields
