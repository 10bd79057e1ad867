"""The reference kernels against matrices that were unpacked and multiplied one by one."""

from __future__ import annotations

import pytest
import torch

from moesaic.errors import CorruptFile
from moesaic.kernels import reference
from moesaic.packing.layout import layout_of, pack
from moesaic.quantize import RTN
from moesaic.records import PACKED_WIDTHS
from tests.kernels.made_up import naive_experts, random_layer
from tests.quantize.made_up import gaussian

MIXES = [((2, 2, 2, 2), (2, 2, 2, 2)), ((1, 2, 3, 4), (8, 16, 2, 1)), ((16, 16, 1, 16), (3, 16, 16, 16))]


@pytest.mark.parametrize("bits", PACKED_WIDTHS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (17, 70), (40, 128)])
def test_linear_is_a_product_with_the_dequantized_matrix(bits: int, rows: int, columns: int) -> None:
    """Every width and odd shapes, with and without bias, for any number of leading dimensions."""
    weight = RTN()(gaussian(rows, columns, size=1.0), bits)
    blob, layout = pack(weight), layout_of(weight)
    x, bias = torch.randn(2, 3, columns, dtype=torch.float64), torch.randn(rows)
    wanted = x @ weight.dequantize().double().T
    torch.testing.assert_close(reference.linear(x, blob, layout), wanted)
    torch.testing.assert_close(reference.linear(x, blob, layout, bias), wanted + bias.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_of_the_input_is_kept_and_sums_are_wide(dtype: torch.dtype) -> None:
    """The result has the input's dtype and the accuracy of float32 sums rounded once."""
    weight = RTN()(gaussian(16, 4096, size=1.0), 4)
    x = torch.randn(4, 4096).to(dtype)
    found = reference.linear(x, pack(weight), layout_of(weight))
    wanted = x.double() @ weight.dequantize().double().T
    assert found.dtype == dtype
    assert ((found.double() - wanted).abs() <= wanted.abs() * torch.finfo(dtype).eps + 1e-2).all()


def test_pieces_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """A matrix dequantized in small pieces gives the same result: the bound on memory costs nothing."""
    weight = RTN()(gaussian(100, 64), 3)
    x = torch.randn(5, 64, dtype=torch.float64)
    whole = reference.linear(x, pack(weight), layout_of(weight))
    monkeypatch.setattr(reference, "DEQUANTIZED_BYTES", 1)
    torch.testing.assert_close(reference.linear(x, pack(weight), layout_of(weight)), whole)


def test_blob_of_another_length_is_refused() -> None:
    """A damaged blob is an error and not a wrong product."""
    weight = RTN()(gaussian(16, 64), 3)
    with pytest.raises(CorruptFile, match="bytes where its shape needs"):
        reference.linear(torch.zeros(1, 64), pack(weight)[:-64], layout_of(weight))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("gate_up", "down"), MIXES)
def test_experts_against_single_tokens(
    gate_up: tuple[int, ...], down: tuple[int, ...], gated: bool, bias: bool
) -> None:
    """Any mix of widths, gated or not, with biases or not: token by token the same sum."""
    layer, first, second = random_layer(gate_up, down, gated=gated, bias=bias)
    x = torch.randn(9, 48)
    index = torch.randint(-1, 4, (9, 2))
    weights = torch.rand(9, 2)
    wanted = naive_experts(x, index, weights, layer=layer, matrices=(first, second))
    torch.testing.assert_close(reference.experts(x, index, weights, layer).double(), wanted, rtol=1e-4, atol=1e-5)
    assert reference.experts(x.bfloat16(), index, weights.bfloat16(), layer).dtype == torch.bfloat16


def test_no_tokens_and_no_experts() -> None:
    """An empty batch gives an empty result, a token without an expert zeros."""
    layer, _, _ = random_layer((2, 2), (2, 2))
    empty = reference.experts(torch.zeros(0, 48), torch.zeros(0, 2, dtype=torch.long), torch.zeros(0, 2), layer)
    assert empty.shape == (0, 48)
    dropped = reference.experts(torch.ones(1, 48), torch.tensor([[-1]]), torch.ones(1, 1), layer)
    assert not dropped.any()


def test_the_same_expert_twice_counts_twice() -> None:
    """Both places of a token may name one expert."""
    layer, _, _ = random_layer((2, 2), (2, 2))
    x = torch.randn(1, 48)
    once = reference.experts(x, torch.tensor([[1]]), torch.tensor([[0.75]]), layer)
    twice = reference.experts(x, torch.tensor([[1, 1]]), torch.tensor([[0.5, 0.25]]), layer)
    torch.testing.assert_close(once, twice)
