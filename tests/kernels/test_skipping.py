"""The native mask routers decide what the reference in torch decides, and refuse what does not fit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moesaic.kernels import cpu, reference, skipping
from moesaic.kernels.skipping import native_decision, otp
from moesaic.prune import Otp, Routed, Threshold
from moesaic.prune.decide import decide, rescale, sort_places

pytestmark = pytest.mark.skipif(not cpu.is_ready()[0], reason="the native module was not built")

HIDDEN, EXPERTS = 96, 12


def trained(policy: Otp, k: int, cost: float) -> dict[str, Tensor]:
    """A state in which everything matters."""
    made = torch.Generator().manual_seed(5)
    state = policy.start(k, HIDDEN, made, experts=EXPERTS)
    for name in state:
        state[name] = state[name] + 0.3 * torch.randn(state[name].shape, generator=made)
    return state | {"cost": torch.tensor(cost), "threshold": torch.tensor(0.5)}


def some_tokens(tokens: int, k: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, chosen experts in no order, and their weights."""
    made = torch.Generator().manual_seed(tokens + k)
    index = torch.stack([torch.randperm(EXPERTS, generator=made)[:k] for _ in range(tokens)])
    weights = torch.rand(tokens, k, generator=made).softmax(-1) * 1.3
    return torch.randn(tokens, HIDDEN, generator=made).to(dtype), index, weights.to(dtype)


def by_reference(
    policy: Otp, given: tuple[Tensor, Tensor, Tensor], state: dict[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Experts, weights, and how far the two best masks of every token are apart."""
    hidden, index, weights = given
    ranked, experts, _ = sort_places(weights, index)
    routed = Routed(ranked, experts, hidden, EXPERTS)
    chosen = decide(policy, routed, state)
    best = policy.logits(routed, state).topk(2, dim=-1).values
    return torch.where(chosen, experts, -1), rescale(ranked, chosen), best[:, 0] - best[:, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("candidates", "k"), [("prefixes", 2), ("prefixes", 4), ("prefixes", 8), ("subsets", 3)])
@pytest.mark.parametrize("features", ["all", "both", "weights", "hidden"])
def test_decisions_are_those_of_the_reference(features: str, candidates: str, k: int, dtype: torch.dtype) -> None:
    """Same experts and weights wherever the two best masks are not next to equal; some tokens of each kind occur."""
    policy = Otp(candidates=candidates, features=features)
    state, given = trained(policy, k, cost=0.0), some_tokens(300, k, dtype)
    ranked, experts, _ = sort_places(given[2], given[1])
    state["cost"] = policy.log_errors(Routed(ranked, experts, given[0], EXPERTS), state).median()
    experts, weights = otp(policy, *given, state, EXPERTS)
    expected, rescaled, apart = by_reference(policy, given, state)
    clear = apart > 1e-3
    assert clear.float().mean() > 0.9
    assert torch.equal(experts[clear], expected[clear])
    assert weights.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(weights[clear], rescaled[clear], rtol=tolerance, atol=1e-6)
    assert 0 < (experts < 0).float().mean() < 1


def test_a_token_is_decided_alone_as_among_others() -> None:
    """Prefill and decoding skip the same experts: bit for bit the same, for any number of tokens and threads."""
    policy = Otp()
    state, given = trained(policy, 4, cost=-3.0), some_tokens(70, 4)
    together = otp(policy, *given, state, EXPERTS)
    alone = [otp(policy, *(each[t : t + 1] for each in given), state, EXPERTS) for t in range(70)]
    for place in (0, 1):
        assert torch.equal(together[place], torch.cat([pair[place] for pair in alone]))


def test_what_keeps_everything_keeps_its_weights() -> None:
    """At a price of nothing all experts run, with the router's weights bit for bit, sorted."""
    policy = Otp()
    hidden, index, weights = some_tokens(40, 4)
    experts, kept = otp(policy, hidden, index, weights, trained(policy, 4, cost=-80.0), EXPERTS)
    ranked, sorted_experts, _ = sort_places(weights, index)
    assert torch.equal(experts, sorted_experts)
    assert torch.equal(kept, ranked)


def test_only_otp_on_the_native_backend_has_a_native_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other policies and other backends go the way through torch."""
    cpu_device = torch.device("cpu")
    assert native_decision(Otp(), cpu_device) is not None
    assert native_decision(Threshold(), cpu_device) is None
    assert native_decision(Otp(), torch.device("meta")) is None
    monkeypatch.setattr(skipping, "select", lambda _device: reference)
    assert native_decision(Otp(), cpu_device) is None


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("index", lambda index: index + EXPERTS),
        ("index", lambda index: index - EXPERTS),
        ("index", lambda index: index[:, :2]),
        ("inner", lambda inner: inner[:, 1:]),
        ("outer", lambda outer: outer[1:]),
        ("table", lambda table: table[:, 1:]),
        ("prefer", lambda prefer: prefer[1:]),
        ("bias", lambda bias: bias[1:]),
    ],
)
def test_what_does_not_fit_is_named(name: str, wrong: object) -> None:
    """Every array's size is checked against the others', and so is every number of an expert."""
    policy = Otp()
    state = trained(policy, 4, cost=-3.0)
    hidden, index, weights = some_tokens(5, 4)
    if name == "index":
        index = wrong(index)  # type: ignore[operator]
    else:
        state[name] = wrong(state[name]).contiguous()  # type: ignore[operator]
    with pytest.raises(ValueError, match=f"{name}:"):
        otp(policy, hidden, index, weights, state, EXPERTS)
