"""Linear layers that stay as the checkpoint has them, read at the memory's speed while a model generates.

The largest is the output head: 262 MB of bfloat16 in Mixtral-8x7B, 622 MB in Qwen3-30B-A3B, which every token reads.
torch's product of one row with such a matrix runs at half the memory's speed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from moesaic.kernels.single_token import dense
from moesaic.runtime.single_token.native import is_open

LEAST_WEIGHTS = 1 << 20  # smaller ones stay in the caches


class StreamedLinear(nn.Linear):
    """An `nn.Linear` whose bfloat16 weight the native kernels read for a single row; for two torch is as fast."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name that nn.Linear has)
        """`[..., in_features]` -> `[..., out_features]`"""
        if not self._streams(input):
            return super().forward(input)
        out = dense(input, self.weight)
        return out if self.bias is None else out + self.bias

    def _streams(self, x: Tensor) -> bool:
        return (
            x.numel() == self.in_features
            and x.dtype == self.weight.dtype == torch.bfloat16
            and not (torch.is_grad_enabled() and self.weight.requires_grad)
            and is_open(x)
        )


def use(model: PreTrainedModel) -> None:
    """Let the large linear layers of a model that are in main memory be read in this way."""
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.device.type == "cpu" and module.weight.numel() >= LEAST_WEIGHTS:
            module.__class__ = StreamedLinear
