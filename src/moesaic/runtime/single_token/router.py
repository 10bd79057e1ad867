"""Routers: six to twenty operations of torch, one here, for a few tokens. For many torch's product is faster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from moesaic.kernels.single_token import Routing, route
from moesaic.runtime.single_token.known import adopt
from moesaic.runtime.single_token.native import MOST_TOKENS, is_open


@dataclass(frozen=True)
class Form:
    """Of a router; names are those of its attributes.

    Attributes:
        sigmoid: shares are sigmoids, else a softmax. Chosen first and softmax then is the same as normalised.
        normalises: whether chosen shares are divided by their sum; the name of what says so, or always.
        rounds: logits are rounded to the dtype of the activations, else they stay float32.
        as_float: logits are handed out as float32 all the same.
        logit_bias: added to the logits.
        choice_bias: added to the shares for the choice; `forward` may get it as its second argument.
        scale: what shares are multiplied with.
        groups: number of groups of experts, and how many of them are kept.
    """

    sigmoid: bool = False
    normalises: str | None = None
    rounds: bool = True
    as_float: bool = False
    logit_bias: str | None = None
    choice_bias: str | None = None
    scale: str | None = None
    groups: tuple[str, str] | None = None


KNOWN = {
    "bfaa8bbbaf25": Form(),  # Mixtral, MiniMax
    "af486dec6b00": Form(),  # Qwen3VLMoe, Qwen3_5Moe
    "0b6a7b1ab2be": Form(normalises="norm_topk_prob"),  # Qwen2Moe, Qwen3Moe, Qwen3Next, Olmoe, FlexOlmo
    "e098276e9f5e": Form(as_float=True),  # GraniteMoe
    "471f06ea0bac": Form(logit_bias="bias"),  # GptOss
    "f94f037d92ed": Form(sigmoid=True, choice_bias="argument"),  # MiniMaxM2
    "b70233da0041": Form(  # DeepseekV3, Glm4Moe, Dots1, KimiLinear and others
        sigmoid=True,
        normalises="norm_topk_prob",
        rounds=False,
        choice_bias="e_score_correction_bias",
        scale="routed_scaling_factor",
        groups=("num_group", "topk_group"),
    ),
}


class NativeRouter(nn.Module):
    """A router that is one native operation for a few tokens. Its shares stay float32, in which the experts add up."""

    known: Form
    weight: Tensor
    top_k: int

    def forward(self, hidden_states: Tensor, *more: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`[..., hidden]` -> logits `[tokens, experts]`, shares and experts `[tokens, top_k]`"""
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        if len(rows) > MOST_TOKENS or not self._is_native(rows):
            return super().forward(hidden_states, *more)  # type: ignore[misc, no-any-return]
        form = self.known
        logits, shares, experts = route(
            rows,
            self.weight,
            self.routing(),
            logits=rows.dtype if form.rounds else torch.float32,
            logit_bias=self.optional(form.logit_bias),
            choice_bias=more[0] if more else self.optional(form.choice_bias),
        )
        return (logits.float() if form.as_float else logits), shares, experts

    def _is_native(self, rows: Tensor) -> bool:
        trains = torch.is_grad_enabled() and self.weight.requires_grad
        return is_open(rows) and self.weight.dtype == torch.bfloat16 and not trains

    def routing(self) -> Routing:
        """How it chooses, by the attributes that it has now."""
        form = self.known
        groups, kept = (1, 1) if form.groups is None else (int(getattr(self, name)) for name in form.groups)
        normalises = form.normalises is None or bool(getattr(self, form.normalises))
        scale = 1.0 if form.scale is None else float(getattr(self, form.scale))
        return Routing(self.top_k, form.sigmoid, normalises, scale, groups, kept)

    def optional(self, name: str | None) -> Any:
        """The tensor of that name, None without a name."""
        return None if name is None or name == "argument" else getattr(self, name)


def use(model: PreTrainedModel) -> None:
    """Let the routers that are known be native."""
    adopt(model, NativeRouter, KNOWN)
