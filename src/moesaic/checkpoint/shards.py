"""safetensors files without mapping them: headers are checked, tensors are read into memory of their own.

Memory-mapped pages count as resident, so that a pass over a large checkpoint would fill the memory of a process that
only ever looks at one expert. Reading by offset keeps to what is asked for, and every byte read is counted.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from moesaic.checkpoint.headers import INDEX as INDEX  # noqa: PLC0414
from moesaic.checkpoint.headers import SINGLE as SINGLE  # noqa: PLC0414
from moesaic.checkpoint.headers import Entry, read_all_entries, read_entries
from moesaic.checkpoint.headers import find_shards as find_shards  # noqa: PLC0414
from moesaic.errors import CorruptFile

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: file, dtype, shape and byte range in the file."""

    path: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file, from its header alone; every size is checked against the file's.

    Raises:
        CorruptFile: truncated, or a header that contradicts itself or the file.
    """
    return _with_dtypes(path, read_entries(path))


def read_headers(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a checkpoint folder by name, from the headers of its files.

    Raises:
        NotACheckpoint, CorruptFile: as `headers.read_all_entries`.
    """
    tensors: dict[str, StoredTensor] = {}
    for path, entries in read_all_entries(folder).items():
        tensors.update(_with_dtypes(path, entries))
    return tensors


def _with_dtypes(path: Path, entries: dict[str, Entry]) -> dict[str, StoredTensor]:
    return {
        name: StoredTensor(path, name, DTYPES[entry.dtype], entry.shape, entry.start, entry.stop)
        for name, entry in entries.items()
    }


def read_bytes(path: Path, start: int, stop: int) -> Tensor:
    """The bytes `start … stop - 1` of a file, `[stop - start]` uint8.

    Raises:
        CorruptFile: the file ends before.
    """
    data = torch.empty(stop - start, dtype=torch.uint8)
    view = data.numpy().data if data.numel() else memoryview(b"")
    with path.open("rb") as file:
        done = 0
        while done < len(view):
            count = os.preadv(file.fileno(), [view[done:]], start + done)
            if count == 0:
                raise CorruptFile(f"{path}: ends at byte {start + done}, {stop} were expected; download it again")
            done += count
    return data


def read_tensor(stored: StoredTensor, row: int | None = None) -> Tensor:
    """Read a tensor, or with `row` only that index of its first dimension (the dimension is dropped).

    Raises:
        CorruptFile: the file is too short, or the tensor holds NaN or infinity.
    """
    if row is not None:
        return read_rows(stored, row, row + 1)[0]
    return _checked(stored, read_bytes(stored.path, stored.start, stored.stop).view(stored.dtype).view(stored.shape))


def read_rows(stored: StoredTensor, first: int, last: int) -> Tensor:
    """Read the indices `first … last - 1` of a tensor's first dimension.

    Raises:
        CorruptFile: as `read_tensor`.
    """
    step = (stored.stop - stored.start) // stored.shape[0]
    data = read_bytes(stored.path, stored.start + first * step, stored.start + last * step)
    return _checked(stored, data.view(stored.dtype).view(last - first, *stored.shape[1:]))


def _checked(stored: StoredTensor, tensor: Tensor) -> Tensor:
    # the extremes of a tensor are NaN or infinite when any of its values is, and cost a tenth of looking at each
    if tensor.is_floating_point() and tensor.numel() and not torch.isfinite(torch.stack(torch.aminmax(tensor))).all():
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            raise CorruptFile(
                f"{stored.path}: tensor {stored.name} holds {bad} NaN or infinite values; use a sound copy"
            )
    return tensor
