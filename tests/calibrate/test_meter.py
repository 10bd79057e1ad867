"""Which errors are measured."""

from __future__ import annotations

import torch

from moesaic.calibrate.meter import ErrorMeter
from moesaic.quantize import RTN


def test_rounded_matrices_are_the_quantizers():
    """Every matrix is rounded to the width asked for, and nothing else is done to it."""
    meter = ErrorMeter(frozenset({"weight_error"}), (2,), RTN(group_size=32))
    matrices = {"first": torch.randn(8, 64), "down": torch.randn(64, 8)}
    rounded = meter.rounded(matrices, 2)
    for name, matrix in matrices.items():
        assert torch.equal(rounded[name], RTN(group_size=32)(matrix, 2).dequantize())
