"""A naive decoder of packed models, version 1, written from `docs/format.md` alone: plain loops, nothing of moesaic.

It is slow on purpose: each function is one sentence of the page.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np

ELEMENT = {"U8": "<u1", "BOOL": "?", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8"}
PLANES = {1: [1], 2: [2], 3: [2, 1], 4: [4], 8: [8]}


def bfloat16(bits: int) -> float:
    """The number that 16 bits of bfloat16 stand for: the upper half of a float32."""
    return float(struct.unpack("<f", struct.pack("<I", bits << 16))[0])


def padded(size: int) -> int:
    """The size with zero bytes up to a multiple of 64."""
    while size % 64:
        size += 1
    return size


def regions(rows: int, columns: int, bits: int, group: int, symmetric: bool) -> tuple[int, int, int]:
    """Where group parameters and codes begin in the blob, and where it ends."""
    blocks, groups = math.ceil(rows / 16), math.ceil(columns / group)
    parameters_at = padded(2 * 16 * blocks)
    codes_at = parameters_at + padded(blocks * groups * (16 if symmetric or bits == 1 else 32))
    return parameters_at, codes_at, codes_at + padded(blocks * groups * 2 * group * bits)


def code_at(tile: bytes, bits: int, group: int, row: int, column: int) -> int:
    """The code of a row (0 … 15) and column (0 … group - 1) of a tile."""
    quad, place = divmod(column, 4)
    code = shift = start = 0
    for plane in PLANES[bits]:
        vector, share = divmod(quad, 8 // plane)
        byte = tile[start + 64 * vector + 4 * row + place]
        code |= ((byte >> (share * plane)) & (2**plane - 1)) << shift
        shift += plane
        start += 2 * group * plane
    return code


def decode(blob: bytes, shape: tuple[int, int], bits: int, group: int, *, symmetric: bool) -> np.ndarray:
    """The matrix `[rows, columns]`, float32, that a blob stands for."""
    rows, columns = shape
    parameters_at, codes_at, end = regions(rows, columns, bits, group, symmetric)
    if len(blob) != end:
        raise ValueError(f"the blob has {len(blob)} bytes, the page asks for {end}")
    symmetric = symmetric or bits == 1
    groups, per_group = math.ceil(columns / group), 16 if symmetric else 32
    matrix = np.zeros((rows, columns), dtype=np.float32)
    for n in range(rows):
        block, i = divmod(n, 16)
        row_scale = np.float32(bfloat16(blob[2 * n] | blob[2 * n + 1] << 8))
        for j in range(groups):
            at = parameters_at + (block * groups + j) * per_group
            scale = row_scale * np.float32(blob[at + i])
            zero = np.float32((2**bits - 1) / 2)
            if not symmetric:
                zero = np.float32(blob[at + 16 + i]) * np.float32((2**bits - 1) / 255)
            tile_at = codes_at + (block * groups + j) * 2 * group * bits
            tile = blob[tile_at : tile_at + 2 * group * bits]
            for k in range(j * group, min(columns, (j + 1) * group)):
                code = code_at(tile, bits, group, i, k - j * group)
                matrix[n, k] = scale * (np.float32(code) - zero)
    return matrix


def padding_codes(blob: bytes, shape: tuple[int, int], bits: int, group: int, *, symmetric: bool) -> set[int]:
    """All codes of the padding: rows from `rows` on, columns from `columns` on. The page wants `{0}` or nothing."""
    rows, columns = shape
    _, codes_at, _ = regions(rows, columns, bits, group, symmetric)
    blocks, groups, found = math.ceil(rows / 16), math.ceil(columns / group), set()
    for n in range(16 * blocks):
        for k in range(group * groups):
            if n >= rows or k >= columns:
                tile_at = codes_at + (n // 16 * groups + k // group) * 2 * group * bits
                found.add(code_at(blob[tile_at : tile_at + 2 * group * bits], bits, group, n % 16, k % group))
    return found


class SafetensorsFile:
    """A safetensors file read with nothing but the description of the format."""

    def __init__(self, path: Path) -> None:
        self.raw = path.read_bytes()
        (length,) = struct.unpack("<Q", self.raw[:8])
        self.data_at = 8 + length
        self.header: dict[str, Any] = json.loads(self.raw[8 : self.data_at])
        self.header.pop("__metadata__", None)

    def bytes_of(self, name: str) -> bytes:
        """A tensor's bytes."""
        begin, end = self.header[name]["data_offsets"]
        return self.raw[self.data_at + begin : self.data_at + end]

    def array(self, name: str) -> np.ndarray:
        """A tensor; bfloat16 widened to float32."""
        kind, shape = self.header[name]["dtype"], self.header[name]["shape"]
        flat = np.frombuffer(self.bytes_of(name), dtype=ELEMENT[kind])
        if kind == "BF16":
            flat = (flat.astype(np.uint32) << 16).view(np.float32)
        return flat.reshape(shape)


class PackedFolder:
    """A packed folder, looked up as the page says."""

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.quantization: dict[str, Any] = self.config["quantization_config"]
        index = folder / "model.safetensors.index.json"
        if index.exists():
            self.file_of = dict(json.loads(index.read_text())["weight_map"])
        else:
            names = SafetensorsFile(folder / "model.safetensors").header
            self.file_of = dict.fromkeys(names, "model.safetensors")
        self.files = {name: SafetensorsFile(folder / name) for name in set(self.file_of.values())}

    def tensor(self, name: str) -> np.ndarray:
        """A tensor by name, from whichever file holds it."""
        return self.files[self.file_of[name]].array(name)

    def entry(self, layer: str, entry: str, expert: int, shapes: list[tuple[int, int]]) -> list[np.ndarray]:
        """The matrices of one expert's entry; `shapes` are theirs, in stored order."""
        widths = [int(width) for width in self.quantization["experts"][layer][entry].split()]
        width = widths[expert]
        place = sum(1 for other in widths[:expert] if other == width)
        row = self.tensor(f"{layer}.{entry}.b{width}")[place]
        if width == 16:
            ends = np.cumsum([rows for rows, _ in shapes])[:-1]
            return list(np.split(row, ends))
        group, symmetric = self.quantization["group_size"], self.quantization["symmetric"]
        blob, start, found = row.tobytes(), 0, []
        for rows, columns in shapes:
            size = regions(rows, columns, width, group, symmetric)[2]
            found.append(decode(blob[start : start + size], (rows, columns), width, group, symmetric=symmetric))
            start += size
        if start != len(blob):
            raise ValueError(f"{layer}.{entry}: {len(blob)} bytes an expert, the page asks for {start}")
        return found

    def linear(self, name: str, rows: int, columns: int) -> np.ndarray:
        """The weight of a packed linear layer."""
        blob = self.tensor(f"{name}.packed").tobytes()
        quantization = self.quantization
        kinds = (quantization["linears"], quantization.get("head", {"modules": []}))
        (bits,) = (kind["bits"] for kind in kinds if name in kind["modules"])
        group, symmetric = quantization["group_size"], quantization["symmetric"]
        return decode(blob, (rows, columns), bits, group, symmetric=symmetric)
