"""Matrices for the tests of quantizers."""

from __future__ import annotations

import torch
from torch import Tensor

from moesaic.records import QuantizedWeight


def gaussian(rows: int = 24, columns: int = 160, seed: int = 0, size: float = 0.02) -> Tensor:
    """Normal weights of the usual size, float32."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * size


def rms_error(weight: Tensor, quantized: QuantizedWeight) -> float:
    """Root mean squared error relative to the weights' own size."""
    miss = quantized.dequantize().double() - weight.double()
    return float(miss.square().mean().sqrt() / weight.double().square().mean().sqrt())


def same(one: QuantizedWeight, other: QuantizedWeight) -> bool:
    """Whether two quantized matrices are the same bits."""
    pairs = [(one.codes, other.codes), (one.scale_codes, other.scale_codes), (one.row_scale, other.row_scale)]
    if one.zero_codes is not None and other.zero_codes is not None:
        pairs.append((one.zero_codes, other.zero_codes))
    return one.symmetric == other.symmetric and all(torch.equal(first, second) for first, second in pairs)


def rows_of(weight: QuantizedWeight, row: int) -> QuantizedWeight:
    """One row of a quantized matrix."""
    cut = slice(row, row + 1)
    zero = None if weight.zero_codes is None else weight.zero_codes[cut]
    return QuantizedWeight(
        weight.codes[cut],
        weight.scale_codes[cut],
        zero,
        weight.row_scale[cut],
        weight.bits,
        weight.group_size,
        weight.columns,
    )


def moment_of(tokens: int, columns: int, seed: int = 0) -> Tensor:
    """Second moment of made-up inputs `[columns, columns]`, float32: correlated, some much larger than others."""
    random = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=random) / columns**0.5 + torch.eye(columns)
    inputs = torch.randn(tokens, columns, generator=random) @ mix
    inputs = inputs * torch.randn(columns, generator=random).exp() + 0.3
    return inputs.T @ inputs / tokens
