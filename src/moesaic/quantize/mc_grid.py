"""What the released code of MC and of the router-norm paper does otherwise, flaws included; for reproduction only.

**Errors** are fed back between blocks of 128 columns only, up to 3 bits. Inside a block every column is rounded
from what it was when the block began, and the errors that later blocks make up for are those of these columns. Our
`Factor` holds shares of the errors counted from the first weights; theirs count from the weights as they are by
then, and go with the rows of the inverse Hessian's Cholesky factor, which is the inverse of the unit triangle that
`Factor` describes.

**The grid search** tries 101 factors on the range, from 0.9 to 1.1, and takes the one of least `sum |error|^2.4`.
What it calls the error is not: weights that have been decoded already are decoded once more, `s (s (q - z) - z)`,
before the weights are taken off. The code does that unless it is told to pack, and its scripts do not tell it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from moesaic.quantize import grid
from moesaic.quantize.group_grid import GroupGrid, sign_scale, span

_FACTORS = 101
_WIDEST = 1.1
_NARROWEST = 0.9
_NORM = 2.4
_BLOCK = 128  # columns


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


def inverse_coupling(coupling: Tensor) -> Tensor:
    """Row `j`: what of the error of each column before it, as rounded, column `j` is changed by. `[columns, columns]`

    The inverse of the unit lower triangle whose strict part is `coupling`.
    """
    columns = coupling.shape[0]
    lower = coupling.tril(-1)
    return torch.linalg.solve_triangular(lower, torch.eye(columns), upper=False, unitriangular=True)


def feed_back_between(
    work: Tensor, inverse: Tensor, group_size: int, search: Callable[[Tensor, int], GroupGrid]
) -> tuple[Tensor, list[GroupGrid]]:
    """Round block after block, each from what it is less its share of the errors of those before.

    Args:
        work: `[columns, rows]` float32; holds the errors afterwards.
        inverse: see `inverse_coupling`.
        group_size: columns that have a grid together, at most a block.
        search: called with the weights of a group as they are when its block is reached, and its number.

    Returns:
        Codes `[columns, rows]` uint8 and the grids of the groups.
    """
    columns, rows = work.shape
    codes = torch.empty(columns, rows, dtype=torch.uint8)
    grids: list[GroupGrid] = []
    for start in range(0, columns, _BLOCK):
        block = slice(start, min(start + _BLOCK, columns))
        target = torch.addmm(work[block], inverse[block, :start], work[:start], alpha=-1) if start else work[block]
        for low in range(start, block.stop, group_size):
            group = target[low - start : low - start + group_size]
            grids.append(search(group, low // group_size))
            found = grids[-1].encode(group)
            codes[low : low + len(group)] = found
            work[low : low + len(group)] = group - grids[-1].decode(found)
    return codes, grids
