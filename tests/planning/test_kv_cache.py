"""The key-value cache's size, against the cache that transformers really keeps."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig

from moesaic.planning.kv_cache import kv_cache
from tests.tiny import CONFIGS, build_tiny

TOKENS = 24


def bytes_of(cache: object) -> int:
    """Bytes of the tensors of a real cache."""
    parts = [getattr(cache, name) for name in ("self_attention_cache", "cross_attention_cache") if hasattr(cache, name)]
    layers = [layer for part in parts or [cache] for layer in part.layers]
    return sum(each.numel() * each.element_size() for layer in layers for each in (layer.keys, layer.values))


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_the_size_is_that_of_the_real_cache(family: str) -> None:
    """The formula gives the bytes that a model of every family holds after reading so many tokens."""
    model = build_tiny(family)
    tokens = torch.arange(TOKENS)[None] % 100
    with torch.inference_mode():
        if model.config.is_encoder_decoder:
            read = model.get_encoder()(tokens)
            real = model(encoder_outputs=read, decoder_input_ids=tokens, use_cache=True).past_key_values
        else:
            real = model(tokens, use_cache=True).past_key_values
    found = kv_cache(model.config, TOKENS)
    assert found is not None
    assert found.size == bytes_of(real)
    assert found.source


def test_a_window_bounds_the_cache() -> None:
    """Layers with a sliding window hold no more than the window, the others everything."""
    config = AutoConfig.for_model("mixtral", **CONFIGS["mixtral"], sliding_window=16)
    short, long = kv_cache(config, 16), kv_cache(config, 100)
    assert short is not None
    assert long is not None
    assert long.size == short.size
    kinds = ["sliding_attention", "full_attention"]
    mixed = AutoConfig.for_model("gpt_oss", **{**CONFIGS["gpt_oss"], "layer_types": kinds, "sliding_window": 16})
    found, all_short = kv_cache(mixed, 64), kv_cache(mixed, 16)
    assert found is not None
    assert all_short is not None
    assert found.size == all_short.size * (16 + 64) / (16 + 16)
    assert "1 layers keep their last 16 tokens" in found.source


def test_latent_attention_keeps_one_vector_for_all_heads() -> None:
    """DeepSeek's cache is the rank of its latent vectors and one rotary part, whatever the number of heads."""
    few, many = (
        kv_cache(AutoConfig.for_model("deepseek_v3", **{**CONFIGS["deepseek_v3"], "num_attention_heads": heads}), 10)
        for heads in (4, 16)
    )
    assert few == many
    assert few is not None
    assert few.size == 2 * (32 + 16) * 2 * 10


def test_a_state_that_is_not_known() -> None:
    """A layer of a kind that keeps something else gives no figure rather than a wrong one."""
    config = AutoConfig.for_model("gpt_oss", **{**CONFIGS["gpt_oss"], "layer_types": ["full_attention"] * 2})
    config.layer_types = ["linear_attention", "full_attention"]
    assert kv_cache(config, 10) is None
