"""The shared arithmetic of scales, zero points and codes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.quantize import grid


@pytest.mark.parametrize(("bits", "group"), [(5, 64), (0, 64), (16, 64), (4, 16), (4, 0), (4, 96)])
def test_widths_and_groups_the_format_lacks_are_refused(bits: int, group: int) -> None:
    """Only what the packed format can hold may be asked for."""
    with pytest.raises(ValueError, match="must be one of"):
        grid.check_width(bits, group)


@pytest.mark.parametrize("columns", [1, 31, 32, 33, 64, 100])
def test_split_groups_pads_with_zeros_and_counts_real_columns(columns: int) -> None:
    """Nothing is lost, the padding is zero, and the counts add up to the columns."""
    weight = torch.randn(3, columns).bfloat16()
    groups, counts = grid.split_groups(weight, 32)
    flat = groups.view(3, -1)
    assert groups.dtype == torch.float32
    assert torch.equal(flat[:, :columns], weight.float())
    assert not flat[:, columns:].any()
    assert counts.sum() == columns
    assert counts.max() <= 32


@given(rows=st.integers(1, 3000), columns=st.integers(1, 100_000))
def test_row_chunks_cover_every_row_once(rows: int, columns: int) -> None:
    """Chunks are in order, whole and of bounded size."""
    chunks = list(grid.row_chunks(rows, columns))
    assert [row for chunk in chunks for row in range(chunk.start, chunk.stop)] == list(range(rows))
    assert all((chunk.stop - chunk.start) * columns <= max(grid.CHUNK_WEIGHTS, columns) for chunk in chunks)


@settings(max_examples=300)
@given(st.integers(0, 0x7F7F0000))
def test_row_scale_is_the_next_bfloat16_not_below(pattern: int) -> None:
    """Rounding up never cuts a scale and goes no further than one step, for every size of float32."""
    value = torch.tensor([pattern], dtype=torch.int32).view(torch.float32)
    found = grid._bfloat16_up(value)
    below = (found.view(torch.int16) - 1).view(torch.bfloat16)
    assert found.float() >= value
    assert pattern == 0 or below.float() < value


@pytest.mark.parametrize("value", [0.0, 1.0, 2**-126, 2**-133, 1.0078125, 65536.0])
def test_bfloat16_values_stay_as_they_are(value: float) -> None:
    """A number that bfloat16 has is not rounded further up; zero stays zero."""
    assert grid._bfloat16_up(torch.tensor([value])).float().item() == value


def test_store_by_hand() -> None:
    """Scales 255, 128, 0.4 and zero points at 2 bits: row scale 1, codes 255, 128 and at least 1."""
    stored = grid.store(torch.tensor([[255.0, 128.0, 0.4]]), torch.tensor([[0.0, 1.5, 3.0]]), 2)
    assert stored.row_scale.tolist() == [1.0]
    assert stored.scale_codes.tolist() == [[255, 128, 1]]
    assert stored.zero_codes is not None
    assert stored.zero_codes.tolist() == [[0, 128, 255]]
    assert stored.scale.tolist() == [[255.0, 128.0, 1.0]]


def test_store_of_a_zero_row_is_zero() -> None:
    """A row without weights has row scale 0, and every code of it 0."""
    stored = grid.store(torch.zeros(1, 2), torch.zeros(1, 2), 4)
    assert stored.row_scale.tolist() == [0.0]
    assert not stored.encode(torch.zeros(1, 2, 32)).any()
    assert stored.scale.isfinite().all()


@settings(max_examples=100)
@given(st.lists(st.floats(2**-60, 2**60, width=32), min_size=1, max_size=6))
def test_stored_scales_are_within_half_a_step(values: list[float]) -> None:
    """A stored scale is off by at most half the row's step, and never above what 8 bits hold."""
    scale = torch.tensor([values])
    stored = grid.store(scale, None, 4)
    step = stored.row_scale.float().item()
    wanted = scale.clamp(min=step)  # a positive scale is not stored as zero
    assert ((stored.scale - wanted).abs() <= step * 0.5001).all()


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_to_codes_rounds_to_the_nearest_and_clamps(bits: int) -> None:
    """Levels of the grid get their own codes, what lies beyond gets the outermost ones."""
    top = 2**bits - 1
    levels = torch.arange(top + 1).float()
    weights = torch.cat([levels, torch.tensor([-5.0, top + 5.0])]).view(1, 1, -1) * 0.5
    codes = grid.to_codes(weights, torch.full((1, 1), 0.5), torch.zeros(1, 1), bits)
    assert codes.flatten().tolist() == [*range(top + 1), 0, top]


def test_to_codes_without_scale_is_zero() -> None:
    """A group without a scale gives code 0 and no NaN."""
    codes = grid.to_codes(torch.ones(1, 1, 4), torch.zeros(1, 1), torch.zeros(1, 1), 4)
    assert not codes.any()


def test_range_grid_by_hand() -> None:
    """-1 … 2 at 2 bits: scale 1, zero at code 1; symmetric: 2 * 2 / 3 around the middle."""
    low, high = torch.tensor([[-1.0]]), torch.tensor([[2.0]])
    scale, zero = grid.range_grid(low, high, 2, symmetric=False)
    assert scale.item() == 1.0
    assert zero is not None
    assert zero.item() == 1.0
    scale, zero = grid.range_grid(low, high, 2, symmetric=True)
    assert scale.item() == pytest.approx(4 / 3)
    assert zero is None


def test_sign_scale_leaves_padding_out() -> None:
    """The mean is taken over real columns: 20 columns of 3 padded to 32 still mean 3."""
    groups, counts = grid.split_groups(torch.full((1, 20), -3.0), 32)
    assert grid.sign_scale(groups, counts).tolist() == [[6.0]]


def test_join_rows_is_the_inverse_of_cutting() -> None:
    """Row chunks put together are the matrix quantized at once."""
    stored = grid.store(torch.rand(6, 2), torch.rand(6, 2) * 3, 2)
    codes = stored.encode(torch.rand(6, 2, 32))
    whole = grid.quantized(codes, stored, group_size=32, columns=50)
    assert stored.zero_codes is not None
    parts = [
        grid.quantized(
            codes[rows],
            grid.Grid(stored.row_scale[rows], stored.scale_codes[rows], stored.zero_codes[rows], 2),
            group_size=32,
            columns=50,
        )
        for rows in (slice(0, 1), slice(1, 6))
    ]
    assert torch.equal(grid.join_rows(parts).dequantize(), whole.dequantize())
