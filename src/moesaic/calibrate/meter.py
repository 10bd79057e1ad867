"""Which errors of rounding a calibration run measures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from moesaic.quantize import Quantizer

ERRORS = ("weight_error", "output_error", "fisher")


@dataclass(frozen=True)
class ErrorMeter:
    """Which errors of rounding to measure, and with what.

    Attributes:
        wanted: out of `ERRORS`.
        bits: widths, ascending.
        quantizer: what rounds.
        entries: also measure with only gate and up, or only down, rounded.
    """

    wanted: frozenset[str]
    bits: tuple[int, ...]
    quantizer: Quantizer
    entries: bool = False

    def rounded(self, matrices: Mapping[str, Tensor], bits: int) -> dict[str, Tensor]:
        """Matrices `[out, in]` as they are after rounding, under the same keys."""
        return {name: self.quantizer(matrix, bits).dequantize() for name, matrix in matrices.items()}
