"""Quantizers: `(weight, bits, second moment or None) -> QuantizedWeight`. One a file, pure tensor arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from moesaic.quantize._protocol import Quantizer as Quantizer
from moesaic.quantize._protocol import needs_moment as needs_moment
from moesaic.quantize.factor import Factor as Factor
from moesaic.quantize.gptq import GPTQ as GPTQ
from moesaic.quantize.hqq import HQQ as HQQ
from moesaic.quantize.rtn import RTN as RTN

QUANTIZERS: dict[str, Callable[..., Quantizer]] = {
    "rtn": RTN,
    "rtn-minmax": partial(RTN, clip=False),
    "hqq": HQQ,
    "gptq": GPTQ,
}
