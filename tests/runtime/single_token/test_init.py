"""Whole models whose single tokens go the native way, against the same models in transformers' own code."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, StaticCache

from moesaic.kernels import cpu
from moesaic.runtime.single_token import attention, norm, router, use
from tests.tiny import CONFIGS, build_tiny

pytestmark = pytest.mark.skipif(not cpu.is_ready()[0], reason="the native module is not built")

DECODERS = [name for name in CONFIGS if name != "switch_transformers"]
# which of the three kinds of modules are native
NATIVE = {
    "mixtral": "attention norm router",
    "qwen2_moe": "attention norm router",
    "qwen3_moe": "attention norm router",
    "olmoe": "attention norm router",
    "deepseek_v2": "norm",
    "deepseek_v3": "norm router",
    "phimoe": "attention",
    "granitemoe": "attention norm router",
    "gpt_oss": "norm router",
    "ernie4_5_moe": "norm",
    "glm4_moe": "attention norm router",
}
KINDS: dict[str, Any] = {
    "attention": attention.NativeAttention,
    "norm": norm.NativeNorm,
    "router": router.NativeRouter,
}


def both(model_type: str, **changes: Any) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A tiny model as it is, and one with native tokens."""
    theirs = build_tiny(model_type, **changes).eval()
    ours = copy.deepcopy(theirs)
    use(ours)
    return theirs, ours


def steps(model: PreTrainedModel, tokens: Tensor, first: int, seen: Tensor | None = None, cache: Any = None) -> Tensor:
    """Logits of the tokens from `first` on, one at a time after the others. `[batch, tokens - first, vocabulary]`"""
    found = []
    with torch.inference_mode():
        mask = None if seen is None else seen[:, :first]
        cache = model(tokens[:, :first], attention_mask=mask, past_key_values=cache, use_cache=True).past_key_values
        for place in range(first, tokens.shape[1]):
            mask = None if seen is None else seen[:, : place + 1]
            found.append(model(tokens[:, place : place + 1], attention_mask=mask, past_key_values=cache).logits[:, 0])
    return torch.stack(found, 1).float()


def off(ours: Tensor, theirs: Tensor) -> float:
    """How far apart the logits of the middle token are, in units of what they are; a tie may send one elsewhere."""
    return float(((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).median())


@pytest.mark.parametrize("model_type", DECODERS)
def test_which_modules_of_a_family_are_native(model_type: str) -> None:
    """The table above, for every architecture that tests know."""
    _, ours = both(model_type)
    found = {name for name, kind in KINDS.items() if any(isinstance(each, kind) for each in ours.modules())}
    assert found == set(NATIVE[model_type].split())


@pytest.mark.parametrize("model_type", DECODERS)
def test_tokens_come_out_as_transformers_has_them(model_type: str) -> None:
    """bfloat16, token by token after a prompt, a padded batch as well: within what bfloat16 loses on the way."""
    theirs, ours = both(model_type)
    tokens = torch.randint(2, 120, (2, 14), generator=torch.Generator().manual_seed(1))
    assert off(steps(ours, tokens, 8), steps(theirs, tokens, 8)) < 0.02
    seen = torch.ones_like(tokens)
    seen[0, :5] = 0
    assert off(steps(ours, tokens, 8, seen), steps(theirs, tokens, 8, seen)) < 0.02


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "glm4_moe", "olmoe"])
def test_a_cache_of_fixed_length_works(model_type: str) -> None:
    """A static cache hands over all its places and a mask of those that are filled."""
    theirs, ours = both(model_type)
    tokens = torch.randint(2, 120, (1, 12), generator=torch.Generator().manual_seed(2))
    caches = [StaticCache(config=model.config, max_cache_len=40) for model in (ours, theirs)]
    found, wanted = (steps(model, tokens, 6, cache=cache) for model, cache in zip((ours, theirs), caches, strict=True))
    assert off(found, wanted) < 0.02


@pytest.mark.parametrize("model_type", DECODERS)
def test_float32_is_transformers_own_bit_for_bit(model_type: str) -> None:
    """In float32, in which people check things, nothing changes."""
    theirs, ours = both(model_type)
    tokens = torch.randint(2, 120, (1, 10), generator=torch.Generator().manual_seed(3))
    assert torch.equal(steps(ours.float(), tokens, 6), steps(theirs.float(), tokens, 6))


@pytest.mark.parametrize("model_type", DECODERS)
def test_many_tokens_are_transformers_own_bit_for_bit(model_type: str) -> None:
    """A prompt, or a text to evaluate: the numbers that any other program gets."""
    theirs, ours = both(model_type)
    tokens = torch.randint(2, 120, (2, 10), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        assert torch.equal(ours(tokens).logits, theirs(tokens).logits)


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "deepseek_v3"])
def test_gradients_go_through_torch(model_type: str) -> None:
    """Somebody who trains gets the gradients of transformers' own code, bit for bit."""
    models = both(model_type)
    for model in models:
        model(torch.tensor([[5]]), labels=None).logits.float().square().sum().backward()
    theirs, ours = (dict(model.named_parameters()) for model in models)
    for name, parameter in theirs.items():
        assert (parameter.grad is None) == (ours[name].grad is None)
        assert parameter.grad is None or torch.equal(parameter.grad, ours[name].grad), name


def test_generation_takes_the_native_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each native operation runs for each layer of each new token."""
    _, ours = both("qwen3_moe", mlp_only_layers=[])
    counts: dict[str, int] = {}
    for module, name in ((attention, "attend"), (attention, "rotate"), (norm, "rms_norm"), (router, "route")):
        real = getattr(module, name)

        def counted(*args: Any, _real: Any = real, _name: str = name, **kwargs: Any) -> Any:
            counts[_name] = counts.get(_name, 0) + 1
            return _real(*args, **kwargs)

        monkeypatch.setattr(module, name, counted)
    ours.generate(torch.tensor([[5, 6, 7, 8, 9, 10]]), max_new_tokens=5, min_new_tokens=5, do_sample=False)
    steps_after_prompt, layers = 4, 2
    assert counts["attend"] == counts["rotate"] == counts["route"] == steps_after_prompt * layers
    assert counts["rms_norm"] == steps_after_prompt * (2 * layers + 1)  # those of heads are in `rotate`


def test_another_attention_is_respected() -> None:
    """Who asks for attention maps later gets transformers' own attention again."""
    theirs, ours = both("qwen3_moe")
    for model in (theirs, ours):
        model.set_attn_implementation("eager")
    maps = [model(torch.tensor([[5]]), output_attentions=True).attentions for model in (theirs, ours)]
    assert all(torch.allclose(one, other, atol=1e-2) for one, other in zip(*maps, strict=True))


@pytest.mark.parametrize("name", ["q_norm", "k_norm", "q_proj", "o_proj"])
def test_hooks_inside_attention_are_called(name: str) -> None:
    """Who watches a part of a module sees it run, native or not."""
    _, ours = both("qwen3_moe")
    seen: list[str] = []
    for layer in ours.model.layers:
        layer.self_attn.get_submodule(name).register_forward_hook(lambda *_: seen.append(name))
    with torch.inference_mode():
        ours(torch.tensor([[5]]))
    assert len(seen) == len(ours.model.layers)


def test_clipped_attention_stays_transformers_own() -> None:
    """OLMoE may bound queries, keys and values: then the module is not native, and the numbers are the same."""
    theirs, ours = both("olmoe", clip_qkv=0.05)
    tokens = torch.randint(2, 120, (1, 10), generator=torch.Generator().manual_seed(4))
    assert off(steps(ours, tokens, 6), steps(theirs, tokens, 6)) < 0.02


def test_a_model_that_moves_away_is_torchs_again() -> None:
    """On another device no native code runs; here the meta device, which only counts shapes."""
    _, ours = both("mixtral")
    with torch.inference_mode():
        assert ours.to("meta")(torch.ones(1, 1, dtype=torch.long, device="meta")).logits.shape == (1, 1, 128)
