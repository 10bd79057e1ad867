"""Half-quadratic quantization; what all quantizers promise is in `tests/contracts/test_registries.py`."""

from __future__ import annotations

import pytest
import torch

from moesaic.quantize.hqq import HQQ
from moesaic.quantize.rtn import RTN
from tests.quantize.made_up import gaussian


def lp_error(weight: torch.Tensor, made: torch.Tensor) -> float:
    """`sum |e|^0.7`, which the method minimises."""
    return float((weight - made).abs().pow(0.7).sum())


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_beats_its_start_in_its_own_measure(bits: int, symmetric: bool) -> None:
    """The best state seen is kept, so that the l_p error is not above that of plain min-max rounding."""
    weight = gaussian()
    start = lp_error(weight, RTN(clip=False, symmetric=symmetric)(weight, bits).dequantize())
    found = lp_error(weight, HQQ(symmetric=symmetric)(weight, bits).dequantize())
    assert found <= start * 1.002


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("size", [2.0**-20, 2.0**-3, 2.0**8])
def test_scaling_the_weights_scales_the_result(size: float, symmetric: bool) -> None:
    """`beta` is relative to the scale of the weights: multiplying by a power of two changes no code."""
    weight = gaussian()
    quantizer = HQQ(symmetric=symmetric)
    assert torch.equal(quantizer(weight * size, 3).codes, quantizer(weight, 3).codes)


def test_few_outliers_are_given_up_for_the_many() -> None:
    """With an outlier, HQQ's median error is below that of the grid that spans it."""
    weight = gaussian(8, 64, size=1.0)
    weight[:, 5] = 12.0
    ours = (HQQ(symmetric=True)(weight, 3).dequantize() - weight).abs().median()
    spanned = (RTN(clip=False, symmetric=True)(weight, 3).dequantize() - weight).abs().median()
    assert ours < spanned


@pytest.mark.parametrize(
    "knob", [{"fit_scale": True}, {"norm": 1.0}, {"beta": 1000.0}, {"growth": 2.0}, {"iterations": 2}]
)
def test_every_knob_changes_the_result(knob: dict[str, float]) -> None:
    """No parameter is there for show."""
    weight = gaussian(64, 256, size=1.0)
    made = HQQ(**knob)(weight, 2).dequantize()  # type: ignore[arg-type]
    assert not torch.equal(made, HQQ()(weight, 2).dequantize())
