"""The packed linear module."""

from __future__ import annotations

import pytest
import torch

from moesaic.packing.layout import layout_of, pack
from moesaic.quantize import RTN
from moesaic.runtime.linear import PackedLinear
from tests.quantize.made_up import gaussian


def packed(bias: bool) -> tuple[PackedLinear, torch.Tensor]:
    """A filled module and the matrix it stands for."""
    weight = RTN()(gaussian(20, 70), 4)
    module = PackedLinear(layout_of(weight), bias_dtype=torch.float32 if bias else None)
    state = {"packed": pack(weight), **({"bias": torch.randn(20)} if bias else {})}
    module.load_state_dict(state, assign=True)
    return module, weight.dequantize()


def test_multiplies_like_a_linear_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without bias it computes what `nn.Linear` would with the dequantized weight; int8 kernels nearly so."""
    x = torch.randn(2, 3, 70)
    for bias in (False, True):
        module, weight = packed(bias)
        wanted = torch.nn.functional.linear(x, weight, module.bias)
        monkeypatch.setenv("MOESAIC_KERNELS", "reference")
        torch.testing.assert_close(module(x), wanted, rtol=1e-4, atol=1e-5)
        monkeypatch.delenv("MOESAIC_KERNELS")
        assert (module(x) - wanted).norm() < 0.01 * wanted.norm()


def test_holds_the_blob_and_no_float_weight() -> None:
    """What is in memory is the packed bytes; nothing can be trained by mistake."""
    module, _ = packed(True)
    assert set(module.state_dict()) == {"packed", "bias"}
    assert module.weight is None
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert (module.in_features, module.out_features) == (70, 20)
    assert "bits=4" in repr(module)


def test_starts_without_memory() -> None:
    """Until it is filled it is on the meta device."""
    layout = layout_of(RTN()(gaussian(4, 64), 2))
    assert PackedLinear(layout, bias_dtype=None).packed.is_meta
