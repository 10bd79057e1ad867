"""The grid search of the released code of MC and of the router-norm paper, with its flaw; for reproduction only.

It tries 101 factors on the range, from 0.9 to 1.1, and takes the one of least `sum |error|^2.4`. What it calls the
error is not: weights that have been decoded already are decoded once more, `s (s (q - z) - z)`, before the weights are
taken off. The code does that unless it is told to pack, and its scripts do not tell it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moesaic.quantize import grid
from moesaic.quantize.group_grid import GroupGrid, sign_scale, span

_FACTORS = 101
_WIDEST = 1.1
_NARROWEST = 0.9
_NORM = 2.4


@dataclass(frozen=True)
class McSearch:
    """Finds the grid of a group as that code does. It treats all columns alike.

    Attributes:
        symmetric: no stored zero points (the released scripts have them).
    """

    symmetric: bool

    def largest(self, weights: Tensor, bits: int) -> Tensor:
        """The largest scale that a search on these weights may want. `[rows]`"""
        if bits == 1:
            return 2 * weights.abs().amax(dim=0)
        return self._ranged(*span(weights), bits)[0] * _WIDEST

    def __call__(self, weights: Tensor, importance: Tensor, row_scale: Tensor, bits: int) -> GroupGrid:
        """The grid of a group; see `GroupSearch`."""
        if bits == 1:
            return GroupGrid.stored(sign_scale(weights, torch.ones_like(importance)), None, row_scale, bits)
        low, high = span(weights)
        best, least = None, torch.full_like(low, torch.inf)
        for factor in torch.linspace(_NARROWEST, _WIDEST, _FACTORS).tolist():
            found = GroupGrid.stored(*self._ranged(low * factor, high * factor, bits), row_scale, bits)
            decoded_twice = found.decode(found.decode(found.encode(weights)))
            error = decoded_twice.sub_(weights).abs_().pow_(_NORM).sum(dim=0)
            best = found if best is None else found.where(error < least, best)
            least = torch.minimum(least, error)
        assert best is not None
        return best

    def _ranged(self, low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor | None]:
        return grid.range_grid(low, high, bits, symmetric=self.symmetric)
