"""How large the key-value cache of a model gets, from its configuration: what transformers' own cache holds.

Layers of full attention keep keys and values of every token, layers with a window those of its length. With multi-head
latent attention (DeepSeek) one latent vector and one rotary part stand for the keys and values of all heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class KvCache:
    """Bytes of the cache for one sequence.

    Attributes:
        size: of all layers.
        source: the formula, with its numbers.
    """

    size: int
    source: str


def kv_cache(config: Any, context: int) -> KvCache | None:
    """The cache for one sequence of `context` tokens.

    Args:
        config: transformers' configuration of the model.
        context: tokens.

    Returns:
        None where a layer is of a kind whose state is not known here, such as a recurrent one.
    """
    text = config.get_text_config(decoder=True)
    item = _itemsize(text, config)
    lengths = _lengths(text, context)
    if lengths is None:
        return None
    tokens = sum(lengths) * (2 if config.is_encoder_decoder else 1)  # one cache more, of what the encoder read
    if getattr(text, "kv_lora_rank", None):
        latent, rotary = text.kv_lora_rank, text.qk_rope_head_dim
        source = f"latent vectors: {len(lengths)} layers x ({latent} + {rotary}) x {item} bytes a token"
        return KvCache((latent + rotary) * item * tokens, source)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    told = getattr(text, "head_dim", None) or getattr(text, "d_kv", None)
    size = told or text.hidden_size // text.num_attention_heads
    source = f"keys and values: {len(lengths)} layers x 2 x {heads} heads x {size} x {item} bytes a token"
    windows = sum(length < context for length in lengths)
    if windows:
        source += f"; {windows} layers keep their last {min(lengths)} tokens"
    if config.is_encoder_decoder:
        source += "; the same again for what the encoder read"
    return KvCache(2 * heads * size * item * tokens, source)


def _lengths(text: Any, context: int) -> list[int] | None:
    """How many tokens each layer's cache holds."""
    count = getattr(text, "num_decoder_layers", None) or text.num_hidden_layers
    kinds = getattr(text, "layer_types", None)
    if kinds is None:
        window = getattr(text, "sliding_window", None)
        if window and getattr(text, "use_sliding_window", True):
            return [min(context, int(window))] * count
        return [context] * count
    windows = {
        "full_attention": context,
        "sliding_attention": min(context, getattr(text, "sliding_window", None) or context),
        "chunked_attention": min(context, getattr(text, "attention_chunk_size", None) or context),
    }
    if any(kind not in windows for kind in kinds):
        return None
    return [windows[kind] for kind in kinds[:count]]


def _itemsize(text: Any, config: Any) -> int:
    dtype = getattr(text, "dtype", None) or getattr(config, "dtype", None)
    return dtype.itemsize if isinstance(dtype, torch.dtype) else torch.bfloat16.itemsize
