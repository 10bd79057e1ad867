"""All decoder layers of a model as one call for a token, and the little around them without transformers' preparations.

Between two layers transformers' loop and the checks of a layer are thirty microseconds of Python with its code in the
caches, and three times that behind a layer of weights. Here the checks of all layers come first. What a model does once
for a token (masks, defaults of the configuration, outputs to be recorded) takes half a millisecond more, most of it to
find out that nothing is to be done.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import MoeModelOutputWithPast

from moesaic.kernels.decoder_layer import run_layers
from moesaic.runtime.single_token.cache import GrowingLayer
from moesaic.runtime.single_token.decoder import Bound, NativeDecoderLayer, growing
from moesaic.runtime.single_token.known import adopt
from moesaic.runtime.single_token.native import MOST_TOKENS, is_open, is_watched, setting

# embeddings, a causal mask, rotary embedding, the same for all layers, a norm
KNOWN = {
    "e6823f08e7c2": True,  # Mixtral, Qwen3Moe
    "ce4bfe471b56": True,  # Olmoe; in DeepseekV3, Glm4Moe and others layers do not go to their end
}
_UNDERSTOOD = {"input_ids", "attention_mask", "position_ids", "past_key_values", "inputs_embeds", "use_cache"}
_RECORDED = ("output_hidden_states", "output_attentions", "output_router_logits")
_OTHERS = {"return_dict", *_RECORDED}  # understood where they ask for nothing


class NativeModel(nn.Module):
    """A model with `embed_tokens`, `rotary_emb`, `layers` and `norm`."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """See the model."""
        asks_torch = args or self.training or torch.compiler.is_compiling()
        found = None if asks_torch else self._token(kwargs)
        return super().forward(*args, **kwargs) if found is None else found  # type: ignore[misc]

    def _token(self, given: dict[str, Any]) -> MoeModelOutputWithPast | None:
        """What the model says of one token of every sequence; None where a layer does not go natively to its end."""
        tokens, cache, mask = (given.get(name) for name in ("input_ids", "past_key_values", "attention_mask"))
        if tokens is None or tokens.dim() != 2 or tokens.shape[1] != 1 or not self._asks_for_nothing_else(given):
            return None
        ready = _ready_layers(self.get_submodule("layers"), cache, tokens.shape[0])
        if ready is None:
            return None
        layers, cached, used = ready
        if mask is not None and mask.shape != (tokens.shape[0], used + 1):
            return None
        parts: Any = self._modules
        x = parts["embed_tokens"](tokens)
        rooms = [room[0] for layer in cached if (room := layer.room_for_one(x.shape[0], x.dtype)) is not None]
        if not is_open(x) or len(rooms) != len(cached):
            return None
        places = given.get("position_ids")
        places = torch.full((1, 1), used) if places is None else places
        turns = parts["rotary_emb"](x, position_ids=places)
        seen = None if mask is None or bool(mask.all()) else mask.bool()
        out = run_layers([layer.layer for layer in layers], x, turns, rooms, used, seen)
        for layer in cached:
            layer.grow_by_one()
        return MoeModelOutputWithPast(last_hidden_state=parts["norm"](out), past_key_values=cache)

    def _asks_for_nothing_else(self, given: dict[str, Any]) -> bool:
        """Whether nothing is to be recorded, and nothing given that is not known here."""
        module: Any = self
        config = module.config
        return (
            given.keys() <= _UNDERSTOOD | _OTHERS
            and given.get("inputs_embeds") is None
            and given.get("return_dict") is not False
            and not any(given.get(name) for name in _RECORDED)
            and not any(setting(config, name) for name in _RECORDED)
            and setting(config, "return_dict") is not False
            and setting(config, "sliding_window") is None
            and setting(config, "num_hidden_layers") == len(module.layers)
        )


def _ready_layers(modules: nn.Module, cache: Any, rows: int) -> tuple[list[Bound], list[GrowingLayer], int] | None:
    """The native layers, theirs of the cache, and the tokens in it; None where one of them is something else."""
    layers: list[Bound] = []
    cached: list[GrowingLayer] = []
    for layer in modules._modules.values():
        bound = layer.bound() if isinstance(layer, NativeDecoderLayer) and not is_watched(layer) else None
        held = None if bound is None else growing(cache, bound.number)
        if bound is None or held is None or not bound.goes_to_the_end():
            return None
        layers.append(bound)
        cached.append(held)
    lengths = {held.get_seq_length() for held in cached}
    return (layers, cached, lengths.pop()) if len(lengths) == 1 and rows <= MOST_TOKENS else None


def use(model: PreTrainedModel) -> None:
    """Let the layers of a model that is known be one call."""
    adopt(model, NativeModel, KNOWN)
