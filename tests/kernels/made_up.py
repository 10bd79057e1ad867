"""Packed expert layers that tests made up, with their dequantized matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from moesaic.kernels.layer import Activation, ExpertEntry, ExpertLayer
from moesaic.packing.layout import EntryLayout, pack
from moesaic.quantize import RTN

GROUP = 32


def entry_of(widths: tuple[int, ...], matrices: list[list[Tensor]]) -> tuple[ExpertEntry, list[list[Tensor]]]:
    """Pack each expert's matrices at its width. Returns the entry and what its bytes stand for."""
    rows, columns = matrices[0][0].shape
    layout = EntryLayout(widths, len(matrices[0]), rows, columns, GROUP, symmetric=False)
    stored: dict[int, list[Tensor]] = {}
    meant = []
    for width, expert in zip(widths, matrices, strict=True):
        if width == 16:
            stored.setdefault(16, []).append(torch.cat(expert))
            meant.append(expert)
            continue
        made = [RTN(group_size=GROUP)(matrix, width) for matrix in expert]
        stored.setdefault(width, []).append(torch.cat([pack(one) for one in made]))
        meant.append([one.dequantize() for one in made])
    return ExpertEntry(layout, {width: torch.stack(rows) for width, rows in stored.items()}), meant


def silu_gate(x: Tensor) -> Tensor:
    """`silu(gate) * up`."""
    gate, up = x.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def random_layer(
    gate_up: tuple[int, ...],
    down: tuple[int, ...],
    *,
    hidden: int = 48,
    intermediate: int = 40,
    gated: bool = True,
    bias: bool = False,
) -> tuple[ExpertLayer, list[list[Tensor]], list[list[Tensor]]]:
    """A random layer of those widths, and the matrices it stands for."""
    random = torch.Generator().manual_seed(3)
    first = 2 if gated else 1

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=random) * 0.1

    one, one_meant = entry_of(gate_up, [[matrix(intermediate, hidden) for _ in range(first)] for _ in gate_up])
    two, two_meant = entry_of(down, [[matrix(hidden, intermediate)] for _ in down])
    activation = Activation("silu", silu_gate) if gated else Activation("relu", torch.relu)
    layer = ExpertLayer(
        one,
        two,
        activation,
        gate_up_bias=matrix(len(down), first * intermediate) if bias else None,
        down_bias=matrix(len(down), hidden) if bias else None,
    )
    return layer, one_meant, two_meant


def naive_experts(
    x: Tensor, index: Tensor, weights: Tensor, *, layer: ExpertLayer, matrices: tuple[list[list[Tensor]], ...]
) -> Tensor:
    """Token by token, place by place, in float64."""
    first, second = matrices
    out = torch.zeros(x.shape, dtype=torch.float64)
    for token in range(x.shape[0]):
        for place in range(index.shape[1]):
            expert = int(index[token, place])
            if not 0 <= expert < layer.experts:
                continue
            hidden = torch.cat([matrix.double() @ x[token].double() for matrix in first[expert]])
            if layer.gate_up_bias is not None:
                hidden = hidden + layer.gate_up_bias[expert].double()
            result = second[expert][0].double() @ layer.activation.function(hidden)
            if layer.down_bias is not None:
                result = result + layer.down_bias[expert].double()
            out[token] += result * weights[token, place].double()
    return out
