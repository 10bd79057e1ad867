"""Calibration statistics the obvious way: the whole model in memory, every expert rounded for every token, autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from moesaic.families import MoeLayer
from moesaic.quantize import Quantizer


def expert_layers(model: PreTrainedModel, layers: list[MoeLayer]) -> dict[str, Any]:
    """The experts modules of a loaded model."""
    return {layer.name: model.get_submodule(layer.name) for layer in layers}


class Seen:
    """What an experts module was given and gave."""

    def __init__(self) -> None:
        self.given: tuple[Tensor, Tensor, Tensor] | None = None
        self.gave: Tensor | None = None

    def __call__(self, _: Any, given: Any, named: Any, gave: Tensor) -> None:
        self.given = (
            *given,
            *(named[name] for name in ("hidden_states", "top_k_index", "top_k_weights")[len(given) :]),
        )
        self.gave = gave
        gave.retain_grad()


def run_and_look(model: PreTrainedModel, layers: list[MoeLayer], tokens: Tensor) -> dict[str, Seen]:
    """Forward and backward through the whole model; what went into and out of every experts module, with gradients."""
    seen = {name: Seen() for name in expert_layers(model, layers)}
    hooks = [
        module.register_forward_hook(seen[name], with_kwargs=True)
        for name, module in expert_layers(model, layers).items()
    ]
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum").backward()
    for hook in hooks:
        hook.remove()
    return seen


def round_parts(module: Any, layer: MoeLayer, expert: int, rounding: tuple[Quantizer, int], which: str) -> None:
    """Round one expert of a fused module in place: `both`, `gate_up` or `down`."""
    quantizer, bits = rounding
    first = module.gate_up_proj if layer.has_gate else module.up_proj
    with torch.no_grad():
        if which in ("both", "gate_up"):
            view = first[expert].T if layer.transposed else first[expert]
            parts = view.chunk(2) if layer.concatenated else (view[0::2], view[1::2])
            for part in parts if layer.has_gate else (view,):
                part.copy_(quantizer(part.clone(), bits).dequantize())
        if which in ("both", "down"):
            view = module.down_proj[expert].T if layer.transposed else module.down_proj[expert]
            view.copy_(quantizer(view.clone(), bits).dequantize())
