"""RMSNorm: six operations of torch, one here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from moesaic.kernels.single_token import rms_norm
from moesaic.runtime.single_token.known import adopt
from moesaic.runtime.single_token.native import MOST_TOKENS, is_open


@dataclass(frozen=True)
class Form:
    """Of a norm.

    Attributes:
        epsilon: the attribute that holds it.
        offset: what is added to the weight.
    """

    epsilon: str = "variance_epsilon"
    offset: float = 0.0


KNOWN = {
    "9635bcd843f3": Form(),  # Mixtral, Qwen3Moe, DeepseekV3 and fifty others
    "eef4e978a32a": Form(),  # GptOss, FlexOlmo: the same, rounded once, as it is here
    "d2c09eabcc5e": Form("eps", 1.0),  # Qwen3Next, Qwen3_5Moe
}


class NativeNorm(nn.Module):
    """An RMSNorm that is one native operation for a few tokens.

    It would be faster for many too. But then a model packed at 16 bits, which is the model it was made from, would
    differ from it in the last place, and no measure could say that nothing was lost.
    """

    known: Form
    weight: Tensor

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`[batch, tokens, columns]`, `[batch, tokens, heads, columns]` or `[tokens, columns]` -> the same"""
        shape = hidden_states.shape
        tokens = shape[0] * shape[1] if len(shape) > 2 else shape[0]
        trains = torch.is_grad_enabled() and self.weight.requires_grad
        if tokens > MOST_TOKENS or trains or not is_open(hidden_states):
            return super().forward(hidden_states)  # type: ignore[misc, no-any-return]
        return rms_norm(hidden_states, self.weight, epsilon_of(self), offset=self.known.offset)


def epsilon_of(norm: Any) -> float:
    """What a norm adds to the mean square."""
    return float(getattr(norm, norm.known.epsilon))


def use(model: PreTrainedModel) -> None:
    """Let the norms that are known be native."""
    adopt(model, NativeNorm, KNOWN)
