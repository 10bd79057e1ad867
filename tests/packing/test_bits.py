"""Codes to bytes and back; `tests/oracles/test_format_v1.py` compares them with the page."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.packing.bits import PLANES, pack_tiles, unpack_tiles


@settings(max_examples=60, deadline=None)
@given(
    tiles=st.integers(1, 5),
    g=st.sampled_from([32, 64, 128]),
    bits=st.sampled_from(list(PLANES)),
    seed=st.integers(0, 99),
)
def test_unpack_is_the_inverse_of_pack(tiles: int, g: int, bits: int, seed: int) -> None:
    """Every code comes back from its place, and the size is exactly `bits` a code: 3 bits cost 3.0."""
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (tiles, 16, g), generator=random, dtype=torch.uint8)
    packed = pack_tiles(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (tiles, 16 * g * bits // 8)
    assert torch.equal(unpack_tiles(packed, bits), codes)


@pytest.mark.parametrize("bits", PLANES)
def test_pack_is_the_inverse_of_unpack(bits: int) -> None:
    """Any bytes are valid codes: no bit of the storage is wasted."""
    packed = torch.randint(0, 256, (3, 2 * 64 * bits), dtype=torch.uint8)
    assert torch.equal(pack_tiles(unpack_tiles(packed, bits), bits), packed)


def test_one_bit_by_hand() -> None:
    """The code of row 2, column 5 (quad 1, place 1) is bit 1 of byte 4 * 2 + 1 of the first vector."""
    codes = torch.zeros(1, 16, 32, dtype=torch.uint8)
    codes[0, 2, 5] = 1
    packed = pack_tiles(codes, 1)
    assert packed.nonzero().tolist() == [[0, 9]]
    assert packed[0, 9] == 2


def test_three_bits_by_hand() -> None:
    """A code 5 is 1 in the plane of two bits and 1 in the plane of one bit, which starts after 2 * 2 * g bytes."""
    codes = torch.zeros(1, 16, 32, dtype=torch.uint8)
    codes[0, 0, 0] = 5
    packed = pack_tiles(codes, 3)
    assert packed.nonzero().tolist() == [[0, 0], [0, 128]]
    assert packed[0, [0, 128]].tolist() == [1, 1]


def test_strided_input_is_packed_by_value() -> None:
    """Memory order of the input does not matter."""
    codes = torch.randint(0, 8, (2, 32, 16), dtype=torch.uint8).transpose(1, 2).contiguous()
    wide = torch.zeros(2, 16, 64, dtype=torch.uint8)
    wide[:, :, ::2] = codes
    assert torch.equal(pack_tiles(wide[:, :, ::2].contiguous(), 3), pack_tiles(codes, 3))
