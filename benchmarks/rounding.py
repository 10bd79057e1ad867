"""How much does rounding activations to int8 cost an expert, by the number of them that share a scale?

A gated expert with SiLU on normally distributed input, in float64; what goes into its matrices is rounded, once before
gate and up and once before down. 256 to a scale is what the K types of llama.cpp have (Q8_K), 128 `int8-single`, 32
and two numbers for what goes into down `int8`. Prints the relative error of the result.

    python benchmarks/rounding.py
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from moesaic.quantize import RTN

HIDDEN, INTERMEDIATE, TOKENS = 2048, 2048, 64


def rounded(x: Tensor, columns: int, numbers: int = 1) -> Tensor:
    """To so many int8 numbers each, the next ones for what the ones before leave."""
    left, total = x, torch.zeros_like(x)
    for _ in range(numbers):
        parts = left.view(len(x), -1, columns)
        scale = parts.abs().amax(-1, keepdim=True) / 127
        found = (torch.round(parts / scale) * scale).view(x.shape)
        total, left = total + found, left - found
    return total


def main() -> None:
    """Print the table."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS, HIDDEN, generator=generator).double()
    for bits in (2, 4):
        shapes = ((INTERMEDIATE, HIDDEN), (INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE))
        drawn = [torch.randn(shape, generator=generator) / shape[1] ** 0.5 for shape in shapes]
        gate, up, down = (RTN(group_size=64)(each, bits).dequantize().double() for each in drawn)
        exact = (functional.silu(x @ gate.T) * (x @ up.T)) @ down.T
        for name, first, second in (
            ("Q8_K", (256, 1), (256, 1)),
            ("int8-single", (128, 1), (128, 1)),
            ("int8", (32, 1), (64, 2)),
        ):
            given = rounded(x, *first)
            hidden = rounded(functional.silu(given @ gate.T) * (given @ up.T), *second)
            off = float((hidden @ down.T - exact).norm() / exact.norm())
            print(f"{bits} bits, {name:12} {100 * off:.2f} %")


if __name__ == "__main__":
    main()
