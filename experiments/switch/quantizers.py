"""The quantizers of the table, as fake quantization: experts are replaced by what their codes stand for.

HQQ has one scale and one zero point for each output row, as in the paper's setting. GPTQ has groups of 128 columns.
Only experts are quantized, both matrices of one to the same width; everything else stays in full precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from moesaic.quantize import grid
from moesaic.quantize.gptq import GPTQ
from moesaic.quantize.hqq import HQQ
from moesaic.records import QuantizedWeight

from .observe import Moments, expert_layers, experts_of

WIDTHS = (1, 2, 3)
GPTQ_GROUP = 128
Plan = Mapping[str, Sequence[int]]  # layer -> width of each expert


@dataclass(frozen=True)
class RowHQQ(HQQ):
    """HQQ with one group a row. The packed format ends at groups of 128, and nothing is packed here."""

    def __call__(self, weight: Tensor, bits: int, second_moment: Tensor | None = None) -> QuantizedWeight:  # noqa: ARG002
        """Quantize `weight` `[out, in]`; `group_size` is taken from it."""
        rows, columns = weight.shape
        whole = RowHQQ(group_size=columns)
        return grid.join_rows([whole._rows(weight[chunk], bits) for chunk in grid.row_chunks(rows, columns)])


def rounded(quantizer: str, weight: Tensor, bits: int, moment: Tensor) -> Tensor:
    """A matrix `[out, in]` after quantization. `moment` `[in, in]` is that of its inputs."""
    if quantizer == "hqq":
        return RowHQQ()(weight, bits).dequantize()
    return GPTQ(group_size=GPTQ_GROUP, symmetric=False)(weight, bits, moment).dequantize()


def stored_bits(model: PreTrainedModel, quantizer: str, plan: Plan) -> float:
    """Stored bits per expert weight under a plan, by the format's formula.

    Codes, 8 bits of scale and 8 of zero point (one bit has none) a group, and 16 bits of scale a row.
    """
    total, weights = 0, 0
    for name, module in expert_layers(model).items():
        for expert, width in zip(experts_of(module), plan[name], strict=True):
            for matrix in (expert.wi.weight, expert.wo.weight):
                rows, columns = matrix.shape
                groups = 1 if quantizer == "hqq" else -(-columns // GPTQ_GROUP)
                total += rows * (columns * width + (8 if width == 1 else 16) * groups + 16)
                weights += rows * columns
    return total / weights


class Rounded:
    """A model whose experts can be set to any plan: all roundings of one quantizer, made once."""

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel, quantizer: str, moments: Mapping[str, Moments]) -> None:
        self.model, self.quantizer = model, quantizer
        self._versions: dict[tuple[str, int, int], tuple[Tensor, Tensor]] = {}
        for name, module in expert_layers(model).items():
            for number, expert in enumerate(experts_of(module)):
                wi, wo = expert.wi.weight.detach(), expert.wo.weight.detach()
                self._versions[name, number, 0] = wi.clone(), wo.clone()
                for bits in WIDTHS:
                    self._versions[name, number, bits] = (
                        rounded(quantizer, wi, bits, moments[name].wi[number]),
                        rounded(quantizer, wo, bits, moments[name].wo[number]),
                    )

    @torch.no_grad()
    def apply(self, plan: Plan) -> PreTrainedModel:
        """The model with every expert at its width; 0 stands for full precision."""
        for name, module in expert_layers(self.model).items():
            for number, (expert, bits) in enumerate(zip(experts_of(module), plan[name], strict=True)):
                wi, wo = self._versions[name, number, bits]
                expert.wi.weight.copy_(wi)
                expert.wo.weight.copy_(wo)
        return self.model

    def plan(self, width: int) -> dict[str, list[int]]:
        """The plan that gives all experts one width."""
        return {name: [width] * module.num_experts for name, module in expert_layers(self.model).items()}
