"""The arithmetic that all quantizers share: groups, the stored form of scales and zero points, rounding to codes.

The grid of a group is `w = s * (q - z)` with codes `q` in `0 … 2**bits - 1`. What is stored of it is coarse on
purpose, because every stored bit counts: a scale is 8 bits times one bfloat16 per row, a zero point is 8 bits
over the range of the codes. Quantizers therefore round to codes only *after* the scale and the zero point have
been rounded to what will be stored, so that the loss of that rounding is part of what they minimise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from moesaic.records import PACKED_WIDTHS, QuantizedWeight

CHUNK_WEIGHTS = 1 << 19  # weights worked on at a time: 2 MB of float32, so that the passes stay in cache
GROUP_SIZES = (32, 64, 128)
_SCALE_TOP = 255
_ZERO_TOP = 255


@dataclass(frozen=True)
class Grid:
    """Scales and zero points as they will be stored.

    Attributes:
        row_scale: `[rows]` bfloat16.
        scale_codes: `[rows, groups]` uint8.
        zero_codes: `[rows, groups]` uint8 or None (symmetric).
        bits: width of the codes.
    """

    row_scale: Tensor
    scale_codes: Tensor
    zero_codes: Tensor | None
    bits: int

    @property
    def scale(self) -> Tensor:
        """`[rows, groups]` float32."""
        return self.row_scale.float()[:, None] * self.scale_codes.float()

    @property
    def zero(self) -> Tensor:
        """`[rows, groups]` float32, in units of codes."""
        top = 2**self.bits - 1
        if self.zero_codes is None:
            return torch.full(self.scale_codes.shape, top / 2)
        return zero_of_codes(self.zero_codes, self.bits)

    def encode(self, groups: Tensor) -> Tensor:
        """The nearest codes of weights `[rows, groups, group_size]`, uint8 of the same shape.

        One bit is the sign, that of zero being plus.
        """
        if self.bits == 1:
            return (groups >= 0).to(torch.uint8)
        return to_codes(groups, self.scale, self.zero, self.bits).to(torch.uint8)


def check_width(bits: int, group_size: int) -> None:
    """Refuse widths and group sizes that the packed format does not have.

    Raises:
        ValueError: names the value and those allowed.
    """
    if bits not in PACKED_WIDTHS:
        raise ValueError(f"bits must be one of {PACKED_WIDTHS}, got {bits}")
    if group_size not in GROUP_SIZES:
        raise ValueError(f"group_size must be one of {GROUP_SIZES}, got {group_size}")


def split_groups(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Cut the columns into groups, the last one padded with zeros.

    Args:
        weight: `[rows, columns]` of any float dtype.
        group_size: columns of a group.

    Returns:
        `[rows, groups, group_size]` float32, and the number of real columns of each group, `[groups]` float32.
    """
    rows, columns = weight.shape
    groups = -(-columns // group_size)
    padded = torch.zeros(rows, groups * group_size, dtype=torch.float32)
    padded[:, :columns] = weight
    counts = torch.full((groups,), float(group_size))
    counts[-1] = columns - (groups - 1) * group_size
    return padded.view(rows, groups, group_size), counts


def real_columns(counts: Tensor, group_size: int) -> Tensor | None:
    """1 where a column of a group is real, 0 where it is padding, `[groups, group_size]`; None without padding."""
    if bool((counts == group_size).all()):
        return None
    return (torch.arange(group_size) < counts[:, None]).float()


def row_chunks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of rows that hold about `CHUNK_WEIGHTS` weights each."""
    step = max(1, CHUNK_WEIGHTS // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))


def to_codes(groups: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Round weights to codes, as floats: `clamp(round(w / s + z), 0, 2**bits - 1)`; all zero where `s` is zero.

    Args:
        groups: `[rows, groups, group_size]` float32.
        scale, zero: `[rows, groups]` float32.
    """
    inverse = torch.where(scale > 0, 1 / scale, 0.0)
    codes = torch.addcmul(zero[..., None], groups, inverse[..., None])
    rounded: Tensor = codes.round_().clamp_(0, 2**bits - 1)
    return rounded


def store(scale: Tensor, zero: Tensor | None, bits: int) -> Grid:
    """Round scales and zero points to their stored form.

    A row's bfloat16 is the largest scale over 255, rounded up, so that no scale has to be cut.

    Args:
        scale: `[rows, groups]` float32, not negative.
        zero: `[rows, groups]` float32 in units of codes, or None for a symmetric grid.
    """
    row_scale = row_scales(scale.amax(dim=1))  # (N,)
    zero_codes = None if zero is None else zero_to_codes(zero, bits).to(torch.uint8)
    return Grid(row_scale, scale_to_codes(scale, row_scale[:, None]).to(torch.uint8), zero_codes, bits)


def row_scales(largest: Tensor) -> Tensor:
    """The bfloat16 of rows whose largest scale is given: over 255, rounded up, so that no scale has to be cut."""
    return _bfloat16_up(largest / _SCALE_TOP)


def scale_to_codes(scale: Tensor, row_scale: Tensor) -> Tensor:
    """Scales as their stored codes `0 … 255`, as floats; `row_scale` is shaped to go with them.

    A group of zeros stays one, and no other becomes one.
    """
    inverse = torch.where(row_scale > 0, 1 / row_scale.float(), 0.0)
    codes = (scale * inverse).round().clamp_(1, _SCALE_TOP)
    return torch.where(scale > 0, codes, 0.0)


def zero_to_codes(zero: Tensor, bits: int) -> Tensor:
    """Zero points, in units of codes, as their stored codes `0 … 255`, as floats."""
    return (zero * (_ZERO_TOP / (2**bits - 1))).round().clamp_(0, _ZERO_TOP)


def zero_of_codes(zero_codes: Tensor, bits: int) -> Tensor:
    """The zero points, in units of codes, that stored codes stand for."""
    return zero_codes.float() * ((2**bits - 1) / _ZERO_TOP)


def range_grid(low: Tensor, high: Tensor, bits: int, *, symmetric: bool) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point of the grid that spans `low … high` (`low <= 0 <= high`).

    A symmetric grid spans the larger of the two on both sides, its zero in the middle between two codes.
    """
    top = 2**bits - 1
    if symmetric:
        return 2 * torch.maximum(-low, high) / top, None
    scale = (high - low) / top
    zero = torch.where(scale > 0, -low / scale, top / 2)
    return scale, zero


def sign_scale(groups: Tensor, counts: Tensor) -> Tensor:
    """Scale of one-bit groups, `2 * mean|w|`, so that the two levels are `± mean|w|`. `[rows, groups]`"""
    return 2 * groups.abs().sum(dim=-1) / counts


def quantized(codes: Tensor, grid: Grid, *, group_size: int, columns: int) -> QuantizedWeight:
    """Put codes `[rows, groups, group_size]` and their grid together."""
    rows = codes.shape[0]
    return QuantizedWeight(
        codes=codes.reshape(rows, -1),
        scale_codes=grid.scale_codes,
        zero_codes=grid.zero_codes,
        row_scale=grid.row_scale,
        bits=grid.bits,
        group_size=group_size,
        columns=columns,
    )


def join_rows(parts: list[QuantizedWeight]) -> QuantizedWeight:
    """One matrix from the row chunks it was worked on in."""
    first = parts[0]
    zeros = [part.zero_codes for part in parts if part.zero_codes is not None]
    return QuantizedWeight(
        codes=torch.cat([part.codes for part in parts]),
        scale_codes=torch.cat([part.scale_codes for part in parts]),
        zero_codes=torch.cat(zeros) if zeros else None,
        row_scale=torch.cat([part.row_scale for part in parts]),
        bits=first.bits,
        group_size=first.group_size,
        columns=first.columns,
    )


def split_rows(whole: QuantizedWeight, rows: list[int]) -> list[QuantizedWeight]:
    """Cut a matrix into matrices of so many rows; the opposite of `join_rows`."""
    found, start = [], 0
    for count in rows:
        part = slice(start, start + count)
        found.append(
            replace(
                whole,
                codes=whole.codes[part],
                scale_codes=whole.scale_codes[part],
                zero_codes=None if whole.zero_codes is None else whole.zero_codes[part],
                row_scale=whole.row_scale[part],
            )
        )
        start += count
    return found


def _bfloat16_up(value: Tensor) -> Tensor:
    """Round non-negative float32 up to bfloat16."""
    down = (value.contiguous().view(torch.int32) >> 16).to(torch.int16).view(torch.bfloat16)
    up = ((value.contiguous().view(torch.int32) >> 16) + 1).to(torch.int16).view(torch.bfloat16)
    return torch.where(down.float() < value, up, down)
