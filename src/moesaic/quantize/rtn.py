"""Round to nearest on a grid that spans each group, or the part of it that costs least.

Uses no data. Cost: one pass over the weights; with clipping, one pass per candidate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moesaic.quantize import grid
from moesaic.records import QuantizedWeight


@dataclass(frozen=True)
class RTN:
    """Round to nearest.

    The range of a group is its minimum to its maximum, zero included. With `clip`, the range is shrunk by the
    factor that gives the least squared error: the best of `candidates` between 1 and `smallest`, then of the two
    half-way to its neighbours. Large weights are then cut. One bit is `sign(w) * mean|w|`, as in MC (Huang et al.
    2025) and in the router-norm paper (Chowdhury et al. 2026).

    Attributes:
        group_size: columns that share a scale.
        symmetric: no stored zero points.
        clip: search the range by least squared error.
        candidates: how many shrink factors the search tries.
        smallest: the smallest shrink factor.
    """

    group_size: int = 64
    symmetric: bool = False
    clip: bool = True
    candidates: int = 6
    smallest: float = 0.4

    def __call__(self, weight: Tensor, bits: int, second_moment: Tensor | None = None) -> QuantizedWeight:
        """Quantize `weight` `[out, in]`; `second_moment` is not used. See `Quantizer`."""
        grid.check_width(bits, self.group_size)
        rows, columns = weight.shape
        parts = [self._rows(weight[chunk], bits) for chunk in grid.row_chunks(rows, columns)]
        return grid.join_rows(parts)

    def _rows(self, weight: Tensor, bits: int) -> QuantizedWeight:
        groups, counts = grid.split_groups(weight, self.group_size)  # (N, G, g)
        if bits == 1:
            stored = grid.store(grid.sign_scale(groups, counts), None, bits)
        else:
            low = groups.amin(dim=-1).clamp_(max=0)
            high = groups.amax(dim=-1).clamp_(min=0)
            real = grid.real_columns(counts, self.group_size)
            shrink = self._best_shrink(groups, low, high, bits, real) if self.clip else torch.ones_like(low)
            scale, zero = grid.range_grid(low * shrink, high * shrink, bits, symmetric=self.symmetric)
            stored = grid.store(scale, zero, bits)
        codes = stored.encode(groups)
        return grid.quantized(codes, stored, group_size=self.group_size, columns=weight.shape[1])

    def _best_shrink(self, groups: Tensor, low: Tensor, high: Tensor, bits: int, real: Tensor | None) -> Tensor:
        """The shrink factor of least squared error of every group. `[rows, groups]`"""
        best_error = torch.full_like(low, torch.inf)
        best = torch.ones_like(low)
        step = (1 - self.smallest) / (self.candidates - 1)
        coarse = [torch.full_like(low, 1 - step * i) for i in range(self.candidates)]
        for stage in (coarse, (-step / 2, step / 2)):
            centre = best
            for candidate in stage:
                factor = candidate if isinstance(candidate, Tensor) else (centre + candidate).clamp(max=1)
                error = self._squared_error(groups, low * factor, high * factor, bits, real)
                better = error < best_error
                best_error = torch.where(better, error, best_error)
                best = torch.where(better, factor, best)
        return best

    def _squared_error(self, groups: Tensor, low: Tensor, high: Tensor, bits: int, real: Tensor | None) -> Tensor:
        """Error of rounding to the grid that spans `low … high`, by group (its square root). `[rows, groups]`

        In units of codes the error is `q - (w / s + z)`: two passes fewer than in units of weights.
        """
        scale, zero = grid.range_grid(low, high, bits, symmetric=self.symmetric)
        if zero is None:
            zero = torch.full_like(scale, (2**bits - 1) / 2)
        inverse = torch.where(scale > 0, 1 / scale, 0.0)
        exact = torch.addcmul(zero[..., None], groups, inverse[..., None])
        miss = exact.round().clamp_(0, 2**bits - 1).sub_(exact)
        if real is not None:
            miss.mul_(real)
        return torch.linalg.vector_norm(miss, dim=-1).mul_(scale)
