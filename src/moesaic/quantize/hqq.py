"""Half-quadratic quantization (Badri and Shaji 2023): robust to outliers, uses no data.

Minimises `|| W - s (q - z) ||_p^p` with `p < 1`, which lets a few large weights go wrong for the sake of the
many. Half-quadratic splitting alternates two closed forms: the residual `E` is shrunk by the generalised soft
threshold of the `l_p` norm, and the grid is refitted to `W - E`. Cost: `iterations` passes over the weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moesaic.quantize import grid
from moesaic.records import QuantizedWeight


@dataclass(frozen=True)
class HQQ:
    """Half-quadratic quantizer.

    The published method refits the zero point only; on a symmetric grid, which has none, the scale is refitted
    instead (`fit_scale` refits it on asymmetric grids too). The best state seen, in the `l_p` sense, is kept.

    Attributes:
        group_size: columns that share a scale.
        symmetric: no stored zero points.
        fit_scale: refit the scale as well as the zero point.
        norm: the exponent `p`.
        beta: first weight of the coupling term, for residuals in units of the group's scale.
        growth: factor on `beta` after each iteration.
        iterations: how many.
    """

    group_size: int = 64
    symmetric: bool = False
    fit_scale: bool = False
    norm: float = 0.7
    beta: float = 10.0
    growth: float = 1.01
    iterations: int = 10

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
            scale, zero = grid.range_grid(low, high, bits, symmetric=self.symmetric)
            scale, zero = self._refine(groups, scale, zero, counts, bits)
            stored = grid.store(scale, zero, bits)
        codes = stored.encode(groups)
        return grid.quantized(codes, stored, group_size=self.group_size, columns=weight.shape[1])

    def _refine(
        self, groups: Tensor, scale: Tensor, zero: Tensor | None, counts: Tensor, bits: int
    ) -> tuple[Tensor, Tensor | None]:
        """The best scale and zero point seen, found in units of the first scale: the size of weights is moot."""
        unit = scale
        groups = groups * torch.where(unit > 0, 1 / unit, 0.0)[..., None]
        scale = torch.ones_like(unit)
        middle = torch.full_like(scale, (2**bits - 1) / 2)
        real = grid.real_columns(counts, self.group_size)
        best_error = torch.full_like(scale, torch.inf)
        best_scale, best_zero = scale, zero
        beta = self.beta
        for _ in range(self.iterations):
            centre = middle if zero is None else zero
            codes = grid.to_codes(groups, scale, centre, bits)
            level = codes - centre[..., None]
            residual = torch.addcmul(groups, level, scale[..., None], value=-1)
            if real is not None:
                level.mul_(real)
                residual.mul_(real)
            size = residual.abs()
            slope = size.clamp(min=1e-8).log_().mul_(self.norm - 1).exp_()  # |e|^(p-1), faster than pow
            error = (size * slope).sum(dim=-1)
            better = error < best_error
            best_error = torch.where(better, error, best_error)
            best_scale = torch.where(better, scale, best_scale)
            if zero is not None and best_zero is not None:
                best_zero = torch.where(better, zero, best_zero)
            # the generalised soft threshold: minimiser of |e|^p + beta/2 (e - residual)^2, to first order
            shrunk = size.sub_(slope.div_(beta)).clamp_(min=0).copysign_(residual)
            target = groups - shrunk
            if zero is None or self.fit_scale:
                scale = _fit_scale(target, level, scale)
            if zero is not None:
                zero = _fit_zero(target, codes, scale, real, counts).clamp_(0, 2**bits - 1)
            beta *= self.growth
        return best_scale * unit, best_zero


def _fit_zero(target: Tensor, codes: Tensor, scale: Tensor, real: Tensor | None, counts: Tensor) -> Tensor:
    """The zero point that puts the mean of the codes on the mean of `target / scale`."""
    offsets = codes.sub_(target / scale[..., None])
    if real is not None:
        offsets.mul_(real)
    return offsets.sum(dim=-1) / counts


def _fit_scale(target: Tensor, level: Tensor, scale: Tensor) -> Tensor:
    """Least squares scale of `target ~ scale * level`, keeping the old one where it is not defined."""
    power = torch.linalg.vector_norm(level, dim=-1).square()
    product = (level * target).sum(dim=-1)
    fitted = product / power.clamp(min=1e-12)
    return torch.where(fitted > 0, fitted, scale)
