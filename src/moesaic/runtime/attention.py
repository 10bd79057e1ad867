"""Attention of single tokens on CPUs: torch's kernel, given its queries in a form that it is fast on.

With one query a head and bfloat16 or float16, torch's flash attention for CPUs multiplies vector by matrix in a slow
way: 1.8 ms a layer for 32 heads on 512 tokens, where the keys and values are 2 MB. The queries of all heads
that share keys and values are rows of one matrix, and with two rows or more it takes its fast way: 0.17 ms
(`docs/decisions/0013-attention-of-single-tokens.md`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "moesaic_sdpa"
_SLOW = (torch.bfloat16, torch.float16)
_OTHERS = ("position_bias", "softcap", "cache")  # what transformers may hand over, and only its own function knows


def attention(  # noqa: PLR0917 (the signature is that of transformers' interface)
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """What transformers calls `sdpa`, single tokens in half precision on CPUs in another form.

    Args:
        module: the attention module.
        query: `[batch, heads, tokens, size]`.
        key: `[batch, shared heads, keys, size]`.
        value: `[batch, shared heads, keys, value size]`.
        attention_mask: boolean or added to the scores, `[batch, 1 or heads, tokens, keys]`.
        dropout: of the probabilities.
        scaling: of the scores; one over the root of the size by default.
        more: see `transformers.integrations.sdpa_attention`.

    Returns:
        `[batch, tokens, heads, value size]`, and no probabilities.
    """
    batch, heads, tokens, size = query.shape
    shared = key.shape[1]
    known = dropout == 0 and all(more.get(name) is None for name in _OTHERS)
    if not (known and tokens == 1 and query.device.type == "cpu" and query.dtype in _SLOW and heads % shared == 0):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more
        )
    rows = query.reshape(batch, shared, heads // shared, size)
    if heads == shared:
        rows = rows.expand(batch, shared, 2, size)  # a second row, thrown away: one alone goes the slow way
    if attention_mask is not None and attention_mask.shape[1] == heads > 1:
        attention_mask = attention_mask.reshape(-1, shared, heads // shared, key.shape[2])
    found = functional.scaled_dot_product_attention(rows, key, value, attn_mask=attention_mask, scale=scaling)
    return found[:, :, : heads // shared].reshape(batch, 1, heads, value.shape[3]), None


def use(model: PreTrainedModel) -> None:
    """Let a model on the CPU attend in this way, where it would use torch's attention as it is."""
    if (
        model.device.type == "cpu"
        and model.config._attn_implementation == "sdpa"
        and model._can_set_attn_implementation()
    ):
        model.set_attn_implementation(NAME)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
