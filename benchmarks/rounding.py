"""How much does rounding activations to int8 cost an expert?

A gated expert with SiLU on normally distributed input: what the native kernels make of it for few and for many tokens,
and, for comparison, one int8 number for each activation with 256 to a scale, as the K types of llama.cpp have them
(Q8_K), worked out in float64. Prints the error of the result relative to that of exact activations.

    python benchmarks/rounding.py
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from moesaic.kernels import cpu
from moesaic.kernels.layer import ExpertEntry, ExpertLayer, known_activation
from moesaic.packing.layout import EntryLayout, pack
from moesaic.quantize import RTN

HIDDEN, INTERMEDIATE, GROUP_SIZE = 2048, 2048, 64
TOKENS = {"few": 4, "many": 64}


def rounded(x: Tensor, columns: int) -> Tensor:
    """To an int8 number each, so many to a scale."""
    parts = x.view(len(x), -1, columns)
    scale = parts.abs().amax(-1, keepdim=True) / 127
    return (torch.round(parts / scale) * scale).view(x.shape)


def main() -> None:
    """Print the table."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((INTERMEDIATE, HIDDEN), (INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE))
    for bits in (2, 4):
        drawn = [torch.randn(shape, generator=generator) / shape[1] ** 0.5 for shape in shapes]
        weights = [RTN(group_size=GROUP_SIZE)(each, bits) for each in drawn]
        gate, up, down = (weight.dequantize().double() for weight in weights)
        blobs = [pack(weight) for weight in weights]
        layer = ExpertLayer(
            ExpertEntry(EntryLayout((bits,), 2, *shapes[0], GROUP_SIZE, False), {bits: torch.cat(blobs[:2])[None]}),
            ExpertEntry(EntryLayout((bits,), 1, *shapes[2], GROUP_SIZE, False), {bits: blobs[2][None]}),
            known_activation("silu", gated=True),
        )
        for name, tokens in TOKENS.items():
            x = torch.randn(tokens, HIDDEN, generator=generator)
            exact = (functional.silu(x.double() @ gate.T) * (x.double() @ up.T)) @ down.T
            given = rounded(x.double(), 256)
            found = {"Q8_K": rounded(functional.silu(given @ gate.T) * (given @ up.T), 256) @ down.T}
            once = torch.zeros(tokens, 1, dtype=torch.int64), torch.ones(tokens, 1)
            for precision in ("int8-single", "int8"):
                found[precision] = cpu.experts(x, *once, layer, precision=precision).double()
            errors = ", ".join(
                f"{each} {100 * float((y - exact).norm() / exact.norm()):.2f} %" for each, y in found.items()
            )
            print(f"{bits} bits, {name} tokens: {errors}")


if __name__ == "__main__":
    main()
