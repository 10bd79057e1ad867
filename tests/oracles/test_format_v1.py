"""The package's packing against the decoder that was written from `docs/format.md` alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moesaic.packing.layout import MatrixLayout, layout_of, pack, unpack
from moesaic.records import PACKED_WIDTHS, QuantizedWeight
from tests.oracles import format_v1

SHAPES = [(1, 1), (1, 32), (16, 64), (17, 65), (15, 31), (33, 129), (5, 200)]


def random_quantized(shape: tuple[int, int], bits: int, group: int, *, symmetric: bool, seed: int) -> QuantizedWeight:
    """Random codes, scales and zero points, extremes included; the padding columns hold rubbish on purpose."""
    (rows, columns), random = shape, torch.Generator().manual_seed(seed)
    groups = -(-columns // group)

    def octets(*shape: int) -> torch.Tensor:
        return torch.randint(0, 256, shape, generator=random, dtype=torch.uint8)

    row_scale = (torch.rand(rows, generator=random) * 10 ** torch.randint(-6, 3, (rows,), generator=random)).bfloat16()
    row_scale[::5] = 0
    return QuantizedWeight(
        codes=torch.randint(0, 2**bits, (rows, groups * group), generator=random, dtype=torch.uint8),
        scale_codes=octets(rows, groups),
        zero_codes=None if symmetric or bits == 1 else octets(rows, groups),
        row_scale=row_scale,
        bits=bits,
        group_size=group,
        columns=columns,
    )


def naive(weight: QuantizedWeight) -> np.ndarray:
    """What the naive decoder reads from the package's blob."""
    rows = weight.codes.shape[0]
    blob = pack(weight).numpy().tobytes()
    return format_v1.decode(blob, (rows, weight.columns), weight.bits, weight.group_size, symmetric=weight.symmetric)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("bits", PACKED_WIDTHS)
def test_naive_decoder_reads_what_pack_writes(bits: int, group: int, symmetric: bool) -> None:
    """Every width, group and grid means the same bits to the page and to the package, to the last bit."""
    for seed, (rows, columns) in enumerate(SHAPES[:: 2 if group == 64 else 3]):
        weight = random_quantized((rows, columns), bits, group, symmetric=symmetric, seed=seed)
        assert np.array_equal(naive(weight), weight.dequantize().numpy())


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 150),
    bits=st.sampled_from(PACKED_WIDTHS),
    group=st.sampled_from([32, 64, 128]),
    symmetric=st.booleans(),
    seed=st.integers(0, 2**31),
)
@example(rows=1, columns=1, bits=3, group=32, symmetric=False, seed=0)
def test_any_shape_decodes_the_same_three_ways(
    *, rows: int, columns: int, bits: int, group: int, symmetric: bool, seed: int
) -> None:
    """For any shape the naive decoder, `unpack` and the unpacked record agree, and padding is written as zero."""
    weight = random_quantized((rows, columns), bits, group, symmetric=symmetric, seed=seed)
    blob = pack(weight)
    again = unpack(blob, layout_of(weight))
    assert torch.equal(again.dequantize(), weight.dequantize())
    assert np.array_equal(naive(weight), weight.dequantize().numpy())
    assert format_v1.padding_codes(blob.numpy().tobytes(), (rows, columns), bits, group, symmetric=symmetric) <= {0}


@settings(max_examples=200, deadline=None)
@given(
    rows=st.integers(1, 300),
    columns=st.integers(1, 600),
    bits=st.sampled_from(PACKED_WIDTHS),
    group=st.sampled_from([32, 64, 128]),
    symmetric=st.booleans(),
)
def test_sizes_are_those_of_the_page(rows: int, columns: int, bits: int, group: int, symmetric: bool) -> None:
    """Offsets and sizes computed by the package equal those read off the page, and are multiples of 64."""
    layout = MatrixLayout(rows, columns, bits, group, symmetric)
    found = (layout.parameters_at, layout.codes_at, layout.total_bytes)
    assert found == format_v1.regions(rows, columns, bits, group, symmetric)
    assert all(at % 64 == 0 for at in found)


@pytest.mark.parametrize("bits", PACKED_WIDTHS)
def test_every_byte_of_the_codes_matters_once(bits: int) -> None:
    """Changing one code changes exactly the bits of that code: no two codes share a bit, none is lost."""
    weight = random_quantized((16, 32), bits, 32, symmetric=True, seed=3)
    layout = layout_of(weight)
    zero = torch.zeros_like(weight.codes)
    seen = torch.zeros(layout.total_bytes, dtype=torch.uint8)
    for row, column in ((row, column) for row in range(0, 16, 5) for column in range(32)):
        codes = zero.clone()
        codes[row, column] = 2**bits - 1
        one = QuantizedWeight(codes, weight.scale_codes, None, torch.zeros(16).bfloat16(), bits, 32, 32)
        bytes_of_one = pack(one)
        bytes_of_one[: layout.codes_at] = 0
        assert int(np.unpackbits(bytes_of_one.numpy()).sum()) == bits
        assert not (seen & bytes_of_one).any()
        seen |= bytes_of_one
