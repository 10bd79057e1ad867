"""Round to nearest; what all quantizers promise is in `tests/contracts/test_registries.py`."""

from __future__ import annotations

import pytest
import torch

from moesaic.quantize.rtn import RTN
from tests.quantize.made_up import gaussian, rms_error


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_without_clipping_no_weight_is_off_by_more_than_the_stored_grid_allows(bits: int, symmetric: bool) -> None:
    """Min-max rounding is within half a step of every weight, plus what storing scale and zero point costs."""
    weight = gaussian()
    made = RTN(clip=False, symmetric=symmetric)(weight, bits)
    step = (made.row_scale.float()[:, None] * made.scale_codes.float()).repeat_interleave(64, dim=1)[:, :160]
    top = 2**bits - 1
    slack = 0.5 + top * (0.5 / 100 + (0 if symmetric else 0.5 / 255))
    assert ((made.dequantize() - weight).abs() <= step * slack).all()


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_clipping_never_hurts_much_and_helps_at_low_widths(bits: int, symmetric: bool) -> None:
    """The search takes the least squared error, so that clipping wins clearly where the grid is coarse."""
    weight = gaussian()
    clipped = rms_error(weight, RTN(clip=True, symmetric=symmetric)(weight, bits))
    spanned = rms_error(weight, RTN(clip=False, symmetric=symmetric)(weight, bits))
    assert clipped <= spanned * (0.95 if bits <= 3 else 1.02)


def test_outlier_is_clipped_at_two_bits() -> None:
    """One huge weight among small ones is cut when that serves the sum of squares."""
    weight = gaussian(1, 64, size=1.0)
    weight[0, 7] = 8.0
    assert rms_error(weight, RTN()(weight, 2)) < rms_error(weight, RTN(clip=False)(weight, 2))


@pytest.mark.parametrize("knob", [{"candidates": 3}, {"smallest": 0.8}, {"clip": False}, {"group_size": 32}])
def test_every_knob_changes_the_result(knob: dict[str, float]) -> None:
    """No parameter is there for show."""
    weight = gaussian()
    assert not torch.equal(RTN(**knob)(weight, 2).dequantize(), RTN()(weight, 2).dequantize())  # type: ignore[arg-type]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("columns", [3, 32])
def test_padding_has_no_say_in_the_clipping(columns: int, symmetric: bool) -> None:
    """A last group of few columns is clipped by their error alone, not by how well the padding zeros are met.

    The same columns repeated until the group is full have the same best grid.
    """
    weight = gaussian(500, columns, size=1.0)
    quantizer = RTN(group_size=64, symmetric=symmetric)
    alone = rms_error(weight, quantizer(weight, 2))
    repeated = weight.repeat(1, 64 // columns)
    assert alone <= rms_error(repeated, quantizer(repeated, 2)) * 1.02


def test_a_single_column_and_a_single_row_are_met() -> None:
    """The smallest matrices come out within a step of 8 bits."""
    for weight in (torch.tensor([[0.3], [-0.7]]), torch.tensor([[0.3, -0.7, 0.1]])):
        assert rms_error(weight, RTN()(weight, 8)) < 0.01
