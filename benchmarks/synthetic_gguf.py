"""GGUF files with the dimensions of real models and random weights, for timing llama.cpp and its forks.

The experts are of the type asked for: random blocks, whose scales are set so that the weights have a mean of zero and a
sensible size. (Random scales would be NaN or infinite, the router would then see NaN and send every token to the same
experts, which would be read from the cache.) Everything else is Q8_0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize

HEAD_WIDTH = 128
TARGET_RMS = 0.02  # of all weights
SAMPLE_BLOCKS = 512


@dataclass(frozen=True)
class Blocks:
    """Where a type keeps the float16 numbers that all weights of a block are multiplied with.

    Attributes:
        scale: byte offset of the scale; None for IQ1_M, which scatters its bits.
        minimum: byte offset of the scale of what is subtracted, for types that subtract something.
    """

    scale: int | None
    minimum: int | None = None


TYPES = {
    Type.Q4_0: Blocks(0),
    Type.Q8_0: Blocks(0),
    Type.Q2_K: Blocks(80, 82),
    Type.Q3_K: Blocks(108),
    Type.Q4_K: Blocks(0, 2),
    Type.IQ1_S: Blocks(0),
    Type.IQ1_M: Blocks(None),
    Type.IQ2_XXS: Blocks(0),
    Type.IQ2_XS: Blocks(0),
    Type.IQ3_XXS: Blocks(0),
    Type.TQ1_0: Blocks(52),
    Type.TQ2_0: Blocks(64),
}


@dataclass(frozen=True)
class Shape:
    """A model of a few layers.

    Attributes:
        architecture: llama.cpp's name: `"llama"` (Mixtral) or `"qwen3moe"`.
        experts: 0 for a model without expert layers, which has a dense one of 32 in their place.
    """

    architecture: str
    hidden: int
    intermediate: int
    experts: int
    top_k: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int = 1024

    def without_experts(self) -> Shape:
        """The same model with next to nothing where the experts were: what to subtract."""
        return replace(self, architecture="llama", experts=0, top_k=0, intermediate=32)


def bits_per_weight(kind: Type) -> float:
    """Stored bits of a weight."""
    weights, size = gguf.GGML_QUANT_SIZES[kind]
    return 8 * size / weights


def random_blocks(kind: Type, count: int, random: np.random.Generator) -> np.ndarray:
    """`[count, bytes of a block]` uint8: weights of mean about 0 and size about `TARGET_RMS`."""
    size = gguf.GGML_QUANT_SIZES[kind][1]
    blocks = random.integers(0, 256, (count, size), dtype=np.uint8)
    if kind == Type.TQ2_0:  # a ternary code of two bits is never 3
        blocks[:, :64] &= ~((blocks[:, :64] << 1) & blocks[:, :64] & 0xAA)
    sample = blocks[:SAMPLE_BLOCKS].copy()
    values = _values(kind, sample, 1.0, 0.0)
    ratio = 0.0
    if TYPES[kind].minimum is not None:
        ratio = float(values.mean() / -_values(kind, sample, 0.0, 1.0).mean())
        values = _values(kind, sample, 1.0, ratio)
    scale = TARGET_RMS / float(np.sqrt(np.square(values, dtype=np.float64).mean()))
    _set_scales(kind, blocks, scale, ratio * scale)
    return blocks


def _values(kind: Type, blocks: np.ndarray, scale: float, minimum: float) -> np.ndarray:
    _set_scales(kind, blocks, scale, minimum)
    return dequantize(blocks, kind)


def _set_scales(kind: Type, blocks: np.ndarray, scale: float, minimum: float) -> None:
    where = TYPES[kind]
    if where.scale is None:
        _scatter_scale(blocks, scale)
        return
    blocks[:, where.scale : where.scale + 2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
    if where.minimum is not None:
        blocks[:, where.minimum : where.minimum + 2] = np.frombuffer(np.float16(minimum).tobytes(), np.uint8)


def _scatter_scale(blocks: np.ndarray, scale: float) -> None:
    """IQ1_M: four bits of the scale on top of each of the four words of local scales, which are the last 8 bytes."""
    word = int(np.float16(scale).view(np.uint16))
    for place in range(4):
        high = 48 + 2 * place + 1
        blocks[:, high] = (blocks[:, high] & 0x0F) | ((word >> 4 * place & 0xF) << 4)


def write(path: Path, shape: Shape, kind: Type) -> None:
    """Write the model.

    Args:
        path: of the new file.
        shape: its dimensions; hidden and intermediate must be multiples of the type's block.
        kind: type of the experts.
    """
    writer = gguf.GGUFWriter(path, shape.architecture)
    _add_header(writer, shape)
    random = np.random.default_rng(0)
    for name, size in _dense_tensors(shape):
        values = random.standard_normal(size, dtype=np.float32) * TARGET_RMS
        if len(size) == 1:
            writer.add_tensor(name, np.ones(size, np.float32))
        elif "ffn_gate_inp" in name:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, quantize(values, Type.Q8_0), raw_dtype=Type.Q8_0)
    for name, size in _expert_tensors(shape):
        weights, block = gguf.GGML_QUANT_SIZES[kind]
        blocks = random_blocks(kind, int(np.prod(size)) // weights, random)
        writer.add_tensor(name, blocks.reshape(*size[:-1], size[-1] // weights * block), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_header(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_block_count(shape.layers)
    writer.add_context_length(4096)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.key_value_heads)
    writer.add_key_length(HEAD_WIDTH)
    writer.add_value_length(HEAD_WIDTH)
    writer.add_rope_dimension_count(HEAD_WIDTH)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_tokenizer_model("no_vocab")
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(shape.top_k)
        writer.add_expert_feed_forward_length(shape.intermediate)


def _dense_tensors(shape: Shape) -> list[tuple[str, tuple[int, ...]]]:
    hidden = shape.hidden
    tensors: list[tuple[str, tuple[int, ...]]] = [
        ("token_embd.weight", (shape.vocabulary, hidden)),
        ("output_norm.weight", (hidden,)),
        ("output.weight", (shape.vocabulary, hidden)),
    ]
    for layer in range(shape.layers):
        sizes: dict[str, tuple[int, ...]] = {
            "attn_norm": (hidden,),
            "attn_q": (shape.heads * HEAD_WIDTH, hidden),
            "attn_k": (shape.key_value_heads * HEAD_WIDTH, hidden),
            "attn_v": (shape.key_value_heads * HEAD_WIDTH, hidden),
            "attn_output": (hidden, shape.heads * HEAD_WIDTH),
            "ffn_norm": (hidden,),
        }
        if shape.architecture == "qwen3moe":
            sizes |= {"attn_q_norm": (HEAD_WIDTH,), "attn_k_norm": (HEAD_WIDTH,)}
        if shape.experts:
            sizes["ffn_gate_inp"] = (shape.experts, hidden)
        else:
            small = shape.intermediate
            sizes |= {"ffn_gate": (small, hidden), "ffn_up": (small, hidden), "ffn_down": (hidden, small)}
        tensors += [(f"blk.{layer}.{name}.weight", size) for name, size in sizes.items()]
    return tensors


def _expert_tensors(shape: Shape) -> list[tuple[str, tuple[int, ...]]]:
    if not shape.experts:
        return []
    wide, tall = (shape.experts, shape.intermediate, shape.hidden), (shape.experts, shape.hidden, shape.intermediate)
    names = {"ffn_gate_exps": wide, "ffn_up_exps": wide, "ffn_down_exps": tall}
    return [(f"blk.{layer}.{name}.weight", size) for layer in range(shape.layers) for name, size in names.items()]
