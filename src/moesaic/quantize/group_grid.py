"""The grid of one group of columns for many rows at once, found on the stored form of scales and zero points.

Quantizers that round column after column keep a matrix as `[columns, rows]`; a group is a run of its rows then. What
the search minimises is the squared error, each column of the group having its own importance.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moesaic.quantize import grid


@dataclass(frozen=True)
class GroupGrid:
    """Scale and zero point of one group in each row, as stored and as numbers.

    Attributes:
        scale_codes: `[rows]` float32, `0 … 255`.
        zero_codes: `[rows]` float32, `0 … 255`; None on a symmetric grid.
        scale: `[rows]` float32.
        inverse: `[rows]` float32, `1 / scale`, zero where the scale is.
        zero: `[rows]` float32, in units of codes.
        bits: width of the codes.
    """

    scale_codes: Tensor
    zero_codes: Tensor | None
    scale: Tensor
    inverse: Tensor
    zero: Tensor
    bits: int

    @classmethod
    def stored(cls, scale: Tensor, zero: Tensor | None, row_scale: Tensor, bits: int) -> GroupGrid:
        """The nearest grid that can be stored.

        Args:
            scale: `[rows]` float32, not negative.
            zero: `[rows]` float32 in units of codes, or None.
            row_scale: `[rows]` bfloat16.
            bits: width of the codes.
        """
        scale_codes = grid.scale_to_codes(scale, row_scale)
        scale = row_scale.float() * scale_codes
        inverse = torch.where(scale > 0, 1 / scale, 0.0)
        if zero is None:
            middle = torch.full_like(scale, (2**bits - 1) / 2)
            return cls(scale_codes, None, scale, inverse, middle, bits)
        zero_codes = grid.zero_to_codes(zero, bits)
        return cls(scale_codes, zero_codes, scale, inverse, grid.zero_of_codes(zero_codes, bits), bits)

    def where(self, mine: Tensor, other: GroupGrid) -> GroupGrid:
        """This grid in the rows where `mine` `[rows]` is true, the other elsewhere."""
        zero_codes = None
        if self.zero_codes is not None and other.zero_codes is not None:
            zero_codes = torch.where(mine, self.zero_codes, other.zero_codes)
        return GroupGrid(
            torch.where(mine, self.scale_codes, other.scale_codes),
            zero_codes,
            torch.where(mine, self.scale, other.scale),
            torch.where(mine, self.inverse, other.inverse),
            torch.where(mine, self.zero, other.zero),
            self.bits,
        )

    def encode(self, weights: Tensor, out: Tensor | None = None) -> Tensor:
        """Codes of weights `[…, rows]`, as floats: the nearest, at one bit the sign with that of zero being plus."""
        if self.bits == 1:
            return torch.ge(weights, 0, out=out) if out is not None else (weights >= 0).to(weights.dtype)
        codes = torch.addcmul(self.zero, weights, self.inverse, out=out)
        return codes.round_().clamp_(0, 2**self.bits - 1)

    def decode(self, codes: Tensor) -> Tensor:
        """The weights that codes `[…, rows]` stand for."""
        return (codes - self.zero).mul_(self.scale)

    def error(self, weights: Tensor, importance: Tensor) -> Tensor:
        """Squared error of rounding `[columns, rows]`, each column times its importance `[columns]`. `[rows]`

        In units of codes the error is `q - (w / s + z)`: two passes fewer than in units of weights.
        """
        exact = torch.addcmul(self.zero, weights, self.inverse)
        miss = exact.round().clamp_(0, 2**self.bits - 1).sub_(exact)
        return torch.mv(miss.square_().T, importance).mul_(self.scale.square())


@dataclass(frozen=True)
class GroupSearch:
    """Finds the grid of least weighted squared error: clipped ranges, then least squares refits of the best.

    The range of a group is its minimum to its maximum, zero included, times a factor: the best of `candidates`
    between 1 and `smallest`, then of the two half-way to its neighbours. A refit takes the codes that came out and
    solves for the scale (and the zero point). One bit is `sign(w)` times the weighted mean of `|w|`.

    Attributes:
        symmetric: no stored zero points.
        candidates: how many factors the search tries first.
        smallest: the smallest factor.
        refits: how many times.
    """

    symmetric: bool
    candidates: int
    smallest: float
    refits: int

    def largest(self, weights: Tensor, bits: int) -> Tensor:
        """The scale that spans these weights. One bit, too, is given room up to the largest weight. `[rows]`"""
        if bits == 1:
            return 2 * weights.abs().amax(dim=0)
        return self._ranged(*span(weights), bits)[0]

    def __call__(self, weights: Tensor, importance: Tensor, row_scale: Tensor, bits: int) -> GroupGrid:
        """The grid of a group.

        Args:
            weights: `[columns, rows]` float32.
            importance: `[columns]` float32, positive.
            row_scale: `[rows]` bfloat16.
            bits: width of the codes.
        """
        if bits == 1:
            return GroupGrid.stored(sign_scale(weights, importance), None, row_scale, bits)
        low, high = span(weights)
        step = (1 - self.smallest) / max(1, self.candidates - 1)
        factor = torch.ones_like(low)
        best = GroupGrid.stored(*self._ranged(low, high, bits), row_scale, bits)
        least = best.error(weights, importance)
        for stage in ([-step * i for i in range(1, self.candidates)], [-step / 2, step / 2]):
            centre = factor
            for shift in stage:
                tried = (centre + shift).clamp_(max=1)
                found = GroupGrid.stored(*self._ranged(low * tried, high * tried, bits), row_scale, bits)
                error = found.error(weights, importance)
                better = error < least
                best, least = found.where(better, best), torch.where(better, error, least)
                factor = torch.where(better, tried, factor)
        for _ in range(self.refits):
            found = GroupGrid.stored(*self._refitted(weights, importance, best), row_scale, bits)
            error = found.error(weights, importance)
            better = error < least
            best, least = found.where(better, best), torch.where(better, error, least)
        return best

    def _ranged(self, low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor | None]:
        return grid.range_grid(low, high, bits, symmetric=self.symmetric)

    def _refitted(self, weights: Tensor, importance: Tensor, found: GroupGrid) -> tuple[Tensor, Tensor | None]:
        """The scale and zero point of least weighted squared error for the codes that a grid gives."""
        codes = found.encode(weights)
        if self.symmetric:
            level = codes.sub_(found.zero)
            power = torch.mv(level.square().T, importance)
            scale = torch.mv((level * weights).T, importance) / power.clamp_(min=1e-12)
            return torch.where(scale > 0, scale, found.scale), None
        share = importance / importance.sum()
        mean_code, mean_weight = torch.mv(codes.T, share), torch.mv(weights.T, share)
        codes.sub_(mean_code)
        spread = torch.mv(codes.square().T, share)
        scale = torch.mv((codes * weights).T, share) / spread.clamp(min=1e-12)
        usable = (scale > 0) & (spread > 1e-6)
        scale = torch.where(usable, scale, found.scale)
        zero = mean_code - mean_weight / scale
        return scale, torch.where(usable, zero, found.zero)


def span(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest of weights `[columns, rows]`, zero included. `[rows]` each"""
    return weights.amin(dim=0).clamp_(max=0), weights.amax(dim=0).clamp_(min=0)


def sign_scale(weights: Tensor, importance: Tensor) -> Tensor:
    """Twice the weighted mean of `|w|`: the least weighted error that two opposite levels can have. `[rows]`"""
    return torch.mv(weights.abs().T, importance).mul_(2 / importance.sum())
