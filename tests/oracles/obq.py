"""Optimal brain quantization, column by column, in float64 with the whole inverse Hessian: written from the papers.

Frantar and Alistarh 2022 (OBC) and Frantar et al. 2023 (GPTQ), section 3: after a column is fixed, the others take the
step that makes up for it best, and the column leaves the inverse by one step of Gaussian elimination.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def damped(moment: Array, damping: float) -> Array:
    """The Hessian with a part of the mean of its diagonal added to the diagonal."""
    return moment + damping * float(np.mean(np.diag(moment))) * np.eye(len(moment))


def obq(weight: Array, hessian: Array, order: list[int], decode: Callable[[int, Array], Array]) -> tuple[Array, Array]:
    """Fix columns one after the other.

    Args:
        weight: `[rows, columns]`.
        hessian: `[columns, columns]`, damped.
        order: columns, the first to be fixed first.
        decode: what a column becomes, from its number and its weights as they are by then.

    Returns:
        What each column was when its turn came, and what it became, `[rows, columns]` each.
    """
    now = weight.copy()
    wanted, made = np.empty_like(now), np.empty_like(now)
    inverse = np.linalg.inv(hessian)
    for column in order:
        wanted[:, column] = now[:, column]
        made[:, column] = decode(column, now[:, column])
        error = (wanted[:, column] - made[:, column]) / inverse[column, column]
        now -= np.outer(error, inverse[column])
        inverse -= np.outer(inverse[:, column], inverse[column]) / inverse[column, column]
        inverse[column, column] = 1.0  # it is done with; keeps later divisions defined
    return wanted, made


def output_error(weight: Array, made: Array, moment: Array) -> float:
    """Squared error of the outputs, `sum over rows of e H e^T`."""
    error = weight - made
    return float(np.sum((error @ moment) * error))
