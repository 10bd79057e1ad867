"""What the native kernels make of activations in int8, slow and obvious (docs/decisions/0007-int8-activations.md)."""

from __future__ import annotations

import torch
from torch import Tensor

QUAD, STRETCH, PARTS = 4, 32, 4
TRIES = 4
LARGEST_SUM = 2**22 - 1


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


def many_rows(x: Tensor, bits: int, group: int, spills: int) -> Tensor:
    """A scale for a group. Each spill takes a share of the quad whose share is largest so far."""
    padded = _whole_groups(x, group)
    quads = padded.view(-1, group // QUAD, QUAD)
    tops = quads.abs().amax(-1)
    shares = torch.ones_like(tops)
    for _ in range(spills):
        shares.scatter_add_(1, (tops / shares).argmax(1, keepdim=True), torch.ones(len(tops), 1))
    largest_code = min(127, LARGEST_SUM // ((2**bits - 1) * (group + QUAD * spills)))
    scale = _scale((tops / shares).amax(1)[:, None, None], largest_code)
    return (_codes(quads, scale) * scale).view(padded.shape)[:, : x.shape[1]]


def _whole_groups(x: Tensor, group: int) -> Tensor:
    return torch.nn.functional.pad(x, (0, -x.shape[1] % group))


def _scale(top: Tensor, largest_code: int) -> Tensor:
    """Rounded up to 12 significant bits."""
    bits = (top / largest_code).view(torch.int32)
    return (bits + 0xFFF & ~0xFFF).view(torch.float32)


def _codes(x: Tensor, scale: Tensor) -> Tensor:
    return torch.where(scale > 0, torch.round(x * (1 / scale)), 0.0)
