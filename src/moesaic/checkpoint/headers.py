"""What safetensors files say of themselves: names, dtypes, shapes and places of their tensors, each size checked.

Imports no torch: what is to be told of a folder from its headers alone is told at once.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

from moesaic.errors import CorruptFile, NotACheckpoint
from moesaic.json_files import read_json

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_LARGEST_HEADER = 100 << 20  # as in the safetensors library


class Entry(NamedTuple):
    """One tensor of a file: the format's name of its dtype, its shape, and its byte range in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.stop - self.start


def read_entries(path: Path) -> dict[str, Entry]:
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
    return {name: _entry(path, name, entry, base, size) for name, entry in entries}


def _entry(path: Path, name: str, entry: object, base: int, size: int) -> Entry:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]  # type: ignore[index]
    except (TypeError, KeyError, ValueError):
        raise CorruptFile(f"{path}: the header entry of {name} is malformed; download the file again") from None
    for number in (*shape, begin, end):
        if not isinstance(number, int) or number < 0:
            raise CorruptFile(f"{path}: the header entry of {name} has a negative or non-integer size")
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise CorruptFile(f"{path}: tensor {name} has dtype {dtype}, known are {', '.join(ITEM_BYTES)}")
    needed = math.prod(shape) * ITEM_BYTES[dtype]
    if end - begin != needed:
        raise CorruptFile(f"{path}: tensor {name} has {end - begin} bytes where its shape {shape} needs {needed}")
    if base + end > size:
        raise CorruptFile(
            f"{path}: truncated: tensor {name} ends at byte {base + end}, the file has {size}; download it again"
        )
    return Entry(dtype, shape, base + begin, base + end)


def find_shards(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder, all of them present, none outside the folder.

    Raises:
        NotACheckpoint: no safetensors weights.
        CorruptFile: an index that names missing files or paths outside the folder.
    """
    return _shards(folder, _weight_map(folder))


def read_all_entries(folder: Path) -> dict[Path, dict[str, Entry]]:
    """The tensors of a checkpoint folder by file, from the headers; the index is checked against them.

    Raises:
        NotACheckpoint, CorruptFile: as `find_shards` and `read_entries`; also when the index names a tensor that its
            file does not have.
    """
    weight_map = _weight_map(folder) or {}
    files = {path: read_entries(path) for path in _shards(folder, weight_map)}
    path_of = {file: next(path for path in files if path == folder / file) for file in set(weight_map.values())}
    holder = {name: path for path, entries in files.items() for name in entries}
    for name, file in weight_map.items():
        if holder.get(name) is not path_of[file]:
            raise CorruptFile(f"{folder / INDEX}: places {name} in {file}, which does not hold it; download both again")
    return files


def _weight_map(folder: Path) -> dict[str, str] | None:
    """Tensor -> file, as the index says; None without an index."""
    index = folder / INDEX
    if not index.is_file():
        return None
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptFile(f'{index}: no "weight_map"; download it again')
    return {name: str(file) for name, file in weight_map.items()}


def _shards(folder: Path, weight_map: dict[str, str] | None) -> list[Path]:
    if not weight_map:
        if (folder / SINGLE).is_file():
            return [folder / SINGLE]
        raise NotACheckpoint(f"{folder}: neither {SINGLE} nor {INDEX}; moesaic reads safetensors checkpoints only")
    names = sorted(set(weight_map.values()))
    for name in names:
        # a hub cache links its files to a blob store, so that the name is checked and not where it leads
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise CorruptFile(
                f"{folder / INDEX}: names {name!r}, a path outside the folder; do not trust this checkpoint"
            )
        if not (folder / name).is_file():
            raise CorruptFile(f"{folder / INDEX}: names {name}, which is missing; download it")
    return [folder / name for name in names]
