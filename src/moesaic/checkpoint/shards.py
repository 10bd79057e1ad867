"""safetensors files without mapping them: headers are checked, tensors are read into memory of their own.

Memory-mapped pages count as resident, so that a pass over a large checkpoint would fill the memory of a process that
only ever looks at one expert. Reading by offset keeps to what is asked for, and every byte read is counted.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from moesaic.errors import CorruptFile, NotACheckpoint
from moesaic.records import read_json

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
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_LARGEST_HEADER = 100 << 20  # as in the safetensors library


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
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length > min(size - 8, _LARGEST_HEADER):
                raise CorruptFile(f"{path}: truncated or not a safetensors file ({size} bytes); download it again")
            header = json.loads(file.read(length))
    except OSError as error:
        raise CorruptFile(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise CorruptFile(f"{path}: its header is not valid JSON; download it again") from None
    if not isinstance(header, dict):
        raise CorruptFile(f"{path}: its header is not a JSON object; download it again")
    base = 8 + length
    entries = ((name, entry) for name, entry in header.items() if name != "__metadata__")
    return {name: _stored(path, name, entry, base, size) for name, entry in entries}


def _stored(path: Path, name: str, entry: object, base: int, size: int) -> StoredTensor:
    try:
        dtype_name, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]  # type: ignore[index]
        sizes = [*shape, begin, end]
    except (TypeError, KeyError, ValueError):
        raise CorruptFile(f"{path}: the header entry of {name} is malformed; download the file again") from None
    if not all(isinstance(number, int) and number >= 0 for number in sizes):
        raise CorruptFile(f"{path}: the header entry of {name} has a negative or non-integer size")
    if not isinstance(dtype_name, str) or dtype_name not in DTYPES:
        raise CorruptFile(f"{path}: tensor {name} has dtype {dtype_name}, known are {', '.join(DTYPES)}")
    needed = math.prod(shape) * DTYPES[dtype_name].itemsize
    if end - begin != needed:
        raise CorruptFile(f"{path}: tensor {name} has {end - begin} bytes where its shape {shape} needs {needed}")
    if base + end > size:
        raise CorruptFile(
            f"{path}: truncated: tensor {name} ends at byte {base + end}, the file has {size}; download it again"
        )
    return StoredTensor(path, name, DTYPES[dtype_name], shape, base + begin, base + end)


def find_shards(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder, all of them present, none outside the folder.

    Raises:
        NotACheckpoint: no safetensors weights.
        CorruptFile: an index that names missing files or paths outside the folder.
    """
    index = folder / INDEX
    if not index.is_file():
        if (folder / SINGLE).is_file():
            return [folder / SINGLE]
        raise NotACheckpoint(f"{folder}: neither {SINGLE} nor {INDEX}; moesaic reads safetensors checkpoints only")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptFile(f'{index}: no "weight_map"; download it again')
    names = sorted(set(map(str, weight_map.values())))
    for name in names:
        # a hub cache links its files to a blob store, so that the name is checked and not where it leads
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise CorruptFile(f"{index}: names {name!r}, a path outside the folder; do not trust this checkpoint")
        if not (folder / name).is_file():
            raise CorruptFile(f"{index}: names {name}, which is missing; download it")
    return [folder / name for name in names]


def read_headers(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a checkpoint folder by name, from the headers of its files.

    Raises:
        NotACheckpoint, CorruptFile: as `find_shards` and `read_header`; also when the index names a tensor that its
            file does not have.
    """
    tensors: dict[str, StoredTensor] = {}
    for path in find_shards(folder):
        tensors.update(read_header(path))
    index = folder / INDEX
    if index.is_file():
        for name, file in read_json(index)["weight_map"].items():
            if name not in tensors or tensors[name].path != folder / file:
                raise CorruptFile(f"{index}: places {name} in {file}, which does not hold it; download both again")
    return tensors


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
