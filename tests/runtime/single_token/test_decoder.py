"""Whole decoder layers as one call, against the same model going through its modules: bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook
from transformers import DynamicCache, PreTrainedModel

from moesaic.kernels import cpu
from moesaic.prune import Otp, Pruning
from moesaic.runtime.linear import PackedLinear
from moesaic.runtime.single_token import decoder, stack
from moesaic.runtime.single_token.decoder import NativeDecoderLayer
from moesaic.runtime.single_token.stack import NativeModel
from moesaic.runtime.skipping import attach, expert_counts, skipping_of

pytestmark = pytest.mark.skipif(not cpu.is_ready()[0], reason="the native module is not built")

# how far a token goes natively: to the end of the layer, or to what stands in the experts' place
WHOLE, PART = ("mixtral", "qwen3_moe", "olmoe"), ("qwen2_moe", "glm4_moe")
NOT = ("phimoe", "granitemoe", "deepseek_v3", "gpt_oss")  # other norms, sums or attention

Load = Callable[..., PreTrainedModel]


@contextmanager
def through_modules() -> Iterator[None]:
    """No layer is one call, nor all of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NativeDecoderLayer, "_step", lambda *_: None)
        patch.setattr(NativeModel, "_token", lambda *_: None)
        yield


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For every layer in a native call, whether it went to its end."""
    found: list[bool] = []
    step, run_layers = decoder.DecoderLayer.step, stack.run_layers

    def count_all(layers: Any, *args: Any) -> Any:
        found.extend([True] * len(layers))
        return run_layers(layers, *args)

    def count(self: Any, *args: Any, whole: bool) -> Any:
        found.append(whole)
        return step(self, *args, whole=whole)

    monkeypatch.setattr(decoder.DecoderLayer, "step", count)
    monkeypatch.setattr(stack, "run_layers", count_all)
    return found


def decode(model: PreTrainedModel, rows: int = 1, padded: int = 0, tokens: int = 12) -> tuple[Tensor, DynamicCache]:
    """Logits of some tokens after a prompt of six, one at a time, and the cache."""
    ids = torch.randint(2, 120, (rows, 6 + tokens), generator=torch.Generator().manual_seed(1))
    seen = torch.ones_like(ids)
    seen[0, :padded] = 0
    given = {"past_key_values": DynamicCache(config=model.config), "use_cache": True}
    with torch.inference_mode():
        model(ids[:, :6], attention_mask=seen[:, :6], **given)
        found = [
            model(ids[:, at : at + 1], attention_mask=seen[:, : at + 1], **given).logits for at in range(6, 6 + tokens)
        ]
    return torch.cat(found, 1), given["past_key_values"]  # type: ignore[return-value]


def has_experts(layer: Any) -> bool:
    """Or a dense block in their place."""
    return hasattr(layer.mlp, "experts")


def same(model: PreTrainedModel, **how: Any) -> bool:
    """Whether logits and caches are the same as through the modules."""
    logits, cache = decode(model, **how)
    with through_modules():
        wanted, other = decode(model, **how)
    pairs = zip(cache.layers, other.layers, strict=True)
    return torch.equal(logits, wanted) and all(
        torch.equal(ours.keys, theirs.keys) and torch.equal(ours.values, theirs.values) for ours, theirs in pairs
    )


@pytest.mark.parametrize("family", [*WHOLE, *PART, *NOT])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "padded"), [(1, 0), (3, 0), (4, 3), (5, 0)])
def test_a_token_comes_out_bit_for_bit_as_through_the_modules(  # noqa: PLR0917 (cases and fixtures)
    family: str, dtype: torch.dtype, rows: int, padded: int, packed: Load, taken: list[bool]
) -> None:
    """Logits and cache, one sequence or several, with padding; of more than four every module decides for itself."""
    model = packed(family, dtype)
    assert same(model, rows=rows, padded=padded)
    if rows > 4 or family in NOT:
        assert not taken
    else:
        # the first token finds no room behind the prompt yet
        whole = family in WHOLE and dtype == torch.bfloat16  # native routers have bfloat16 weights
        assert taken == 11 * [whole and has_experts(layer) for layer in model.model.layers]


@pytest.mark.parametrize("options", [{"group_size": 32, "symmetric": False}, {"other_bits": 8}, {"other_bits": 3}])
def test_every_grid(options: dict[str, Any], packed: Load, taken: list[bool]) -> None:
    """Group sizes, zero points and widths of the linear layers."""
    model = packed("qwen3_moe", **options)
    assert same(model)
    assert taken == 11 * [*map(has_experts, model.model.layers)]


def test_layers_that_are_not_packed(packed: Load, taken: list[bool]) -> None:
    """Linear layers at 16 bits: through the modules. Some experts at 16 bits: natively up to the block."""
    assert same(packed("mixtral", other_bits=16))
    assert not taken
    model = packed("mixtral", bits=9, levels=(4, 16), allocator="global")
    assert same(model)
    assert taken
    assert not all(taken)


@pytest.mark.parametrize("precision", ["exact", "int8-single"])
def test_every_precision(precision: str, packed: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """What rounds the activations is asked for every token."""
    model = packed("qwen3_moe")
    usual, _ = decode(model)
    monkeypatch.setenv("MOESAIC_CPU_PRECISION", precision)
    assert same(model)
    assert not torch.equal(decode(model)[0], usual)


@pytest.mark.parametrize(
    "name",
    ["self_attn", "self_attn.o_proj", "self_attn.q_norm", "input_layernorm", "mlp", "mlp.gate", "mlp.experts", ""],
)
def test_hooks_are_called(name: str, packed: Load) -> None:
    """Who waits for a module of a layer to be called is called for every token, and may change what it gives."""
    model = packed("qwen3_moe")
    decode(model)
    layer = model.model.layers[1]
    calls: list[int] = []
    handle = layer.get_submodule(name).register_forward_hook(lambda *_: calls.append(1))
    assert same(model)
    assert len(calls) == 2 * (1 + 12)
    handle.remove()
    layer.get_submodule(name).register_forward_pre_hook(lambda *_: calls.append(1))
    decode(model)
    assert len(calls) == 3 * (1 + 12)


def test_hooks_on_every_module_are_called(packed: Load) -> None:
    """Tools that count or trace wait for modules of any kind: they see the layers' parts."""
    model = packed("mixtral")
    _, cache = decode(model)
    seen: list[str] = []
    handle = register_module_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    with torch.inference_mode():
        model(torch.tensor([[5]]), past_key_values=cache, use_cache=True)
    handle.remove()
    assert {"MixtralDecoderLayer", "MixtralAttention", "MixtralTopKRouter", "PackedExperts"} <= set(seen)


def _halve_a_norm(layer: Any) -> None:
    layer.input_layernorm.weight = torch.nn.Parameter(layer.input_layernorm.weight * 0.5, requires_grad=False)


def _move_a_norm(layer: Any) -> None:
    layer.input_layernorm.weight.data = layer.input_layernorm.weight.data * 0.5


def _other_codes(layer: Any) -> None:
    layer.self_attn.o_proj.packed = layer.self_attn.o_proj.packed.flip(0).contiguous() % 64


def _other_experts(layer: Any) -> None:
    experts = layer.mlp.experts.down
    for name, tensor in experts.named_buffers():
        setattr(experts, name, tensor % 128)


def _fewer_experts(layer: Any) -> None:
    layer.mlp.gate.top_k = 1


def _another_scale(layer: Any) -> None:
    layer.self_attn.scaling *= 0.5


def _another_matrix(layer: Any) -> None:
    old = layer.self_attn.v_proj
    new = PackedLinear(old.layout, bias_dtype=None)
    new._buffers["packed"] = old.packed.clone() % 64
    layer.self_attn.v_proj = new


@pytest.mark.parametrize(
    "change",
    [_halve_a_norm, _move_a_norm, _other_codes, _other_experts, _fewer_experts, _another_scale, _another_matrix],
)
def test_changes_are_seen(change: Callable[[Any], None], packed: Load) -> None:
    """A layer that got other tensors, modules or numbers computes with those."""
    model = packed("qwen3_moe")
    before, _ = decode(model)
    change(model.model.layers[1])
    assert not torch.equal(decode(model)[0], before)
    assert same(model)


def test_other_dtypes_and_attention(packed: Load, taken: list[bool]) -> None:
    """In float32, with `eager`, or while training, a layer goes through its modules."""
    assert same(packed("mixtral", torch.float32))
    model = packed("mixtral")
    model.set_attn_implementation("eager")
    assert same(model)
    model.set_attn_implementation("moesaic_sdpa")
    assert same(model.train())
    assert not taken
    assert same(model.eval())
    assert taken


def test_a_cache_that_somebody_changes(packed: Load, taken: list[bool]) -> None:
    """Cut, reordered for a beam search, or repeated: the next token finds what is there."""
    model = packed("qwen3_moe")

    def after(change: Callable[[DynamicCache], None]) -> Tensor:
        _, cache = decode(model, rows=2)
        change(cache)
        ids = torch.tensor([[7], [9]]).repeat(cache.layers[0].keys.shape[0] // 2, 1)
        with torch.inference_mode():
            first = model(ids, past_key_values=cache, use_cache=True).logits
            return torch.cat((first, model(ids, past_key_values=cache, use_cache=True).logits), 1)

    for change in (
        lambda cache: cache.crop(-5),
        lambda cache: cache.reorder_cache(torch.tensor([1, 1])),
        lambda cache: cache.batch_repeat_interleave(2),
    ):
        found = after(change)
        assert taken
        with through_modules():
            assert torch.equal(found, after(change))


def test_a_copy_is_independent(packed: Load, taken: list[bool]) -> None:
    """A model that was copied after it ran computes with its own tensors."""
    model = packed("mixtral")
    found, _ = decode(model)
    other = copy.deepcopy(model)
    _halve_a_norm(other.model.layers[1])
    assert not torch.equal(decode(other)[0], found)
    assert same(other)
    assert all(taken)
    assert torch.equal(decode(model)[0], found)


def test_a_cache_of_another_kind_or_none(packed: Load, taken: list[bool]) -> None:
    """Without a cache, or with one of fixed length, layers go through their modules."""
    model = packed("mixtral")
    ids = torch.tensor([[5]])
    with torch.inference_mode():
        alone = model(ids, use_cache=False).logits
        assert torch.isfinite(alone).all()
        model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=5, do_sample=False, cache_implementation="static")
    assert not taken


def test_generation_is_the_same(packed: Load, taken: list[bool]) -> None:
    """Greedy, and a beam search."""
    model = packed("mixtral")
    for how in ({}, {"num_beams": 3}):
        given = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False, **how}
        found = model.generate(torch.tensor([[5, 6, 7]]), **given)
        with through_modules():
            assert torch.equal(found, model.generate(torch.tensor([[5, 6, 7]]), **given))
    assert all(taken)
    assert len(taken) > 20


def otp(model: PreTrainedModel, cost: float) -> Pruning:
    """An untrained policy that skips about half."""
    policy = Otp()
    hidden, top_k = model.config.hidden_size, model.config.num_experts_per_tok
    layers = {}
    for seed, (name, experts) in enumerate(expert_counts(model).items()):
        generator = torch.Generator().manual_seed(seed)
        state = policy.start(top_k, hidden, generator, experts=experts)
        outer = torch.randn(state["outer"].shape, generator=generator)
        layers[name] = {**state, "outer": outer, "cost": torch.tensor(cost), "threshold": torch.tensor(0.5)}
    return Pruning("otp", policy, top_k, 0.5, 0.5, layers)


def test_skipping_is_decided_inside(packed: Load, taken: list[bool]) -> None:
    """OTP in the call skips what it skips before the experts; while it is counted, and turned off, it is not in it."""
    model = packed("mixtral")
    full, _ = decode(model)
    policy = otp(model, 0.0)
    attach(model, policy)
    skipping = skipping_of(model)
    assert skipping is not None
    taken.clear()
    assert same(model)
    assert all(taken)
    found, _ = decode(model)
    assert not torch.equal(found, full)
    skipping.count()
    taken.clear()
    assert torch.equal(decode(model)[0], found)
    assert not any(taken)
    assert 0 < skipping.share() < 1
    skipping.routing = None
    assert torch.equal(decode(model)[0], full)
    skipping.remove()
    assert torch.equal(decode(model)[0], full)
