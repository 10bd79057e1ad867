"""Tiny random checkpoints, one per architecture, made with transformers' own configuration and model classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

EXPERTS = 8
_BASE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_FINE = {"moe_intermediate_size": 32, "num_experts_per_tok": 2}
_LATENT = {
    **_FINE,
    "num_key_value_heads": 4,
    "n_routed_experts": EXPERTS,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "topk_group": 1,
}
_GPT_OSS = {"num_local_experts": EXPERTS, "num_experts_per_tok": 2, "head_dim": 16}
_ERNIE = {"moe_num_experts": EXPERTS, "moe_k": 2, "moe_num_shared_experts": 1, "moe_layer_start_index": 1}
_GLM4 = {"n_routed_experts": EXPERTS, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
_SWITCH = {
    "d_model": 64,
    "d_ff": 96,
    "d_kv": 16,
    "num_heads": 4,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_sparse_encoder_layers": 1,
    "num_sparse_decoder_layers": 1,
    "num_experts": EXPERTS,
    "vocab_size": 128,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "mixtral": {**_BASE, "num_local_experts": EXPERTS},
    "qwen2_moe": {**_BASE, **_FINE, "shared_expert_intermediate_size": 64, "num_experts": EXPERTS},
    "qwen3_moe": {**_BASE, **_FINE, "num_experts": EXPERTS, "head_dim": 16, "mlp_only_layers": [0]},
    "olmoe": {**_BASE, "num_experts": EXPERTS, "num_experts_per_tok": 2},
    "deepseek_v2": {**_BASE, **_LATENT, "q_lora_rank": None, "n_group": 1},
    "deepseek_v3": {**_BASE, **_LATENT, "q_lora_rank": 48, "n_group": 2},
    "phimoe": {**_BASE, "num_local_experts": EXPERTS},
    "granitemoe": {**_BASE, "num_local_experts": EXPERTS, "num_experts_per_tok": 2},
    "gpt_oss": {**_BASE, **_GPT_OSS, "layer_types": ["full_attention"] * 2},
    "ernie4_5_moe": {**_BASE, **_ERNIE, "moe_intermediate_size": 32},
    "glm4_moe": {**_BASE, **_FINE, **_GLM4, "head_dim": 32},
    "switch_transformers": _SWITCH,
}
DENSE_FIRST = ("qwen3_moe", "deepseek_v2", "deepseek_v3", "ernie4_5_moe", "glm4_moe")


def build_tiny(model_type: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random bfloat16 model of that architecture; biases and norms are random too, so that none can be lost."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **{**CONFIGS[model_type], **changes})
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = auto.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model.bfloat16()


def save_tiny(folder: Path, model_type: str, *, seed: int = 0, shard: str = "5GB", **changes: Any) -> Path:
    """Write such a model as a checkpoint folder, in files of at most `shard` bytes."""
    build_tiny(model_type, seed=seed, **changes).save_pretrained(folder, max_shard_size=shard)
    return folder
