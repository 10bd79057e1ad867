"""What a kernel is given."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.errors import CorruptFile, UsageError
from moesaic.kernels import reference
from moesaic.kernels.layer import ExpertEntry, known_activation, layer_from, tokens_by_expert
from moesaic.packing.layout import EntryLayout, unpack
from tests.kernels.made_up import random_layer

WIDTHS = (2, 16, 2, 3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(-2, 4), min_size=2, max_size=2), max_size=9))
def test_every_place_is_served_once(index: list[list[int]]) -> None:
    """All places with an expert are found, each once; numbers below zero are empty places."""
    top_k = torch.tensor(index, dtype=torch.long).reshape(-1, 2)
    found = {
        (token, place): expert
        for expert, tokens, places in tokens_by_expert(top_k, 5)
        for token, place in zip(tokens.tolist(), places.tolist(), strict=True)
    }
    wanted = {(t, p): e for t, row in enumerate(index) for p, e in enumerate(row) if e >= 0}
    assert found == wanted


@pytest.mark.parametrize("index", [[[0, 5]], [[-1, 2**40]]])
def test_experts_that_are_not_there_are_refused(index: list[list[int]]) -> None:
    """A number beyond the last expert is a mistake somewhere, and not an empty place."""
    with pytest.raises(UsageError, match=r"index: there is no expert \d+ in a layer of 5"):
        tokens_by_expert(torch.tensor(index), 5)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_a_layer_comes_back_from_its_spec_and_tensors(gated: bool, bias: bool) -> None:
    """The text and the tensors that operators are given hold all of a layer: it computes the same."""
    layer, _, _ = random_layer(WIDTHS, (3, 3, 16, 8), gated=gated, bias=bias)
    tensors = (layer.gate_up.ordered, layer.down.ordered, layer.gate_up_bias, layer.down_bias)
    again = layer_from(layer.spec, *tensors)
    assert again.spec == layer.spec
    assert again.gate_up.layout == layer.gate_up.layout
    x, index, weights = torch.randn(7, 48), torch.randint(-1, 4, (7, 2)), torch.rand(7, 2)
    assert torch.equal(reference.experts(x, index, weights, again), reference.experts(x, index, weights, layer))
    other, _, _ = random_layer(WIDTHS, (3, 3, 16, 4), gated=gated, bias=bias)
    assert other.spec != layer.spec


def test_clamped_swiglu_is_that_of_gpt_oss() -> None:
    """Worked out by hand: the gate is cut above, up at both sides, and one is added to it."""
    function = known_activation("swiglu_clamped", gated=True, alpha=2.0, limit=3.0).function
    gate, up = torch.tensor([[1.0, 9.0, -9.0]]), torch.tensor([[2.0, -9.0, 9.0]])
    wanted = [3 * 1 / (1 + math.exp(-2)), (-3 + 1) * 3 / (1 + math.exp(-6)), 4 * -9 / (1 + math.exp(18))]
    torch.testing.assert_close(function(torch.cat([gate, up], dim=1)), torch.tensor([wanted]))


def test_blobs_are_views_of_the_stored_tensor() -> None:
    """Nothing is copied on the way from the file to the kernel, and each matrix is where its bytes are."""
    layer, first, _ = random_layer(WIDTHS, WIDTHS)
    entry = layer.gate_up
    assert entry.places == (0, 0, 1, 0)
    for expert in (0, 2, 3):
        for matrix in range(2):
            blob, layout = entry.blob(expert, matrix)
            stored = entry.tensors[WIDTHS[expert]]
            assert blob.untyped_storage().data_ptr() == stored.untyped_storage().data_ptr()
            assert torch.equal(unpack(blob, layout).dequantize(), first[expert][matrix])
    assert torch.equal(entry.stored(1), torch.cat(first[1]))
    assert layer.experts == 4


@pytest.mark.parametrize("change", ["missing", "short", "few"])
def test_tensors_that_do_not_fit_the_layout_are_refused(change: str) -> None:
    """A missing tensor, short rows or too few experts are found when the layer is put together."""
    layer, _, _ = random_layer(WIDTHS, WIDTHS)
    tensors = dict(layer.down.tensors)
    if change == "missing":
        del tensors[2]
    else:
        tensors[2] = tensors[2][:, :-64] if change == "short" else tensors[2][:1]
    with pytest.raises(CorruptFile, match="packed experts of width 2: expected"):
        ExpertEntry(layer.down.layout, tensors)


def test_layout_alone_knows_the_places() -> None:
    """An entry of one width has its experts in order."""
    assert [EntryLayout((3, 3, 3), 1, 4, 32, 32, symmetric=True).place(i) for i in range(3)] == [0, 1, 2]
