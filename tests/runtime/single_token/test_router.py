"""Routers that are native, against transformers' own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from moesaic.kernels import cpu
from moesaic.runtime.single_token.native import MOST_TOKENS
from moesaic.runtime.single_token.router import NativeRouter, use
from tests.tiny import build_tiny

FAMILIES = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v3", "granitemoe", "gpt_oss", "glm4_moe")

pytestmark = pytest.mark.skipif(not cpu.is_ready()[0], reason="the native module is not built")


@pytest.mark.parametrize("model_type", FAMILIES)
def test_routers_choose_as_transformers_own(model_type: str) -> None:
    """The same logits, shares and experts, where the logits leave no doubt."""
    ours = build_tiny(model_type).eval()
    use(ours)
    found = [module for module in ours.modules() if isinstance(module, NativeRouter)]
    assert found
    generator = torch.Generator().manual_seed(5)
    for module in found:
        own: Any = type(module).__mro__[2]  # the class that transformers wrote
        for _ in range(20):
            x = torch.randn(3, ours.config.hidden_size, generator=generator).bfloat16()
            with torch.inference_mode():
                logits, shares, experts = module(x)
                theirs = own.forward(module, x)
            assert logits.dtype == theirs[0].dtype
            assert torch.allclose(logits.float(), theirs[0].float(), atol=0.02, rtol=0.01)
            for row in range(3):
                ranked = theirs[0][row].float().sort(descending=True)[0]
                if float((ranked[:-1] - ranked[1:]).min()) < 0.02:  # a step of bfloat16 may swap them
                    continue
                one = dict(zip(experts[row].tolist(), shares[row].tolist(), strict=True))
                other = dict(zip(theirs[2][row].tolist(), theirs[1][row].float().tolist(), strict=True))
                assert one.keys() == other.keys()
                assert all(one[expert] == pytest.approx(other[expert], abs=0.01) for expert in one)


def test_a_bias_may_come_with_the_call() -> None:
    """MiniMax-M2 hands its router the bias of the choice: it decides who is chosen, not with which share."""
    from transformers.models.minimax_m2.modeling_minimax_m2 import MiniMaxM2TopKRouter  # noqa: PLC0415 (slow to import)

    holder: Any = torch.nn.Sequential(torch.nn.Identity())
    config: Any = type("Config", (), {"num_experts_per_tok": 2, "num_local_experts": 8, "hidden_size": 16})
    holder.append(MiniMaxM2TopKRouter(config).bfloat16().requires_grad_(False))
    router: Any = holder[1]
    router.weight.copy_(torch.randn(8, 16))
    use(holder)
    assert isinstance(router, NativeRouter)
    x, bias = torch.randn(MOST_TOKENS, 16).bfloat16(), torch.zeros(8)
    bias[5] = 3.0
    _, shares, experts = router(x, bias)
    assert (experts[:, 0] == 5).all()
    _, their_shares, their_experts = type(router).__mro__[2].forward(router, x, bias)
    order = their_experts.argsort(dim=-1), experts.argsort(dim=-1)
    assert torch.equal(their_experts.gather(1, order[0]), experts.gather(1, order[1]))
    assert torch.allclose(their_shares.float().gather(1, order[0]), shares.gather(1, order[1]), atol=0.01)


def test_many_tokens_go_to_torch() -> None:
    """Beyond a few tokens torch's product is faster, and the same bits are expected by everybody else."""
    ours = build_tiny("qwen3_moe").eval()
    use(ours)
    router: Any = next(module for module in ours.modules() if isinstance(module, NativeRouter))
    x = torch.randn(MOST_TOKENS + 1, ours.config.hidden_size).bfloat16()
    with torch.inference_mode():
        for one, other in zip(router(x), type(router).__mro__[2].forward(router, x), strict=True):
            assert torch.equal(one, other)
            assert one.dtype == other.dtype
