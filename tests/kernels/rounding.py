"""What the native kernels make of activations in int8, slow and obvious (docs/decisions/0007-int8-activations.md)."""

from __future__ import annotations

import torch
from torch import Tensor

QUAD, STRETCH, PARTS = 4, 32, 4
TRIES = 4
INT16, HALF_OF_FLOAT = 2**15 - 1, 2**22 - 1


def few_rows(x: Tensor, group: int) -> Tensor:
    """Stretches of 32 columns, quad q in part q % 4; a part has the best of four grids."""
    padded = _whole_groups(x, group)
    parts = padded.view(len(x), -1, STRETCH // QUAD // PARTS, PARTS, QUAD).transpose(2, 3)
    top = parts.abs().amax((-1, -2), keepdim=True)
    best, least = torch.zeros_like(parts), torch.full_like(top, torch.inf)
    for i in range(TRIES):
        scale = _scale(top, 127 - i)
        found = _codes(parts, scale) * scale
        error = ((found - parts) ** 2).sum((-1, -2), keepdim=True)
        best, least = torch.where(error < least, found, best), torch.minimum(error, least)
    return best.transpose(2, 3).reshape(padded.shape)[:, : x.shape[1]]


def many_rows(x: Tensor, bits: int, group: int, spills: int, isa: str) -> Tensor:
    """A scale for a group. Each spill takes a share of the quad whose share is largest so far."""
    padded = _whole_groups(x, group)
    quads = padded.view(-1, group // QUAD, QUAD)
    tops = quads.abs().amax(-1)
    shares = torch.ones_like(tops)
    for _ in range(spills):
        shares.scatter_add_(1, (tops / shares).argmax(1, keepdim=True), torch.ones(len(tops), 1))
    top = (tops / shares).amax(1)[:, None, None]
    scale = _scale(top, _largest_codes(quads, top, bits, spills, isa))
    return (_codes(quads, scale) * scale).view(padded.shape)[:, : x.shape[1]]


def _largest_codes(quads: Tensor, top: Tensor, bits: int, spills: int, isa: str) -> Tensor:
    """127, or less where sums of products would leave the accumulator of the instruction set.

    AVX2 adds up two columns of 16 quads in 16 bits, AVX-512 four columns of a group's quads in the last places of a
    float. A spill is added to the sum of a group if that is one sum.
    """
    sum_quads, columns, room = {"avx2": (16, 2, INT16), "avx512": (32, 4, HALF_OF_FLOAT)}.get(isa, (32, 4, torch.inf))
    if isa == "avx2" and bits == 8:
        room = torch.inf  # two times four bits, widened at once
    if isa == "avx2" and bits < 3:
        sum_quads = 32
    count = quads.shape[1]
    per_sum = columns * min(count, sum_quads)
    most = room // (2**bits - 1)
    if 127 * (per_sum + (columns * spills if count <= sum_quads else 0)) <= most:
        return torch.full_like(top, 127)
    most = most - per_sum // 2 - 1  # rounding
    sums = quads.abs().reshape(len(quads), -1, min(count, sum_quads), QUAD // columns, columns).sum((2, 4))
    codes = sums.amax((1, 2))[:, None, None] / top * 127
    return torch.where(codes > most, torch.floor(127 * (most / codes)), 127)


def _whole_groups(x: Tensor, group: int) -> Tensor:
    return torch.nn.functional.pad(x, (0, -x.shape[1] % group))


def _scale(top: Tensor, largest_code: Tensor | int) -> Tensor:
    """Rounded up to 12 significant bits."""
    bits = (top / largest_code).view(torch.int32)
    return (bits + 0xFFF & ~0xFFF).view(torch.float32)


def _codes(x: Tensor, scale: Tensor) -> Tensor:
    return torch.where(scale > 0, torch.round(x * (1 / scale)), 0.0)
