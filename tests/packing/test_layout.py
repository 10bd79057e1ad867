"""Sizes and places of packed matrices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.errors import CorruptFile
from moesaic.packing.layout import EntryLayout, MatrixLayout, aligned, layout_of, pack, unpack, unpack_blocks
from moesaic.quantize import RTN
from moesaic.records import PACKED_WIDTHS, WIDTHS
from tests.quantize.made_up import gaussian


@pytest.mark.parametrize(("size", "wanted"), [(0, 0), (1, 64), (64, 64), (65, 128)])
def test_aligned(size: int, wanted: int) -> None:
    """Sizes are rounded up to 64 bytes."""
    assert aligned(size) == wanted


@pytest.mark.parametrize(("bits", "wanted"), [(1, 1.125), (2, 2.25), (3, 3.25), (4, 4.25), (8, 8.25)])
def test_stored_bits_of_the_page(bits: int, wanted: float) -> None:
    """A large matrix at groups of 64 costs what the page says, plus 16 bits a row."""
    layout = MatrixLayout(1024, 4096, bits, 64, symmetric=False)
    assert 8 * layout.total_bytes / (1024 * 4096) == pytest.approx(wanted + 16 / 4096)


def test_one_bit_is_always_symmetric() -> None:
    """Asking for zero points at one bit gives the layout without them."""
    assert MatrixLayout(16, 64, 1, 64, symmetric=False) == MatrixLayout(16, 64, 1, 64, symmetric=True)


@pytest.mark.parametrize(("bits", "group"), [(5, 64), (16, 64), (0, 64), (2, 16), (2, 0)])
def test_what_the_page_lacks_is_refused(bits: int, group: int) -> None:
    """A width or group size from a damaged file is a CorruptFile with the value."""
    with pytest.raises(CorruptFile, match=str(group if bits == 2 else bits)):
        MatrixLayout(16, 64, bits, group, symmetric=True)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 70),
    columns=st.integers(1, 140),
    bits=st.sampled_from(PACKED_WIDTHS),
    symmetric=st.booleans(),
    data=st.data(),
)
def test_any_run_of_row_blocks_can_be_read_alone(
    rows: int, columns: int, bits: int, symmetric: bool, data: st.DataObject
) -> None:
    """Kernels dequantize a few row blocks at a time: they are the same rows as in the whole."""
    weight = RTN(group_size=32, symmetric=symmetric)(gaussian(rows, columns), bits)
    layout, blob = layout_of(weight), pack(weight)
    first = data.draw(st.integers(0, layout.blocks - 1))
    last = data.draw(st.integers(first + 1, layout.blocks))
    part = unpack_blocks(blob, layout, first, last).dequantize()
    assert torch.equal(part, weight.dequantize()[16 * first : 16 * last])
    assert torch.equal(unpack(blob, layout).dequantize(), weight.dequantize())


@pytest.mark.parametrize("change", [-64, -1, 1, 64])
def test_blob_of_another_length_is_refused(change: int) -> None:
    """A blob that is not as long as its shape asks for is damaged; both lengths are named."""
    weight = RTN()(gaussian(4, 64), 2)
    layout = layout_of(weight)
    blob = torch.zeros(layout.total_bytes + change, dtype=torch.uint8)
    with pytest.raises(CorruptFile, match=f"{layout.total_bytes + change} bytes.*{layout.total_bytes}"):
        unpack(blob, layout)


def test_pack_changes_nothing() -> None:
    """Packing is pure."""
    weight = RTN()(gaussian(5, 70), 3)
    codes = weight.codes.clone()
    pack(weight)
    assert torch.equal(weight.codes, codes)


def test_negative_zero_does_not_survive() -> None:
    """Weights of -0.0 give the same blob as 0.0, so that the same model gives the same bytes."""
    weight = gaussian(2, 64)
    weight[:, 3] = 0.0
    negative = weight.clone()
    negative[:, 3] = -0.0
    for bits in PACKED_WIDTHS:
        assert torch.equal(pack(RTN()(weight, bits)), pack(RTN()(negative, bits)))


@settings(max_examples=60)
@given(st.lists(st.sampled_from(WIDTHS), min_size=1, max_size=12).map(tuple))
def test_every_expert_has_a_place_of_its_own(widths: tuple[int, ...]) -> None:
    """Experts of one width lie together in ascending order, and the tensors have room for exactly them."""
    entry = EntryLayout(widths, 2, 40, 70, 64, symmetric=False)
    places = {}
    for expert, width in enumerate(widths):
        places.setdefault(width, []).append(entry.place(expert))
    shapes = entry.shapes()
    assert list(shapes) == sorted(set(widths))
    for width, taken in places.items():
        assert taken == list(range(shapes[width][0]))
        row = (80, 70) if width == 16 else (2 * entry.matrix(width).total_bytes,)
        assert shapes[width][1:] == row
