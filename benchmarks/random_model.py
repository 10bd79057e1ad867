"""A few layers of a real architecture at real dimensions, packed, with random codes: for timing whole steps.

Nothing is quantized and no float weights of experts exist at any time. The routers spread their logits about as
trained ones do, so that the weights of a token's experts differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from random_layers import GROUP_SIZE, VOCABULARY, expert_bytes, random_entry, widths_of
from torch import nn
from transformers import AutoModelForCausalLM, MixtralConfig, PreTrainedModel, Qwen3MoeConfig

from moesaic.families import find_moe_layers
from moesaic.packing.layout import EntryLayout, MatrixLayout
from moesaic.packing.names import entry_layouts
from moesaic.records import LayerBits
from moesaic.runtime import single_token
from moesaic.runtime.experts import PackedEntry, PackedExperts
from moesaic.runtime.linear import PackedLinear

ROUTER_SPREAD = 1.5  # standard deviation of a router's logits
CONFIGS: dict[str, Any] = {
    "mixtral-8x7b": lambda layers: MixtralConfig(num_hidden_layers=layers, vocab_size=VOCABULARY),
    "qwen3-30b-a3b": lambda layers: Qwen3MoeConfig(
        num_hidden_layers=layers,
        vocab_size=VOCABULARY,
        hidden_size=2048,
        intermediate_size=6144,
        moe_intermediate_size=768,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=8,
        norm_topk_prob=True,
        decoder_sparse_step=1,
    ),
}


@dataclass(frozen=True)
class Sizes:
    """Bytes of the packed model that decoding one token reads.

    Attributes:
        experts: of all layers, unpruned, for a token.
        other: attention and routers.
    """

    experts: float
    other: int


def random_model(name: str, *, layers: int, plan: str, linears: int) -> tuple[PreTrainedModel, Sizes]:
    """Build it.

    Args:
        name: one of `CONFIGS`.
        layers: how many.
        plan: of the experts, one of `random_layers.PLANS`.
        linears: bits of the attention's matrices; 16: bfloat16. The output head then has bfloat16 too, else 8 bits, as
            `compress` makes it.
    """
    config = CONFIGS[name](layers)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    read = 0.0
    for layer in find_moe_layers(model, config.model_type):
        widths = widths_of(plan, layer.experts)
        layouts = entry_layouts(layer, LayerBits(widths, widths), GROUP_SIZE, False)
        packed = PackedExperts(layer, layouts, model.get_submodule(layer.name), torch.bfloat16)
        for entry in (packed.gate_up, packed.down):
            _fill(entry, entry.layout)
        model.set_submodule(layer.name, packed)
        view = packed.packed_layer()
        mean = sum(expert_bytes(view, expert) for expert in range(layer.experts)) / layer.experts
        read += config.num_experts_per_tok * mean
    other = _pack(model, linears, [name for name, _ in model.named_modules() if "attn" in name])
    _pack(model, 16 if linears == 16 else 8, ["lm_head"])
    _materialise(model)
    single_token.use(model)
    return model.eval().requires_grad_(False), Sizes(read, other)


def _fill(module: PackedEntry, layout: EntryLayout) -> None:
    for width, tensor in random_entry(layout).tensors.items():
        module._buffers[f"b{width}"] = tensor


def _pack(model: PreTrainedModel, bits: int, names: list[str]) -> int:
    """Pack the linear layers among these modules; how many bytes they take."""
    total = 0
    for name in names:
        module = model.get_submodule(name)
        if not isinstance(module, nn.Linear):
            continue
        rows, columns = module.weight.shape
        if bits == 16:
            total += 2 * rows * columns
            continue
        layout = MatrixLayout(rows, columns, bits, GROUP_SIZE, False)
        packed = PackedLinear(layout, bias_dtype=None)
        packed._buffers["packed"] = (
            random_entry(EntryLayout((bits,), 1, rows, columns, GROUP_SIZE, False)).tensors[bits][0].contiguous()
        )
        model.set_submodule(name, packed)
        total += layout.total_bytes
    return total


def _materialise(model: PreTrainedModel) -> None:
    """Random values for what is not packed."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in list(model.named_parameters()):
        if not parameter.is_meta:
            continue
        owner, _, last = name.rpartition(".")
        spread = (ROUTER_SPREAD if ".gate." in name else 1.0) / parameter.shape[-1] ** 0.5
        made = (
            torch.ones(parameter.shape) if parameter.dim() == 1 else torch.randn(parameter.shape, generator=generator)
        )
        value = made if parameter.dim() == 1 else made * spread
        setattr(model.get_submodule(owner), last, nn.Parameter(value.to(torch.bfloat16), requires_grad=False))
    rotary = model.base_model.rotary_emb
    model.base_model.rotary_emb = type(rotary)(config=model.config)
