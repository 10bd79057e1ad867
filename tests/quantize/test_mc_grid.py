"""The search of the released code, restated by loops."""

from __future__ import annotations

import pytest
import torch

from moesaic.quantize.grid import row_scales
from moesaic.quantize.mc_grid import McSearch
from tests.quantize.made_up import gaussian


@pytest.mark.parametrize("bits", [2, 3])
def test_it_minimises_what_the_released_code_minimises(bits: int) -> None:
    """Of 101 ranges the one whose twice decoded weights are nearest, in the power 2.4; found by plain floats."""
    weights = gaussian(3, 64, size=1.0)
    row_scale = row_scales(torch.full((3,), 8.0))
    found = McSearch(symmetric=False)(weights.T.contiguous(), torch.ones(64), row_scale, bits)
    top = 2**bits - 1
    for row, values in enumerate(weights.tolist()):
        best = (float("inf"), 0.0)
        for step in range(101):
            factor = 0.9 + 0.002 * step
            low, high = min(*values, 0.0) * factor, max(*values, 0.0) * factor
            unit = float(row_scale[row])
            scale = round((high - low) / top / unit) * unit
            zero = round(-low / (high - low) * 255) * top / 255
            total = 0.0
            for value in values:
                once = scale * (min(max(round(value / scale + zero), 0), top) - zero)
                total += abs(scale * (once - zero) - value) ** 2.4
            best = min(best, (total, scale))
        assert float(found.scale[row]) == pytest.approx(best[1], rel=1e-4)


def test_one_bit_treats_all_columns_alike() -> None:
    """`2 mean|w|`, whatever the importance."""
    weights = gaussian(3, 64, size=1.0).T.contiguous()
    row_scale = row_scales(McSearch(symmetric=False).largest(weights, 1))
    made = McSearch(symmetric=False)(weights, torch.arange(64.0), row_scale, 1)
    assert ((made.scale - 2 * weights.abs().mean(dim=0)).abs() <= row_scale.float() * 0.51).all()
