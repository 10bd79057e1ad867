"""What a kernel is given."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.errors import CorruptFile
from moesaic.kernels.layer import ExpertEntry, tokens_by_expert
from moesaic.packing.layout import EntryLayout, unpack
from tests.kernels.made_up import random_layer

WIDTHS = (2, 16, 2, 3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(-2, 6), min_size=2, max_size=2), max_size=9))
def test_every_place_is_served_once(index: list[list[int]]) -> None:
    """All places with a real expert are found, each once; numbers outside are empty places."""
    top_k = torch.tensor(index, dtype=torch.long).reshape(-1, 2)
    found = {
        (token, place): expert
        for expert, tokens, places in tokens_by_expert(top_k, 5)
        for token, place in zip(tokens.tolist(), places.tolist(), strict=True)
    }
    wanted = {(t, p): e for t, row in enumerate(index) for p, e in enumerate(row) if 0 <= e < 5}
    assert found == wanted


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
