"""Hidden states of all calibration tokens, in memory while they are small and in a mapped file beyond that."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

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

    def empty(self, *shape: int) -> Tensor:
        """An uninitialised float32 tensor. A file behind it disappears with the tensor."""
        size = 4
        for side in shape:
            size *= side
        if size <= self._limit:
            return torch.empty(shape)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._made += 1
        path = self._folder / f"activations-{os.getpid()}-{self._made}.bin"
        tensor = torch.from_file(str(path), shared=True, size=size // 4, dtype=torch.float32).view(shape)
        path.unlink()  # the mapping keeps it alive
        return tensor
