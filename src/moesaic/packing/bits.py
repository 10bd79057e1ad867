"""Codes to bytes and back: the tiles of `docs/format.md`. Pure tensor arithmetic, no model, no file."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK_ROWS = 16  # rows of a tile: the 32-bit lanes of a 64-byte vector
QUAD = 4  # columns of a quad: the bytes of a lane
VECTOR_BYTES = BLOCK_ROWS * QUAD
PLANES = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 8: (8,)}  # how a width is cut, low bits first


def pack_tiles(codes: Tensor, bits: int) -> Tensor:
    """Pack the codes of whole tiles.

    Args:
        codes: `[tiles, 16, g]` uint8, below `2**bits`; `g` a multiple of 32.
        bits: 1, 2, 3, 4 or 8.

    Returns:
        `[tiles, 2 * g * bits]` uint8.
    """
    tiles, _, columns = codes.shape
    quads = codes.view(tiles, BLOCK_ROWS, columns // QUAD, QUAD).transpose(1, 2)  # (T, quads, 16, 4)
    planes = []
    low = 0
    for plane in PLANES[bits]:
        part = (quads >> low) & (2**plane - 1)
        shared = 8 // plane
        part = part.reshape(tiles, -1, shared, VECTOR_BYTES)  # (T, vectors, quads in a vector, 64)
        shifts = torch.arange(0, 8, plane, dtype=torch.uint8)[:, None]
        # the fields do not overlap, so that their sum is their bitwise or
        planes.append((part << shifts).sum(dim=2, dtype=torch.uint8).view(tiles, -1))
        low += plane
    return torch.cat(planes, dim=1)


def unpack_tiles(packed: Tensor, bits: int) -> Tensor:
    """The inverse of `pack_tiles`: `[tiles, 2 * g * bits]` uint8 -> `[tiles, 16, g]` uint8."""
    tiles, size = packed.shape
    columns = size // (2 * bits)
    codes = torch.zeros(tiles, columns // QUAD, VECTOR_BYTES, dtype=torch.uint8, device=packed.device)
    start = low = 0
    for plane in PLANES[bits]:
        stop = start + 2 * columns * plane
        vectors = packed[:, start:stop].view(tiles, -1, 1, VECTOR_BYTES)
        shifts = torch.arange(0, 8, plane, dtype=torch.uint8, device=packed.device)[:, None]
        part = (vectors >> shifts) & (2**plane - 1)  # (T, vectors, quads in a vector, 64)
        codes |= part.view(tiles, columns // QUAD, VECTOR_BYTES) << low
        start = stop
        low += plane
    grouped = codes.view(tiles, columns // QUAD, BLOCK_ROWS, QUAD)
    return grouped.transpose(1, 2).reshape(tiles, BLOCK_ROWS, columns)
