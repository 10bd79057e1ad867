"""The triangular factor of a second moment: what GPTQ needs to know of a matrix' inputs, worked out once.

Rounding the columns in turn, each makes up for the errors of those before it. With `H = X^T X`, `X` lower
triangular, the squared error of the outputs is

    (w - q) H (w - q)^T = sum over j of  x_jj^2 (w_j + sum over i < j of (w_i - q_i) x_ji / x_jj - q_j)^2

so that column `j`, when the ones before it are fixed, is best rounded from `w_j + sum (w_i - q_i) c_ji` with the
coupling `c_ji = x_ji / x_jj`. This is the same update as that of the published routine, which inverts `H` by its
Cholesky factor and then factorises the inverse: `inv(H) = U^T U` with `U = X^-T`. One factorisation does here what
takes three triangular steps of `n^3 / 3` or more there, and no inverse is ever formed. (That GPTQ is successive
rounding on the Cholesky factor of `H`: Chen et al., *The Geometry of LLM Quantization*, arXiv 2507.18553.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moesaic.errors import NotFinite
from moesaic.lanes import Lanes, lanes

_BLOCK = 256  # rows factorised at a time
_TILE = 1024  # columns of a task; fixed, so that the number of threads does not show


@dataclass(frozen=True)
class Factor:
    """A factorised second moment, for any number of matrices and widths.

    Attributes:
        coupling: `[in, in]` float32, row `j` holds the share of the errors of columns `i < j` that column `j` makes
            up for; what is on and above the diagonal means nothing.
        pivots: `[in]` float32, `x_jj^2` relative to the mean square of the inputs: what an error of column `j` costs
            when all later columns make up for it.
        diagonal: `[in]` float32, mean square of each input over the mean of all.
        order: `[in]` int64, the columns in the order in which they are rounded; None for as they are. The other
            fields are in that order.
        damping: what was added to the diagonal, as a part of its mean; more than asked where that did not do.
    """

    coupling: Tensor
    pivots: Tensor
    diagonal: Tensor
    order: Tensor | None
    damping: float

    @property
    def columns(self) -> int:
        """Number of inputs."""
        return int(self.coupling.shape[0])

    def in_place(self, ordered: Tensor) -> Tensor:
        """Values of the columns in the order of rounding, `[in, …]`, put back in the order of the matrix."""
        if self.order is None:
            return ordered
        values = torch.empty_like(ordered)
        values[self.order] = ordered
        return values


def prepare(second_moment: Tensor, *, damping: float = 0.01, act_order: bool = False) -> Factor:
    """Factorise `second_moment + damping * mean(diagonal) * I`, with ten times the damping until that succeeds.

    A moment of zeros, from no tokens or tokens of zeros, counts as the identity. Inputs that are always zero are left
    with the damping alone: their columns are rounded to nearest and disturb nothing.

    Args:
        second_moment: `[in, in]` mean or sum of `x x^T`, any float dtype; its size does not matter. Only the lower
            triangle is read. Not changed; a second one of float32 is made (float64 if that is not precise enough).
        damping: first try, as a part of the mean of the diagonal.
        act_order: take the columns in descending order of the diagonal.

    Raises:
        ValueError: not a square matrix, or a damping that is not positive.
        NotFinite: NaN or infinity in the moment.
    """
    if second_moment.ndim != 2 or second_moment.shape[0] != second_moment.shape[1]:
        raise ValueError(f"second_moment must be square, [in, in], got {list(second_moment.shape)}")
    if not damping > 0:
        raise ValueError(f"damping must be positive, got {damping}")
    moment = second_moment.detach()
    diagonal = moment.diagonal().double()
    check_finite(moment, "the second moment of the inputs", "look for NaN in the model's activations or weights")
    mean = float(diagonal.mean())
    if mean <= 0:
        moment = torch.eye(moment.shape[0], dtype=torch.float32)
        diagonal, mean = moment.diagonal().double(), 1.0
    order = torch.argsort(diagonal, descending=True, stable=True) if act_order else None
    relative = (diagonal if order is None else diagonal[order]).div(mean).float()
    with lanes() as side_by_side:
        while True:
            for dtype in (torch.float32, torch.float64):
                matrix = _damped(moment, order, mean, damping, dtype)
                if _factorise(matrix, side_by_side):
                    pivots = matrix.diagonal().square().float()
                    matrix.div_(matrix.diagonal().clone()[:, None])
                    return Factor(matrix.float(), pivots, relative, order, damping)
            damping *= 10


def check_finite(values: Tensor, what: str, remedy: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        NotFinite: with the number of values and the remedy.
    """
    if bool(torch.isfinite(values.sum(dtype=torch.float64))):
        return  # the usual case in one pass without a copy
    bad = int(values.numel() - torch.isfinite(values).sum())
    if bad:
        raise NotFinite(f"{what} {list(values.shape)}: {bad} values are NaN or infinite; {remedy}")


def _damped(moment: Tensor, order: Tensor | None, mean: float, damping: float, dtype: torch.dtype) -> Tensor:
    """A copy to work in: in the order asked for, over the mean of its diagonal, damped."""
    if order is None:
        matrix = torch.empty(moment.shape, dtype=dtype).copy_(moment)
    else:
        matrix = moment[order].to(dtype)[:, order]
    matrix.div_(mean)
    matrix.diagonal().add_(damping)
    return matrix


def _factorise(matrix: Tensor, side_by_side: Lanes) -> bool:
    """Put the lower triangular `X` with `X^T X = matrix` in its place; False where there is none.

    From the last rows to the first: rows `r` of `X` follow from those of `matrix` less what the rows below account
    for, `X[r, r]^T X[r, :] = matrix[r, :] - X[below, r]^T X[below, :]`.
    """
    for start in reversed(range(0, matrix.shape[0], _BLOCK)):
        own = slice(start, start + _BLOCK)
        rows, below = matrix[own], matrix[start + _BLOCK :]  # views

        def corner(own: slice, rows: Tensor = rows, below: Tensor = below) -> Tensor:
            square = rows[:, own].addmm_(below[:, own].T, below[:, own], alpha=-1)
            lower, failed = torch.linalg.cholesky_ex(square.flip(0, 1).T)  # of the mirrored lower triangle
            return torch.full_like(lower, torch.nan) if int(failed) else lower.flip(0, 1)

        (upper,) = side_by_side(corner, [own])  # matrix[own, own] = upper @ upper.T
        if not bool(torch.isfinite(upper).all()):
            return False
        rows[:, own] = upper.T

        def panel(
            tile: slice, rows: Tensor = rows, below: Tensor = below, own: slice = own, upper: Tensor = upper
        ) -> None:
            rest = rows[:, tile].addmm_(below[:, own].T, below[:, tile], alpha=-1)
            rest.copy_(torch.linalg.solve_triangular(upper, rest, upper=True))

        side_by_side(panel, [slice(at, min(at + _TILE, start)) for at in range(0, start, _TILE)])
    return True
