"""Unpacked bfloat16 layers for a few rows: the kernel against float64, and when it is used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForCausalLM

from moesaic.errors import UsageError
from moesaic.kernels import cpu, single_token
from moesaic.runtime.single_token import dense
from moesaic.runtime.single_token.dense import StreamedLinear, use

DEMO = Path(__file__).parents[3] / "models" / "demo"

needs_module = pytest.mark.skipif(not cpu.is_ready()[0], reason="the native module is not built")


@needs_module
@drawn(
    st.integers(0, 5), st.integers(1, 300), st.integers(1, 100), st.sampled_from(cpu.DTYPES), st.integers(1, 8),
    st.integers(0, 2**31),
)  # fmt: skip
def test_the_kernel_is_a_product(  # noqa: PLR0917 (drawn one by one)
    tokens: int, columns: int, rows: int, dtype: torch.dtype, threads: int, seed: int
) -> None:
    """Any shape on every instruction set: float32 sums, the same for any number of threads."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, columns, generator=generator).to(dtype)
    weight = torch.randn(rows, columns, generator=generator).bfloat16()
    wanted = x.double() @ weight.double().T
    size = x.double().abs() @ weight.double().abs().T
    rounding = {torch.float32: 0.0, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    try:
        for isa in cpu.native().isas():
            cpu.native().use_isa(isa)
            found = single_token.dense(x, weight)
            assert found.dtype == dtype
            assert ((found.double() - wanted).abs() <= 1e-5 * size + rounding * wanted.abs() + 1e-7).all()
            again = torch.empty_like(found)
            given = (x, weight.view(torch.uint16), again)
            cpu.native().dense(*(cpu.export(tensor) for tensor in given), threads)
            assert torch.equal(found, again)
    finally:
        cpu.native().use_isa("")


@needs_module
@pytest.mark.parametrize(
    ("x", "weight", "says"),
    [
        (torch.ones(1, 8), torch.ones(4, 8), "weight: expected bfloat16"),
        (torch.ones(1, 8), torch.ones(4, 9).bfloat16(), "x: expected shape"),
        (torch.ones(1, 8).long(), torch.ones(4, 8).bfloat16(), "x: expected float32"),
    ],
)
def test_what_does_not_fit_is_named(x: torch.Tensor, weight: torch.Tensor, says: str) -> None:
    """Wrong dtypes and shapes are refused, with the argument's name."""
    with pytest.raises(UsageError, match=says):
        single_token.dense(x, weight)


@needs_module
def test_only_large_layers_in_main_memory_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo model's head is read natively for one token, by torch for many, and for both in float32."""
    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.bfloat16).eval().requires_grad_(False)
    plain = [type(module) for module in model.modules()]
    monkeypatch.setattr(dense, "LEAST_WEIGHTS", model.lm_head.weight.numel())
    use(model)
    changed = [type(module) for module in model.modules() if isinstance(module, StreamedLinear)]
    assert isinstance(model.lm_head, StreamedLinear)
    assert len(changed) <= plain.count(nn.Linear)
    seen: list[int] = []
    real = dense.dense

    def counted(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        seen.append(x.shape[-2])
        return real(x, weight)

    monkeypatch.setattr(dense, "dense", counted)
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    many = model(ids).logits
    assert not seen
    one = model(ids, logits_to_keep=1).logits
    assert seen == [1]
    assert torch.allclose(one.float(), many[:, -1:].float(), atol=0.02 * float(many.abs().max()), rtol=0)
    model.float()
    model(ids, logits_to_keep=1)
    assert seen == [1]


def test_gradients_go_through_torch() -> None:
    """Somebody who trains a part of the model gets gradients."""
    layer = nn.Linear(1024, 1024, bias=False, dtype=torch.bfloat16)
    layer.__class__ = StreamedLinear
    x = torch.randn(1, 1024, dtype=torch.bfloat16, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is not None
