"""Attention of single tokens on CPUs, against its formula in float64 and against transformers' own function."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from moesaic.runtime.hf import load
from moesaic.runtime.single_token.attention import NAME, attention, use
from tests.packing.sample_model import SAMPLE

DEMO = Path(__file__).parents[3] / "models" / "demo"


def obvious(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """softmax(scaling q k + mask) v in float64, head by head; `[batch, tokens, heads, size]`."""
    heads, shared = query.shape[1], key.shape[1]
    found = []
    for head in range(heads):
        of = head // (heads // shared)
        scores = scaling * query[:, head].double() @ key[:, of].double().transpose(1, 2)
        if mask is not None:
            part = mask[:, min(head, mask.shape[1] - 1)]
            scores = scores.masked_fill(~part, -torch.inf) if part.dtype == torch.bool else scores + part
        found.append(scores.softmax(-1) @ value[:, of].double())
    return torch.stack(found, dim=2)


def module(groups: int) -> Any:
    """What transformers' function asks of the attention module."""
    return SimpleNamespace(num_key_value_groups=groups, is_causal=True)


@given(
    st.integers(1, 3), st.integers(1, 3), st.sampled_from((1, 2, 4)), st.integers(1, 70), st.sampled_from((16, 32)),
    st.sampled_from((None, "bool", "added")), st.booleans(), st.sampled_from((torch.bfloat16, torch.float16)),
    st.integers(0, 2**31),
)  # fmt: skip
def test_a_single_token_attends_as_the_formula_says(  # noqa: PLR0917 (drawn one by one)
    batch: int, shared: int, groups: int, keys: int, size: int, kind: str | None, each_head: bool,
    dtype: torch.dtype, seed: int,
) -> None:  # fmt: skip
    """Any sharing of keys, any mask, for all heads or each its own: within the precision of half floats."""
    generator = torch.Generator().manual_seed(seed)
    heads = shared * groups
    query = torch.randn(batch, heads, 1, size, generator=generator).to(dtype)
    key, value = (torch.randn(batch, shared, keys, size, generator=generator).to(dtype) for _ in range(2))
    mask = None
    if kind is not None:
        mask = torch.rand(batch, heads if each_head else 1, 1, keys, generator=generator) < 0.8
        mask[..., 0] = True  # a row that sees nothing has no answer
        if kind == "added":
            mask = torch.randn(mask.shape, generator=generator).to(dtype).masked_fill(~mask, -torch.inf)
    scaling = 0.3 * size**-0.5
    found, probabilities = attention(module(groups), query, key, value, mask, scaling=scaling)
    assert probabilities is None
    assert found.shape == (batch, 1, heads, size)
    wanted = obvious(query, key, value, mask, scaling)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 3e-3
    assert torch.allclose(found.double(), wanted, atol=tolerance * float(value.abs().max()), rtol=0)


@pytest.mark.parametrize(("tokens", "dtype"), [(3, torch.bfloat16), (1, torch.float32), (5, torch.float32)])
def test_everything_else_is_transformers_own(tokens: int, dtype: torch.dtype, generator: torch.Generator) -> None:
    """Several tokens, or float32: the same bits as `sdpa`."""
    query = torch.randn(2, 4, tokens, 16, generator=generator).to(dtype)
    key, value = (torch.randn(2, 2, 9, 16, generator=generator).to(dtype) for _ in range(2))
    theirs, _ = sdpa_attention_forward(module(2), query, key, value, None, scaling=0.25)
    ours, _ = attention(module(2), query, key, value, None, scaling=0.25)
    assert torch.equal(ours, theirs)


def test_a_trained_model_decodes_as_it_reads() -> None:
    """The demo model, token by token with a cache and in one go, one row padded: the same logits up to rounding."""
    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.bfloat16).eval()
    use(model)
    assert model.config._attn_implementation == NAME
    texts = ["The water was deep and the boat", "In the year of the war, the king of that land was not"]
    tokenizer = AutoTokenizer.from_pretrained(DEMO, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    given = tokenizer(texts, return_tensors="pt", padding=True)
    tokens, seen = given["input_ids"], given["attention_mask"]
    assert int((seen == 0).sum()) > 0
    first = tokens.shape[1] - 4
    with torch.inference_mode():
        whole = model(tokens, attention_mask=seen).logits.float()
        cache = model(tokens[:, :first], attention_mask=seen[:, :first], use_cache=True).past_key_values
        for place in range(first, tokens.shape[1]):
            step = model(tokens[:, place : place + 1], attention_mask=seen[:, : place + 1], past_key_values=cache)
            difference = (step.logits[:, 0].float() - whole[:, place]).abs().max()
            assert difference < 0.03 * whole[:, place].abs().max()


def test_packed_models_use_it() -> None:
    """Loading a packed folder on the CPU is enough."""
    assert load(SAMPLE).config._attn_implementation == NAME


def test_another_implementation_is_left_alone() -> None:
    """Who asks for `eager` gets it."""
    model = AutoModelForCausalLM.from_pretrained(SAMPLE, attn_implementation="eager")
    assert model.config._attn_implementation == "eager"
