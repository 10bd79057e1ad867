"""How a packed matrix lies in memory, with its sizes: scales, zero points and padding included.

The layout is that of `docs/format.md`, which is normative.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moesaic.errors import CorruptFile
from moesaic.packing import FORMAT_VERSION as FORMAT_VERSION  # noqa: PLC0414
from moesaic.packing.bits import BLOCK_ROWS, pack_tiles, unpack_tiles
from moesaic.records import PACKED_WIDTHS, STORED_WIDTH, QuantizedWeight

ALIGNMENT = 64
CHUNK_CODES = 1 << 20  # codes packed at a time, so that what lies between stays in cache


def aligned(size: int) -> int:
    """The next multiple of 64 bytes."""
    return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class MatrixLayout:
    """Where the parts of one packed matrix lie in its blob.

    Attributes:
        rows, columns: the matrix' own shape, `[out, in]`.
        bits: 1, 2, 3, 4 or 8.
        group_size: 32, 64 or 128.
        symmetric: whether zero points are absent; always true for one bit.
    """

    rows: int
    columns: int
    bits: int
    group_size: int
    symmetric: bool

    def __post_init__(self) -> None:
        if self.bits not in PACKED_WIDTHS:
            raise CorruptFile(f"a packed matrix cannot have width {self.bits}; known are {PACKED_WIDTHS}")
        if self.group_size not in (32, 64, 128):
            raise CorruptFile(f"a packed matrix cannot have group size {self.group_size}; known are 32, 64, 128")
        if self.bits == 1 and not self.symmetric:
            object.__setattr__(self, "symmetric", True)

    @property
    def blocks(self) -> int:
        """Row blocks of 16 rows."""
        return -(-self.rows // BLOCK_ROWS)

    @property
    def groups(self) -> int:
        """Groups along the columns."""
        return -(-self.columns // self.group_size)

    @property
    def parameter_bytes(self) -> int:
        """Bytes of scale codes and zero codes of one row block and group."""
        return BLOCK_ROWS if self.symmetric else 2 * BLOCK_ROWS

    @property
    def tile_bytes(self) -> int:
        """Bytes of the codes of one row block and group."""
        return BLOCK_ROWS * self.group_size * self.bits // 8

    @property
    def parameters_at(self) -> int:
        """Byte offset of the group parameters."""
        return aligned(2 * BLOCK_ROWS * self.blocks)

    @property
    def codes_at(self) -> int:
        """Byte offset of the codes."""
        return self.parameters_at + aligned(self.blocks * self.groups * self.parameter_bytes)

    @property
    def total_bytes(self) -> int:
        """Bytes of the whole blob."""
        return self.codes_at + aligned(self.blocks * self.groups * self.tile_bytes)


@dataclass(frozen=True)
class EntryLayout:
    """How one entry (`gate_up` or `down`) of all experts of a layer is stored.

    Attributes:
        widths: bits of every expert.
        matrices: how many matrices lie in the entry: 2 for gate and up, else 1.
        rows, columns: shape of each of these matrices.
        group_size, symmetric: the model's grid.
    """

    widths: tuple[int, ...]
    matrices: int
    rows: int
    columns: int
    group_size: int
    symmetric: bool

    def place(self, expert: int) -> int:
        """The row of an expert in the tensor of its width: how many experts before it share the width."""
        return self.widths[:expert].count(self.widths[expert])

    def matrix(self, width: int) -> MatrixLayout:
        """The layout of one matrix of the entry at that width (not 16)."""
        return MatrixLayout(self.rows, self.columns, width, self.group_size, self.symmetric)

    def shapes(self) -> dict[int, tuple[int, ...]]:
        """Width -> shape of the tensor that holds the experts of that width, in ascending width."""
        return {width: self._shape(width) for width in sorted(set(self.widths))}

    def _shape(self, width: int) -> tuple[int, ...]:
        count = self.widths.count(width)
        if width == STORED_WIDTH:
            return (count, self.matrices * self.rows, self.columns)
        return (count, self.matrices * self.matrix(width).total_bytes)


def layout_of(weight: QuantizedWeight) -> MatrixLayout:
    """The layout that holds a quantized matrix."""
    return MatrixLayout(weight.codes.shape[0], weight.columns, weight.bits, weight.group_size, weight.symmetric)


def pack(weight: QuantizedWeight) -> Tensor:
    """The blob of a quantized matrix, `[total_bytes]` uint8."""
    layout = layout_of(weight)
    blob = torch.zeros(layout.total_bytes, dtype=torch.uint8)
    step = max(1, CHUNK_CODES // (BLOCK_ROWS * layout.groups * layout.group_size))
    for first in range(0, layout.blocks, step):
        _pack_blocks(blob, weight, layout, first, min(layout.blocks, first + step))
    return blob


def _pack_blocks(blob: Tensor, weight: QuantizedWeight, layout: MatrixLayout, first: int, last: int) -> None:
    """Put the row blocks `first … last - 1` in their places."""
    blocks, groups, size = last - first, layout.groups, layout.group_size
    rows = slice(first * BLOCK_ROWS, min(last * BLOCK_ROWS, layout.rows))
    extra = blocks * BLOCK_ROWS - (rows.stop - rows.start)

    row_scale = _pad_rows(weight.row_scale[rows], extra).view(torch.uint8)
    blob[2 * BLOCK_ROWS * first : 2 * BLOCK_ROWS * last] = row_scale

    stored = [weight.scale_codes] if weight.zero_codes is None else [weight.scale_codes, weight.zero_codes]
    parameters = torch.stack([_by_block(_pad_rows(part[rows], extra)) for part in stored], dim=2)  # (R, G, 1 or 2, 16)
    step = groups * layout.parameter_bytes
    start = layout.parameters_at
    blob[start + first * step : start + last * step] = parameters.reshape(-1)

    codes = _pad_rows(weight.codes[rows], extra)
    if layout.columns < codes.shape[1]:
        codes = codes.clone()
        codes[:, layout.columns :] = 0
    by_tile = codes.view(blocks, BLOCK_ROWS, groups, size).transpose(1, 2)
    tiles = pack_tiles(by_tile.reshape(blocks * groups, BLOCK_ROWS, size), layout.bits)
    step = groups * layout.tile_bytes
    start = layout.codes_at
    blob[start + first * step : start + last * step] = tiles.view(-1)


def unpack_blocks(blob: Tensor, layout: MatrixLayout, first: int, last: int) -> QuantizedWeight:
    """The quantized rows of the row blocks `first … last - 1`, read from the blob without touching the others.

    Args:
        blob: `[total_bytes]` uint8.
        layout: the matrix' layout.
        first, last: row blocks, `0 <= first < last <= layout.blocks`.

    Raises:
        CorruptFile: the blob has another length than the layout says.
    """
    if blob.numel() != layout.total_bytes:
        raise CorruptFile(f"a packed matrix holds {blob.numel()} bytes where its shape needs {layout.total_bytes}")
    groups, size, blocks = layout.groups, layout.group_size, last - first
    rows = min(layout.rows, last * BLOCK_ROWS) - first * BLOCK_ROWS

    scales = blob[2 * BLOCK_ROWS * first : 2 * BLOCK_ROWS * last].clone().view(torch.bfloat16)
    step = groups * layout.parameter_bytes
    start = layout.parameters_at
    parameters = blob[start + first * step : start + last * step].view(blocks, groups, -1, BLOCK_ROWS)
    by_row = [_by_row(parameters[:, :, i])[:rows] for i in range(parameters.shape[2])]

    step = groups * layout.tile_bytes
    start = layout.codes_at
    tiles = blob[start + first * step : start + last * step].view(blocks * groups, layout.tile_bytes)
    codes = unpack_tiles(tiles, layout.bits).view(blocks, groups, BLOCK_ROWS, size).transpose(1, 2)
    return QuantizedWeight(
        codes=codes.reshape(blocks * BLOCK_ROWS, groups * size)[:rows],
        scale_codes=by_row[0],
        zero_codes=None if layout.symmetric else by_row[1],
        row_scale=scales[:rows],
        bits=layout.bits,
        group_size=size,
        columns=layout.columns,
    )


def unpack(blob: Tensor, layout: MatrixLayout) -> QuantizedWeight:
    """The inverse of `pack`."""
    return unpack_blocks(blob, layout, 0, layout.blocks)


def _pad_rows(part: Tensor, extra: int) -> Tensor:
    return torch.cat([part, part.new_zeros(extra, *part.shape[1:])]) if extra else part.contiguous()


def _by_block(part: Tensor) -> Tensor:
    """`[16 R, G]` -> `[R, G, 16]`"""
    return part.view(-1, BLOCK_ROWS, part.shape[1]).transpose(1, 2)


def _by_row(part: Tensor) -> Tensor:
    """`[R, G, 16]` -> `[16 R, G]`"""
    return part.transpose(1, 2).reshape(-1, part.shape[1])
