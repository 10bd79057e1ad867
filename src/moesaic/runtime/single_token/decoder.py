"""Decoder layers whose parts are all native: one call for a token, instead of thirty.

The parts are those that the other files of this folder put in. A layer asks every time whether they still are what they
were, and whether anybody waits for one of them to be called; then it goes through its modules, as transformers does.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from moesaic.errors import UsageError
from moesaic.kernels.decoder_layer import AttentionWeights, DecoderLayer, NormWeights, RouterWeights
from moesaic.kernels.skipping import MaskDecision
from moesaic.runtime.experts import PackedExperts
from moesaic.runtime.linear import PackedLinear
from moesaic.runtime.single_token.attention import NativeAttention, is_plain
from moesaic.runtime.single_token.cache import GrowingLayer
from moesaic.runtime.single_token.known import adopt, fingerprint
from moesaic.runtime.single_token.native import MOST_TOKENS, is_open, is_watched
from moesaic.runtime.single_token.norm import NativeNorm, epsilon_of
from moesaic.runtime.single_token.router import NativeRouter
from moesaic.runtime.skipping import LayerHook

# x + attention(norm(x)), then the same with the experts' block
KNOWN = {
    "1a8125909341": True,  # Qwen3Moe, Qwen2Moe, Olmoe, Glm4Moe, Dots1 and twenty-five others
    "d4699009e63a": True,  # Mixtral, MiniMaxM2
}
# the block is its router and its experts, and nothing else
BLOCKS = {
    "99cc8ec3bb8e",  # Qwen3Moe, Qwen3VLMoe, Qwen3OmniMoe
    "af5142f06f49",  # Olmoe, FlexOlmo
    "bb8252a71831",  # Mixtral, MiniMax
}
_MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj")
_OTHERS = frozenset(("position_bias", "softcap", "cache"))  # what only transformers' own attention knows


@dataclass(repr=False)
class Bound:
    """A native layer, and what it was made of. A copy of a model makes its own.

    Attributes:
        layer: the native layer.
        tables, names, values: tables of the modules, names in them, and what has to be there.
        parameters, addresses: parameters and where their memory is, which `module.to` changes in place.
        attention, router: modules that are asked for their numbers; no router where the experts are not part of it.
        scale: of attention.
        top_k: experts of a token.
        number: of the layer in a cache.
        hooks: tables of hooks of the modules that are not called any more.
        hooks_of_block: the same of the block, the router and the tensors of the experts.
        hooks_of_experts: those that go before the experts.
        decision: what says which of them run.
    """

    layer: DecoderLayer
    tables: tuple[dict[str, Any], ...]
    names: tuple[str, ...]
    values: tuple[Any, ...]
    parameters: tuple[Tensor, ...]
    addresses: list[int]
    attention: Any
    router: Any
    scale: float
    top_k: int
    number: int
    hooks: list[dict[int, Any]]
    hooks_of_block: list[dict[int, Any]]
    hooks_of_experts: dict[int, Any]
    decision: MaskDecision | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()

    def goes_to_the_end(self) -> bool:
        """Whether nobody waits for the block or its parts, or only a skipping policy that the native layer knows."""
        if self.router is None or any(self.hooks_of_block) or self.router.top_k != self.top_k:
            return False
        decision = None
        if self.hooks_of_experts:
            first, *others = self.hooks_of_experts.values()
            decision = first.fused() if isinstance(first, LayerHook) and not others else None
            if decision is None:
                return False
        if decision is not self.decision:
            self.layer.set_skipping(decision, self.top_k)
            self.decision = decision
        return True

    def is_up_to_date(self) -> bool:
        """Whether all parts are what they were."""
        try:
            same = all(map(operator.is_, map(operator.getitem, self.tables, self.names), self.values))
        except KeyError:
            return False
        same = same and self.attention.scaling == self.scale
        return same and [*map(Tensor.data_ptr, self.parameters)] == self.addresses


class NativeDecoderLayer(nn.Module):
    """A decoder layer with `input_layernorm`, `self_attn`, `post_attention_layernorm` and `mlp`."""

    _bound: Bound | None = None

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`[batch, tokens, hidden]` -> the same"""
        if not args and hidden_states.shape[1] == 1 and not self.training and is_open(hidden_states):
            found = self._step(hidden_states, kwargs)
            if found is not None:
                return found
        return super().forward(hidden_states, *args, **kwargs)  # type: ignore[misc, no-any-return]

    def bound(self) -> Bound | None:
        """The native layer of what the modules are now; None where a token does not take it."""
        bound = self._bound
        if bound is None or not bound.is_up_to_date():
            bound = self._bind()
        if bound is None or any(bound.hooks) or is_watched():
            return None
        return bound if bound.attention.is_asked() else None

    def _step(self, x: Tensor, given: dict[str, Any]) -> Tensor | None:
        """The layer's output; None where something is not native."""
        mask, rows = given.get("attention_mask"), x.shape[0]
        known = given.get("position_embeddings") is not None and is_plain(mask) and _OTHERS.isdisjoint(given)
        bound = self.bound() if known else None
        layer = None if bound is None else growing(given.get("past_key_values"), bound.number)
        room = None if layer is None or rows > MOST_TOKENS else layer.room_for_one(rows, x.dtype)
        if bound is None or layer is None or room is None:
            return None
        seen = None if mask is None else mask[:, 0, 0].expand(rows, -1)
        whole = bound.goes_to_the_end()
        out, normed = bound.layer.step(x, given["position_embeddings"], *room, seen, whole=whole)
        layer.grow_by_one()
        return out if normed is None else out + self.get_submodule("mlp")(normed)

    def _bind(self) -> Bound | None:
        """Make the native layer of what the modules are now; None where one of them is not native."""
        self._bound = None
        attention, block = self.get_submodule("self_attn"), self.get_submodule("mlp")
        norms = [self.get_submodule(name) for name in ("input_layernorm", "post_attention_layernorm")]
        weights = _attention_weights(attention, norms)
        if weights is None:
            return None
        parts = [self, attention, *norms, *(module for module in attention.children())]
        experts: list[nn.Module] = []
        try:
            layer = DecoderLayer(weights)
            if _is_plain_block(block):
                gate, packed = block.get_submodule("gate"), block.get_submodule("experts")
                layer.set_experts(packed.packed_layer(), _router_weights(gate))  # type: ignore[operator, arg-type]
                experts = [block, gate, packed, packed.gate_up, packed.down] if layer.has_experts else []  # type: ignore[list-item]
        except UsageError:  # some shape or dtype that goes another way
            return None
        router: Any = block.get_submodule("gate") if experts else None
        before = block.get_submodule("experts")._forward_pre_hooks if experts else {}
        everything = [*parts, *experts]
        tables, names, values = zip(*(place for module in everything for place in _places(module)), strict=True)
        tensors = tuple(each for module in everything for each in module._parameters.values() if each is not None)
        self._bound = Bound(
            layer=layer,
            tables=tables,
            names=names,
            values=values,
            parameters=tensors,
            addresses=[*map(Tensor.data_ptr, tensors)],
            attention=attention,
            router=router,
            scale=weights.scale,
            top_k=0 if router is None else router.top_k,
            number=attention.layer_idx,  # type: ignore[arg-type]
            hooks=[table for module in parts[1:] for table in _hooks(module)],
            hooks_of_block=[table for module in experts for table in _hooks(module) if table is not before],
            hooks_of_experts=before,
        )
        return self._bound


def growing(cache: Any, number: int) -> GrowingLayer | None:
    """The cache's layer of that number, if it is one that grows in place."""
    layers = getattr(cache, "layers", ())
    layer = layers[number] if number < len(layers) else None
    return layer if type(layer) is GrowingLayer else None


def _attention_weights(attention: Any, norms: list[Any]) -> AttentionWeights | None:
    """What the native layer needs of the layer's first part; None where something is not native."""
    linears = [attention._modules.get(name) for name in _MATRICES]
    alike = all(type(each) is PackedLinear for each in linears) and len({_form(each) for each in linears}) == 1
    if not (alike and isinstance(attention, NativeAttention) and all(isinstance(each, NativeNorm) for each in norms)):
        return None
    of_heads = [attention.get_submodule(name) for name in ("q_norm", "k_norm")] if attention.norms_in_use() else norms
    native = all(isinstance(each, NativeNorm) for each in of_heads) and len({*map(_norm_form, of_heads)}) == 1
    if len({*map(_norm_form, norms)}) != 1 or not native or attention.clips_now():
        return None
    return AttentionWeights(
        norms=_norms(norms),
        matrices=[(each.packed, each.layout, each.bias) for each in linears],  # type: ignore[union-attr]
        head_size=attention.head_dim,
        head_norms=None if of_heads is norms else _norms(of_heads),
        joins_heads=attention.norms_in_use() == "whole",
        scale=attention.scaling,  # type: ignore[arg-type]
    )


def _is_plain_block(block: Any) -> bool:
    """Whether a block is a native router and packed experts, and nothing else."""
    if fingerprint(type(block)) not in BLOCKS:  # type: ignore[arg-type] # mypy holds that classes have no hash
        return False
    router, experts = block._modules.get("gate"), block._modules.get("experts")
    native = isinstance(router, NativeRouter) and router.weight.dtype == torch.bfloat16
    return native and isinstance(experts, PackedExperts) and not experts.one_hot


def _form(linear: Any) -> tuple[int, int, bool]:
    return linear.layout.bits, linear.layout.group_size, linear.layout.symmetric


def _norm_form(norm: Any) -> tuple[float, float]:
    return epsilon_of(norm), norm.known.offset


def _norms(pair: list[Any]) -> NormWeights:
    """Two norms with the same epsilon and offset."""
    return NormWeights((pair[0].weight, pair[1].weight), epsilon_of(pair[0]), pair[0].known.offset)


def _router_weights(router: NativeRouter) -> RouterWeights:
    form = router.known
    biases = {name: router.optional(getattr(form, name)) for name in ("logit_bias", "choice_bias")}
    return RouterWeights(router.weight, router.routing(), form.rounds, **biases)


def _places(module: nn.Module) -> Iterable[tuple[dict[str, Any], str, Any]]:
    for table in (module._modules, module._parameters, module._buffers):
        for name, value in table.items():
            yield table, name, value


def _hooks(module: nn.Module) -> tuple[dict[int, Any], dict[int, Any]]:
    return module._forward_hooks, module._forward_pre_hooks


def use(model: PreTrainedModel) -> None:
    """Let the decoder layers that are known be one call."""
    adopt(model, NativeDecoderLayer, KNOWN)
