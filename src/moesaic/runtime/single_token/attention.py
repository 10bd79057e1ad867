"""Attention of single tokens on CPUs: natively, where torch is slow or takes twenty operations.

Two ways in. The function `moesaic_sdpa` stands in transformers' table of attention functions, and every architecture
that would use `sdpa` calls it (`docs/decisions/0013-attention-of-single-tokens.md`). Attention modules that are known
go further: queries, keys and values are one product, their norms and the rotary embedding one operation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from moesaic.kernels.single_token import attend, linears, rotate
from moesaic.runtime.linear import PackedLinear
from moesaic.runtime.single_token.cache import with_room
from moesaic.runtime.single_token.known import adopt
from moesaic.runtime.single_token.native import HALF, is_open, is_watched, setting
from moesaic.runtime.single_token.norm import NativeNorm, epsilon_of

NAME = "moesaic_sdpa"
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
    """What transformers calls `sdpa`, natively for single tokens in half precision on CPUs.

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
    known = dropout == 0 and all(more.get(name) is None for name in _OTHERS)
    if not (known and tokens == 1 and query.device.type == "cpu" and query.dtype in HALF and heads % key.shape[1] == 0):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more
        )
    if not (is_open(query) and is_plain(attention_mask)):
        return _as_rows(query, key, value, attention_mask, scaling), None
    seen = None if attention_mask is None else attention_mask[:, 0, 0].expand(batch, -1)
    found = attend(query, key, value, size**-0.5 if scaling is None else scaling, seen)
    return found.view(batch, 1, heads, value.shape[3]), None


def _as_rows(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """By torch, given its queries in a form that it is fast on: those that share keys are rows of one matrix."""
    batch, heads, _, size = query.shape
    shared = key.shape[1]
    rows = query.reshape(batch, shared, heads // shared, size)
    if heads == shared:
        rows = rows.expand(batch, shared, 2, size)  # a second row, thrown away: one alone goes the slow way
    if mask is not None and mask.shape[1] == heads > 1:
        mask = mask.reshape(-1, shared, heads // shared, key.shape[2])
    found = functional.scaled_dot_product_attention(rows, key, value, attn_mask=mask, scale=scaling)
    return found[:, :, : heads // shared].reshape(batch, 1, heads, value.shape[3])


def is_plain(mask: Tensor | None) -> bool:
    """Whether a mask only says which keys are seen, the same for all heads."""
    return mask is None or (mask.dtype == torch.bool and mask.shape[1] == 1)


@dataclass(frozen=True)
class Form:
    """Of an attention module.

    Attributes:
        norms: of queries and keys: of each `"head"`, of all heads together (`"whole"`), or none.
        norms_if: the module's attribute that says whether there are any; by default there are.
        clips: the entry of the configuration that bounds queries, keys and values; native where it is None.
    """

    norms: str | None = None
    norms_if: str | None = None
    clips: str | None = None


KNOWN = {
    "8c9dd1209d30": Form(),  # Mixtral, MiniMax
    "38d91f8a29a6": Form(),  # Qwen2Moe, Phimoe, GraniteMoe, SolarOpen
    "82d00867fb58": Form("head"),  # Qwen3Moe, Dots1, Qwen3OmniMoe
    "bbeac6d8ee9d": Form("head"),  # Qwen3VLMoe
    "6d5b72afcaac": Form("head", norms_if="use_qk_norm"),  # Glm4Moe
    "75a5cdc9d44f": Form("whole", clips="clip_qkv"),  # Olmoe
    "cca081488be5": Form("whole"),  # FlexOlmo
    "6206f42a8beb": Form("whole"),  # MiniMaxM2
}


class NativeAttention(nn.Module):
    """An attention module with matrices `q_proj`, `k_proj`, `v_proj`, `o_proj` and rotary embedding of halves."""

    known: Form
    head_dim: int

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """`[batch, tokens, hidden]` -> the same, and what the attention function says besides."""
        if args or hidden_states.shape[1] != 1 or not is_open(hidden_states) or not self.is_native(kwargs):
            return super().forward(hidden_states, *args, **kwargs)  # type: ignore[misc, no-any-return]
        return self._attend(hidden_states, **kwargs)

    def is_native(self, given: dict[str, Any]) -> bool:
        """Whether a token with these arguments of `forward` goes the native way."""
        return (
            given.get("position_embeddings") is not None
            and self.is_asked()
            and not self.clips_now()
            and (self.norms_in_use() != "head" or self._has_native_norms())
        )

    def clips_now(self) -> bool:
        """Whether queries, keys and values are bounded, which the native code does not do."""
        module: Any = self
        return self.known.clips is not None and getattr(module.config, self.known.clips) is not None

    def is_asked(self) -> bool:
        """Whether the configuration (still) asks for the attention of this file."""
        module: Any = self
        return bool(setting(module.config, "_attn_implementation_internal") == NAME)

    def norms_in_use(self) -> str | None:
        """What queries and keys are normalised by: see `Form.norms`."""
        asks = self.known.norms_if
        return self.known.norms if asks is None or getattr(self, asks) else None

    def _has_native_norms(self) -> bool:
        norms = (self._modules["q_norm"], self._modules["k_norm"])
        return isinstance(norms[0], NativeNorm) and not is_watched(*norms)

    def _attend(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        module: Any = self
        inside: Any = self._modules  # a fifth of the time of asking the module for them
        batch, size = hidden_states.shape[0], self.head_dim
        queries, keys, values = _project(hidden_states, inside["q_proj"], inside["k_proj"], inside["v_proj"])
        norms = self.norms_in_use()
        if norms == "head":
            of_queries, of_keys = inside["q_norm"], inside["k_norm"]
            weights = (of_queries.weight, of_keys.weight)
            epsilon, offset = epsilon_of(of_queries), of_queries.known.offset
            rotate(queries, keys, *position_embeddings, *weights, size=size, epsilon=epsilon, offset=offset)
        else:
            if norms == "whole":
                queries, keys = inside["q_norm"](queries), inside["k_norm"](keys)
            rotate(queries, keys, *position_embeddings, size=size)
        keys, values = keys.view(batch, -1, 1, size), values.view(batch, -1, 1, size)
        if past_key_values is not None:
            with_room(past_key_values, module.layer_idx)
            keys, values = past_key_values.update(keys, values, module.layer_idx)
        dropout = module.attention_dropout if self.training else 0.0
        given = {"dropout": dropout, "scaling": module.scaling, **kwargs}
        found, shares = attention(self, queries.view(batch, -1, 1, size), keys, values, attention_mask, **given)
        return inside["o_proj"](found.reshape(batch, 1, -1)), shares


def _project(x: Tensor, q: Any, k: Any, v: Any) -> list[Tensor]:
    """Queries, keys and values, `[batch, 1, heads * size]`, in memory of their own."""
    if type(q) is type(k) is type(v) is PackedLinear and not is_watched(q, k, v):
        a, b, c = q.layout, k.layout, v.layout
        if a.bits == b.bits == c.bits and a.group_size == b.group_size == c.group_size:
            return linears(x, [(q.packed, a, q.bias), (k.packed, b, k.bias), (v.packed, c, v.bias)])
    return [q(x), k(x), v(x)]


def use(model: PreTrainedModel) -> None:
    """Let a model on the CPU attend in this way, where it would use torch's attention as it is."""
    if (
        model.device.type == "cpu"
        and model.config._attn_implementation == "sdpa"
        and model._can_set_attn_implementation()
    ):
        model.set_attn_implementation(NAME)
        adopt(model, NativeAttention, KNOWN)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
