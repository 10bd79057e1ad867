"""safetensors files written in any order: sizes are laid down first, data is put in its place when it is ready.

The safetensors library writes a file from tensors that are all in memory. Here a file is larger than memory, and its
parts arrive expert by expert, so that the (simple) format is written directly.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from moesaic.checkpoint.shards import DTYPE_NAMES
from moesaic.errors import StorageFull

ALIGNMENT = 64


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that is going to be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def split_into_shards(groups: list[list[TensorSpec]], shard_bytes: int) -> list[list[TensorSpec]]:
    """Spread groups of tensors (a layer each, kept together) over files of at most `shard_bytes` where possible."""
    shards: list[list[TensorSpec]] = [[]]
    filled = 0
    for group in groups:
        size = sum(spec.size for spec in group)
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].extend(group)
        filled += size
    return shards


def shard_names(count: int) -> list[str]:
    """File names in the Hugging Face convention."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def lay_out(specs: list[TensorSpec]) -> tuple[bytes, dict[str, tuple[int, TensorSpec]], int]:
    """How the tensors of one file lie.

    uint8 tensors come first: packed blobs are multiples of 64 bytes long, so that all of them are aligned when the
    data section is. After them come wide numbers before narrow ones, flags last, so that every number is aligned.

    Returns:
        The header with its length before it, the offset of each tensor in the data section, and that section's size.
    """
    ordered = sorted(specs, key=lambda spec: (spec.dtype != torch.uint8, -spec.dtype.itemsize))  # stable
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    places: dict[str, tuple[int, TensorSpec]] = {}
    offset = 0
    for spec in ordered:
        entry = {"dtype": DTYPE_NAMES[spec.dtype], "shape": list(spec.shape)}
        header[spec.name] = {**entry, "data_offsets": [offset, offset + spec.size]}
        places[spec.name] = (offset, spec)
        offset += spec.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text, places, offset


def file_bytes(specs: list[TensorSpec]) -> int:
    """How long the file of these tensors is going to be."""
    header, _, size = lay_out(specs)
    return len(header) + size


class ShardFile:
    """One safetensors file of known contents, filled in any order; see `lay_out`."""

    def __init__(self, path: Path, specs: list[TensorSpec]) -> None:
        """Lay down the header and the size; an existing file of that size keeps its data.

        Raises:
            StorageFull: no room for the file.
        """
        self.path = path
        header, self._places, size = lay_out(specs)
        self._base = len(header)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self.fresh = os.fstat(self._file).st_size != self._base + size
            if self.fresh:
                os.ftruncate(self._file, 0)
                allocate(self._file, self._base + size)
            self._put(0, header)
        except OSError as error:
            os.close(self._file)
            raise storage_error(error, path) from error

    def write(self, name: str, data: Tensor, row: int | None = None) -> None:
        """Write a tensor; with `row`, one index of its first dimension, or several from that one on.

        Raises:
            ValueError: another shape or dtype than announced.
            StorageFull: no room.
        """
        offset, spec = self._places[name]
        allowed = [spec.shape] if row is None else [spec.shape[1:], (*data.shape[:1], *spec.shape[1:])]
        if tuple(data.shape) not in allowed or data.dtype != spec.dtype:
            raise ValueError(f"{name}: announced {spec.dtype} {spec.shape}, got {data.dtype} {tuple(data.shape)}")
        if row is not None:
            rows = data.shape[0] if data.dim() == len(spec.shape) else 1
            if not 0 <= row <= row + rows <= spec.shape[0]:
                raise ValueError(f"{name}: announced {spec.shape[0]} rows, got {row} to {row + rows - 1}")
        raw = data.contiguous().view(-1).view(torch.uint8).numpy()
        if row:
            offset += row * (spec.size // spec.shape[0])
        try:
            self._put(self._base + offset, raw.data)
        except OSError as error:
            raise storage_error(error, self.path) from error

    def sync(self) -> None:
        """Make what was written survive a power cut."""
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _put(self, offset: int, data: bytes | memoryview) -> None:
        view = memoryview(data)
        done = 0
        while done < len(view):
            done += os.pwrite(self._file, view[done:], offset + done)


def allocate(file: int, size: int) -> None:
    """Reserve the room of an open file now, so that a full disk is noticed before hours of work.

    Raises:
        OSError: no room.
    """
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        os.ftruncate(file, size)


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file of tensors that are in memory; it has its name only when it is complete and on the disk.

    Raises:
        StorageFull: no room.
    """
    draft = path.with_name(path.name + ".draft")
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, draft, metadata)
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    except SafetensorError as error:
        draft.unlink(missing_ok=True)
        raise _told_in_words(error, path) from error
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise storage_error(error, path) from error
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _told_in_words(error: SafetensorError, path: Path) -> Exception:
    """The library passes on what the system said as text alone, such as `I/O error: … (os error 28)`."""
    found = re.search(r"os error (\d+)", str(error))
    if found is None:
        return error
    return storage_error(OSError(int(found[1]), os.strerror(int(found[1])), str(path)), path)


def check_room(folder: Path, needed: int, what: str, remedy: str) -> None:
    """Refuse to begin what the disk has no room for.

    Args:
        folder: on the disk.
        needed: bytes.
        what: what needs them, as in "the packed model needs 3.00 GB".
        remedy: what else than more room helps.

    Raises:
        StorageFull: with both sizes.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StorageFull(f"{folder}: {what} {_size(needed)}, {_size(free)} are free; free some or {remedy}")


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


def storage_error(error: OSError, path: Path) -> Exception:
    """What to raise for a failed write: `StorageFull` when the disk is full, else the error itself."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StorageFull(f"{path}: no room left on the disk; free some and run the same command again to go on")
    return error
