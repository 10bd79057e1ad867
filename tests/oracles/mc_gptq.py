"""GPTQ as the released code of MC and of the router-norm paper does it, naively: written from notes on that code.

What the notes say: groups of 128 columns, as many as a block; the range of a group, zero included, from weights
that make up for the blocks before; 101 factors on it from 0.9 to 1.1; the best by `sum |error|^2.4`, where the
decoded weights are by mistake decoded once more; zero points that are not rounded; errors fed back inside a block
only above 3 bits, between blocks always, with the Cholesky factor of the inverse Hessian; damping of 0.01 times the
mean of the diagonal. One bit is `sign(w) mean|w|`, the sign of zero being plus. Scales and zero points are those
that our files can hold, which the released code has no part in.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
BLOCK = 128


def stored_scale(scale: float, unit: float) -> float:
    """A scale as stored: a whole number from 1 to 255 of the row's unit."""
    return min(max(round(scale / unit), 1), 255) * unit


def rounded(values: Array, scale: float, zero: float, bits: int) -> Array:
    """Codes."""
    return np.clip(np.round(values / scale + zero), 0, 2**bits - 1)


def grid(values: Array, unit: float, bits: int) -> tuple[float, float]:
    """Scale and zero point of one group of one row."""
    if bits == 1:
        return stored_scale(2 * float(np.abs(values).mean()), unit), 0.5
    top, best = 2**bits - 1, (math.inf, 0.0, 0.0)
    for step in range(101):
        factor = 0.9 + 0.002 * step
        low, high = min(float(values.min()), 0.0) * factor, max(float(values.max()), 0.0) * factor
        scale = stored_scale((high - low) / top, unit)
        zero = round(-low / (high - low) * 255) * top / 255
        once = scale * (rounded(values, scale, zero, bits) - zero)
        twice = scale * (once - zero)
        error = float((np.abs(twice - values) ** 2.4).sum())
        if error < best[0]:
            best = (error, scale, zero)
    return best[1], best[2]


def mc_gptq(weight: Array, moment: Array, bits: int, units: Array) -> Array:
    """The decoded weights `[rows, columns]`.

    Args:
        weight: `[rows, columns]`.
        moment: `[columns, columns]`.
        bits: width.
        units: what scales are whole numbers of, `[rows]`.
    """
    hessian = moment + 0.01 * float(np.mean(np.diag(moment))) * np.eye(len(moment))
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    now, made = weight.copy(), np.zeros_like(weight)
    for start in range(0, weight.shape[1], BLOCK):
        end = min(start + BLOCK, weight.shape[1])
        block, errors = now[:, start:end].copy(), np.zeros((len(weight), end - start))
        grids = [grid(row, float(unit), bits) for row, unit in zip(block, units, strict=True)]
        for i in range(end - start):
            for row, (scale, zero) in enumerate(grids):
                value = block[row, i : i + 1]
                code = (value >= 0) * 1.0 if bits == 1 else rounded(value, scale, zero, bits)
                made[row, start + i] = (scale * (code - zero)).item()
            errors[:, i] = (block[:, i] - made[:, start + i]) / upper[start + i, start + i]
            if bits > 3:
                block[:, i:] -= np.outer(errors[:, i], upper[start + i, start + i : end])
        now[:, end:] -= errors @ upper[start:end, end:]
    return made
