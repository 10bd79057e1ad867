"""Policies at work in a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from moesaic import CompressOptions, compress, load
from moesaic.errors import InvalidPolicy, UnsupportedModel
from moesaic.prune import POLICIES, Otp, Policy, Pruning, Routed, Threshold
from moesaic.prune.decide import decide
from moesaic.runtime import skipping as module
from moesaic.runtime.experts import PackedExperts
from moesaic.runtime.skipping import Skipping, attach, detach, expert_modules, skipping_of
from tests.tiny import build_tiny

FAMILIES = ("mixtral", "qwen2_moe", "olmoe", "deepseek_v3", "gpt_oss")
CAUSAL = [name for name, made in POLICIES.items() if made.causal]
Tiny = Callable[[str], Path]


@pytest.fixture(scope="module")
def packed(tiny_checkpoint: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """`packed(model_type)`: a tiny packed folder; not to be changed."""
    made: dict[str, Path] = {}

    def make(model_type: str) -> Path:
        if model_type not in made:
            out = tmp_path_factory.mktemp("packed") / model_type
            made[model_type] = compress(tiny_checkpoint(model_type), out, CompressOptions(bits=2.5))
        return made[model_type]

    return make


@pytest.fixture
def mixtral(packed: Tiny) -> PreTrainedModel:
    """A tiny packed Mixtral in double precision, so that rounding decides nothing."""
    return load(packed("mixtral"), dtype=torch.float64)


def states_for(policy: Policy, model: PreTrainedModel, threshold: float) -> dict[str, dict[str, Tensor]]:
    """A state for every layer that skips some experts."""
    generator = torch.Generator().manual_seed(3)
    states = {}
    for layer in expert_modules(model):
        state = {"threshold": torch.tensor(threshold)}
        if isinstance(policy, Otp):
            state = policy.start(2, model.config.hidden_size, generator, experts=8) | {"threshold": torch.tensor(0.5)}
            state["outer"] = torch.randn(state["outer"].shape, generator=generator)
            state["cost"] = torch.tensor(-1.0)
        if "means" in policy.needs:
            state["means"] = torch.tensor([1.0, 0.5])
        states[layer] = state
    if len(states) > 1:
        states[layer]["means"] = torch.tensor([1.0, 0.95])  # layers differ, for fixed_k
    return states


def pruning_of(name: str, model: PreTrainedModel, threshold: float = 0.9) -> Pruning:
    """A policy for a model."""
    policy = POLICIES[name]()
    return Pruning(name, policy, 2, 0.8, 0.8, states_for(policy, model, threshold))


def some_tokens(rows: int, length: int, seed: int = 0) -> Tensor:
    """Token ids."""
    return torch.randint(2, 100, (rows, length), generator=torch.Generator().manual_seed(seed))


class Watch:
    """Keeps what every layer decided, call by call."""

    def __init__(self, model: PreTrainedModel) -> None:
        skipping = skipping_of(model)
        assert skipping is not None
        assert skipping.routing is not None
        self._inner = skipping.routing
        self.calls: dict[str, list[Tensor]] = {}
        skipping.routing = self

    def __call__(self, name: str, routed: Routed) -> Tensor:
        chosen = self._inner(name, routed)
        self.calls.setdefault(name, []).append(chosen.clone())
        return chosen


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", POLICIES)
def test_turned_off_no_bit_differs(name: str, family: str, packed: Tiny) -> None:
    """With the policy taken out the outputs are those of the unpruned model, bit for bit; with it they are not."""
    model = load(packed(family))
    tokens = some_tokens(2, 24)
    with torch.inference_mode():
        wanted = model(tokens).logits
        attach(model, pruning_of(name, model))
        pruned = model(tokens).logits
        detach(model)
        assert torch.equal(model(tokens).logits, wanted)
    assert not torch.equal(pruned, wanted)
    assert skipping_of(model) is None


def test_running_everything_changes_no_bit(packed: Tiny) -> None:
    """A threshold that everything reaches gives the unpruned outputs bit for bit, through the hook."""
    model = load(packed("mixtral"))
    tokens = some_tokens(2, 24)
    with torch.inference_mode():
        wanted = model(tokens).logits
        attach(model, pruning_of("threshold", model, -torch.inf))
        assert torch.equal(model(tokens).logits, wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_compute_the_kept_experts(family: str, packed: Tiny) -> None:
    """A pruned layer is the sum over the experts that run, rescaled, worked out one token at a time."""
    model = load(packed(family), dtype=torch.float32)
    experts = next(iter(expert_modules(model).values()))
    assert isinstance(experts, PackedExperts)
    hidden = torch.randn(7, model.config.hidden_size)
    weights = torch.tensor([[0.5, 0.3]]).expand(7, 2) * torch.rand(7, 1)
    weights = torch.where(torch.arange(7)[:, None] % 2 == 0, weights, weights.flip(1)).contiguous()
    index = torch.stack([torch.arange(7), (torch.arange(7) + 1) % 8], dim=1)
    with torch.inference_mode():
        one = torch.ones(1, 1)
        strong = torch.where(weights[:, 0] > weights[:, 1], index[:, 0], index[:, 1])
        wanted = [
            experts(hidden[t : t + 1], strong[t].view(1, 1), one * weights[t].sum())[0] for t in range(7)
        ]  # 0.6 of the largest is below 0.9, so the second place goes
        attach(model, pruning_of("threshold", model))
        found = experts(hidden, index, weights)
    torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-4, atol=1e-5)


def test_skipped_experts_are_not_handed_to_the_kernels(
    mixtral: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel sees -1 at the places that do not run, so that their weights are never read."""
    seen = []
    select = module.PackedExperts.forward

    def forward(self: PackedExperts, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        seen.append((index.clone(), weights.clone()))
        return select(self, hidden, index, weights)

    monkeypatch.setattr(module.PackedExperts, "forward", forward)
    attach(mixtral, pruning_of("threshold", mixtral))
    watch = Watch(mixtral)
    with torch.inference_mode():
        mixtral(some_tokens(1, 20))
    for (index, weights), chosen in zip(seen, [calls[0] for calls in watch.calls.values()], strict=True):
        assert int((index == -1).sum()) == int((~chosen).sum()) > 0
        assert not weights[index == -1].any()


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_policies_decide_the_same_with_a_cache(name: str, mixtral: PreTrainedModel) -> None:
    """A token gets the same experts in one pass over the text and one token at a time with a key-value cache."""
    tokens = some_tokens(1, 24)
    attach(mixtral, pruning_of(name, mixtral))
    whole, steps = Watch(mixtral), None
    with torch.inference_mode():
        mixtral(tokens)
        steps = Watch(mixtral)
        cache = mixtral(tokens[:, :5], use_cache=True).past_key_values
        for place in range(5, 24):
            cache = mixtral(tokens[:, place : place + 1], past_key_values=cache, use_cache=True).past_key_values
    for layer, calls in steps.calls.items():
        assert torch.equal(torch.cat(calls), whole.calls[layer][0])
        assert 0 < float(whole.calls[layer][0].float().mean()) <= 1


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("side", ["left", "right"])
def test_causal_policies_decide_the_same_in_padded_batches(name: str, side: str, mixtral: PreTrainedModel) -> None:
    """A sequence beside a longer one, padded, gets the decisions that it gets alone."""
    short, long = some_tokens(1, 14, seed=1), some_tokens(1, 22, seed=2)
    pad = torch.zeros(1, 8, dtype=torch.int64)
    parts, inside = ([pad, short], slice(8, 22)) if side == "left" else ([short, pad], slice(0, 14))
    batch = torch.cat([torch.cat(parts, dim=1), long])
    mask = torch.ones_like(batch)
    mask[0] = 0
    mask[0, inside] = 1
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    attach(mixtral, pruning_of(name, mixtral))
    alone, together = Watch(mixtral), None
    with torch.inference_mode():
        mixtral(short)
        together = Watch(mixtral)
        mixtral(batch, attention_mask=mask, position_ids=places)
    for layer, calls in together.calls.items():
        assert torch.equal(calls[0].view(2, 22, 2)[0, inside], alone.calls[layer][0])


def test_odp_runs_the_ratio_rule_alone_in_decoding(mixtral: PreTrainedModel) -> None:
    """With a cache the attention of earlier queries is gone: no token is protected then, in prefill some are."""
    attach(mixtral, pruning_of("odp", mixtral, threshold=2.0))  # only protected tokens reach it
    watch = Watch(mixtral)
    tokens = some_tokens(1, 60)
    with torch.inference_mode():
        cache = mixtral(tokens, use_cache=True).past_key_values
        mixtral(tokens[:, :1], past_key_values=cache)
        mixtral(tokens[:, :3], past_key_values=cache)
    for prefill, one, chunk in watch.calls.values():
        assert int(prefill.all(dim=-1).sum()) == 2  # 2 % of 60, rounded up
        assert not one.all(dim=-1).any()
        assert not chunk.all(dim=-1).any()


def test_attention_received_is_summed_over_the_queries(packed: Tiny) -> None:
    """Worked out from the model's own attention maps: column sums over the queries that see the token."""
    mixtral = load(packed("mixtral"), dtype=torch.float32)
    tokens = some_tokens(2, 12)
    mask = torch.ones_like(tokens)
    mask[0, :4] = 0
    mixtral.set_attn_implementation("eager")
    skipping = Skipping(mixtral, ("sequences", "attention"))
    with torch.inference_mode():
        maps = mixtral(tokens, attention_mask=mask, output_attentions=True).attentions
    for layer, found in enumerate(skipping.sequences.received.values()):
        a = maps[layer].float().mean(dim=1)  # (B, queries, keys)
        for token in range(12):
            assert float(found[1, token]) == pytest.approx(float(a[1, token:, token].mean()), rel=1e-5)
        for token in range(4, 12):
            assert float(found[0, token]) == pytest.approx(float(a[0, token:, token].mean()), rel=1e-5)
    skipping.remove()


def test_padding_belongs_to_no_sequence(mixtral: PreTrainedModel) -> None:
    """Tokens are numbered by their row of the batch, padding is -1, with a cache too."""
    tokens, mask = some_tokens(2, 6), torch.ones(2, 6, dtype=torch.int64)
    mask[0, :2] = 0
    skipping = Skipping(mixtral, ("sequences",))
    with torch.inference_mode():
        cache = mixtral(tokens, attention_mask=mask, use_cache=True).past_key_values
        numbers = skipping.sequences.numbers(12, torch.device("cpu"))
        assert numbers.view(2, 6).tolist() == [[-1, -1, 0, 0, 0, 0], [1] * 6]
        longer = torch.cat([mask, torch.ones(2, 1, dtype=torch.int64)], dim=1)
        mixtral(tokens[:, :1], attention_mask=longer, past_key_values=cache)
    assert skipping.sequences.numbers(2, torch.device("cpu")).tolist() == [0, 1]


def test_shares_are_counted(mixtral: PreTrainedModel) -> None:
    """The share is what ran over what the router chose, by layer and together, without padding."""
    tokens, mask = some_tokens(2, 10), torch.ones(2, 10, dtype=torch.int64)
    mask[0, :4] = 0
    skipping = attach(mixtral, pruning_of("threshold", mixtral))
    assert skipping.share() == 1
    watch = Watch(mixtral)
    skipping.count()
    with torch.inference_mode():
        mixtral(tokens, attention_mask=mask)
    real = mask.bool().flatten()
    wanted = {layer: float(calls[0][real].float().mean()) for layer, calls in watch.calls.items()}
    assert skipping.shares() == pytest.approx(wanted)
    assert skipping.share() == pytest.approx(sum(wanted.values()) / len(wanted))
    skipping.count()
    assert skipping.shares() == {}


def test_layers_that_are_not_packed_get_the_same_numbers() -> None:
    """In a model of transformers itself a skipped place has weight zero, and the output is that of the kept experts."""
    model = build_tiny("mixtral").float().eval()
    tokens = some_tokens(1, 16)
    skipping = Skipping(model)
    experts = next(iter(expert_modules(model).values()))
    inputs = []
    experts.register_forward_pre_hook(lambda _, args: inputs.append(args))
    skipping.routing = lambda layer, routed: decide(Threshold(), routed, {"threshold": torch.tensor(0.9)})
    with torch.inference_mode():
        model(tokens)
    _, index, weights = inputs[0]
    assert bool((index >= 0).all())
    dropped = weights == 0
    assert 0 < int(dropped.sum()) < 16
    torch.testing.assert_close(weights.sum(-1), torch.ones(16))


def test_models_of_one_expert_a_token_are_refused(tiny_checkpoint: Tiny, packed: Tiny) -> None:
    """Switch Transformers has nothing to skip, packed or not, and dense models have no experts."""
    with pytest.raises(UnsupportedModel, match="one expert"):
        expert_modules(load(packed("switch_transformers")))
    with pytest.raises(UnsupportedModel, match="one expert"):
        expert_modules(build_tiny("switch_transformers"))


def test_a_policy_for_other_layers_is_refused(mixtral: PreTrainedModel) -> None:
    """A policy that lacks a layer, or has one more, does not run."""
    pruning = pruning_of("threshold", mixtral)
    for layers in ({}, {**pruning.layers, "more": {"threshold": torch.tensor(1.0)}}):
        with pytest.raises(InvalidPolicy, match="another model"):
            attach(mixtral, Pruning("threshold", Threshold(), 2, 0.8, 0.8, layers))
    assert skipping_of(mixtral) is None


def test_a_second_policy_takes_the_place_of_the_first(mixtral: PreTrainedModel) -> None:
    """Attaching twice does not prune twice."""
    first = attach(mixtral, pruning_of("threshold", mixtral))
    second = attach(mixtral, pruning_of("top_p", mixtral))
    first.count()
    second.count()
    with torch.inference_mode():
        mixtral(some_tokens(1, 5))
    assert not first.shares()
    assert second.shares()


def test_the_native_decision_runs_the_same_experts(packed: Tiny) -> None:
    """A float32 model decides natively what it decides in torch, and counts the same; a rule set anew is asked."""
    model = load(packed("mixtral"), dtype=torch.float32)
    tokens = some_tokens(2, 24)
    skipping = attach(model, pruning_of("otp", model))
    shortcut = skipping.shortcut
    if shortcut is None:
        pytest.skip("the native kernels are not built")
    with torch.inference_mode():
        skipping.count()
        native, counted = model(tokens).logits, skipping.shares()
        watch = Watch(model)
        assert skipping.shortcut is None
        skipping.count()
        torch.testing.assert_close(model(tokens).logits, native, rtol=1e-4, atol=1e-5)
    assert watch.calls
    assert 0.5 < skipping.share() < 1
    assert skipping.shares() == counted


def test_the_native_decision_leaves_double_precision_to_torch(mixtral: PreTrainedModel) -> None:
    """In float64 the policy is asked, since the kernels do not take that dtype."""
    skipping = attach(mixtral, pruning_of("otp", mixtral))
    asked: list[str] = []
    shortcut = skipping.shortcut
    if shortcut is None:
        pytest.skip("the native kernels are not built")

    def listen(name: str, *given: Tensor) -> tuple[Tensor, Tensor] | None:
        decided = shortcut(name, *given)
        assert decided is None
        asked.append(name)
        return decided

    skipping.shortcut = listen
    with torch.inference_mode():
        mixtral(some_tokens(1, 5))
    assert asked == skipping.layers
