"""Hidden states of all calibration tokens, in memory while they are small and in a mapped file beyond that."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch
from torch import Tensor

from moesaic.checkpoint.writer import allocate, storage_error

IN_MEMORY_BYTES = 512 << 20  # of one set of hidden states; beyond it they lie in a file


class Shelf:
    """Gives out `[rows, columns]` float32 tensors; large ones are mapped files that the system may write out."""

    def __init__(self, folder: Path, limit: int = IN_MEMORY_BYTES) -> None:
        """Prepare.

        Args:
            folder: for the files; made when it is needed.
            limit: bytes up to which a tensor stays in memory.
        """
        self._folder = folder
        self._limit = limit
        self._made = 0

    def room(self, count: int, size: int) -> int:
        """Bytes on the disk that so many tensors of so many bytes will take."""
        return count * size if size > self._limit else 0

    def empty(self, *shape: int) -> Tensor:
        """An uninitialised float32 tensor. A file behind it disappears with the tensor.

        Raises:
            StorageFull: no room for the file.
        """
        size = 4 * math.prod(shape)
        if size <= self._limit:
            return torch.empty(shape)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._made += 1
        path = self._folder / f"activations-{os.getpid()}-{self._made}.bin"
        try:
            with path.open("wb") as file:
                allocate(file.fileno(), size)  # a mapped file that finds no room later ends the process
            return torch.from_file(str(path), shared=True, size=size // 4, dtype=torch.float32).view(shape)
        except OSError as error:
            raise storage_error(error, path) from error
        finally:
            path.unlink(missing_ok=True)  # the mapping keeps it alive
