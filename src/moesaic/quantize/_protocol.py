"""What every quantizer looks like from outside."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from moesaic.records import QuantizedWeight


class Quantizer(Protocol):
    """Rounds a matrix to codes on a stored grid.

    One that wants the second moment of the matrix' inputs has the class attribute `needs_moment = True`.
    """

    @property
    def group_size(self) -> int:
        """Columns that share a scale: 32, 64 or 128."""

    @property
    def symmetric(self) -> bool:
        """Whether the grid does without stored zero points (one bit always does)."""

    def __call__(self, weight: Tensor, bits: int, second_moment: Tensor | None = None) -> QuantizedWeight:
        """Quantize one matrix.

        Args:
            weight: `[out, in]`, any float dtype; not changed.
            bits: 1, 2, 3, 4 or 8.
            second_moment: `[in, in]` mean of `x x^T` over the matrix' inputs, for quantizers that use data.

        Raises:
            ValueError: a width or group size that the format does not have.
        """
        ...


def needs_moment(quantizer: Quantizer) -> bool:
    """Whether the quantizer wants the second moment of a matrix' inputs."""
    return bool(getattr(quantizer, "needs_moment", False))
