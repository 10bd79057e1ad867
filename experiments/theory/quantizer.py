"""Round to nearest on a uniform grid per neuron, any width from 1 to 8 bits, all neurons of all seeds at once.

The steps are those of `moesaic.quantize.RTN(clip=False)` (`rtn-minmax`): the grid of a neuron spans its smallest to its
largest weight, zero included, with scale and zero point as the packed format stores them; one bit is
`sign(w) * mean|w|`. `RTN` itself takes only the widths and group sizes that can be packed; where it does, both agree
to the bit, which a test checks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moesaic.quantize import grid

WIDTHS = tuple(range(1, 9))


def rounded(weights: Tensor, bits: int) -> Tensor:
    """Weights after quantization, a neuron a row. `[..., neurons, dimension]` -> the same shape

    Raises:
        ValueError: a width that is not in `WIDTHS`.
    """
    if bits not in WIDTHS:
        raise ValueError(f"bits must be one of {WIDTHS}, got {bits}")
    rows = weights.reshape(-1, weights.shape[-1])
    parts = [_rounded_rows(rows[part], bits) for part in grid.row_chunks(*rows.shape)]
    return torch.cat(parts).view(weights.shape)


def _rounded_rows(rows: Tensor, bits: int) -> Tensor:
    groups, counts = grid.split_groups(rows, rows.shape[1])  # (N, 1, d)
    if bits == 1:
        stored = grid.store(grid.sign_scale(groups, counts), None, bits)
    else:
        low, high = groups.amin(dim=-1).clamp(max=0), groups.amax(dim=-1).clamp(min=0)
        stored = grid.store(*grid.range_grid(low, high, bits, symmetric=False), bits)
    codes = stored.encode(groups).float()
    return ((codes - stored.zero[..., None]) * stored.scale[..., None]).view(rows.shape)
