"""Skipping policies that the native kernels decide themselves: in torch, OTP is fifty small operations a layer.

`moesaic.prune.otp` is the slow, obvious reference; `tests/kernels/test_skipping.py` compares.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moesaic.kernels import cpu, select
from moesaic.prune import Otp, Policy, State

_ORDER = ("project", "inner", "inner_bias", "outer", "slope", "bias")

# hidden `[tokens, hidden]`, index and weights `[tokens, k]` of a layer with so many experts -> the same two by weight,
# largest first, with expert -1 and weight 0 at places that do not run; None for a dtype that the kernels do not take
Decision = Callable[[Tensor, Tensor, Tensor, State, int], tuple[Tensor, Tensor] | None]


@dataclass(frozen=True, eq=False)
class MaskDecision:
    """OTP in one layer, which the native code can decide without being asked from here.

    Attributes:
        policy: gives the candidate masks and what they are estimated from.
        state: of the layer, as `Otp.start` makes it.
    """

    policy: Otp
    state: State

    def arrays(self, top_k: int) -> list[Any]:
        """The tensors, in the native module's order."""
        return [
            cpu.export(self.policy.masks(top_k)),
            *(cpu.export(cpu.ready(self.state[name], torch.float32)) for name in _ORDER),
            *(cpu.given(self.state.get(name)) for name in ("table", "prefer")),
        ]

    def numbers(self) -> tuple[float, bool, bool]:
        """Its price, and whether it sees hidden states and weights."""
        features = self.policy.features
        return float(self.state["cost"]), features != "weights", features != "hidden"


def native_decision(policy: Policy, device: torch.device) -> Decision | None:
    """What decides natively for a policy on that device, None where nothing does.

    Raises:
        KernelUnavailable, UnknownName: see `kernels.select`.
    """
    if not isinstance(policy, Otp) or select(device.type) is not cpu:
        return None

    def decide(
        hidden: Tensor, index: Tensor, weights: Tensor, state: State, experts: int
    ) -> tuple[Tensor, Tensor] | None:
        if hidden.dtype not in cpu.DTYPES:  # float64, in which people check things
            return None
        return otp(policy, hidden, index, weights, state, experts)

    return decide


def otp(  # noqa: PLR0917 (what a layer is given, and two things of the layer's own)
    policy: Otp, hidden: Tensor, index: Tensor, weights: Tensor, state: State, experts: int
) -> tuple[Tensor, Tensor]:
    """Sort the places of every token by weight, take the most likely mask, rescale what it keeps.

    Args:
        policy: gives the candidate masks and what they are estimated from.
        hidden: `[tokens, hidden]` float32, bfloat16 or float16, the input of the experts.
        index: `[tokens, k]`, the router's choice.
        weights: `[tokens, k]`.
        state: of the layer, as `Otp.start` makes it.
        experts: of the layer.

    Returns:
        Experts int64, -1 where one does not run, and their weights in the dtype of `weights`.

    Raises:
        ValueError: a tensor does not fit the others; names it.
        KernelUnavailable: no compiled module.
    """
    made = MaskDecision(policy, state)
    out_index, out_weights = torch.empty_like(index, dtype=torch.int64), torch.empty(weights.shape)
    cpu.native().mask_router(
        cpu.export(cpu.ready(hidden, hidden.dtype)),
        cpu.export(cpu.ready(index, torch.int64)),
        cpu.export(cpu.ready(weights, torch.float32)),
        cpu.export(out_index),
        cpu.export(out_weights),
        *made.arrays(weights.shape[1]),
        experts,
        *made.numbers(),
        cpu.threads(),
    )
    return out_index, out_weights.to(weights.dtype)
