"""Where hidden states lie."""

from __future__ import annotations

from pathlib import Path

import torch

from moesaic.calibrate.activations import Shelf
from moesaic.errors import StorageFull
from tests.processes import Running


def test_large_tensors_lie_in_files_that_go_with_them(tmp_path: Path):
    """Below the limit memory, above it a mapped file whose name is gone at once; both hold what is written."""
    shelf = Shelf(tmp_path / "scratch", limit=100)
    small, large = shelf.empty(5, 5), shelf.empty(50, 50)
    assert list((tmp_path / "scratch").iterdir()) == []
    for tensor in (small, large):
        tensor.copy_(torch.arange(tensor.numel()).view(tensor.shape))
        assert float(tensor.flatten()[-1]) == tensor.numel() - 1
    assert large.dtype == torch.float32


def take_room(folder: Path) -> None:
    """For a process that may write little."""
    try:
        Shelf(folder, limit=100).empty(100, 100)
    except StorageFull as error:
        print(error)


def test_no_room_for_a_mapped_file(tmp_path: Path):
    """A full disk is an error when the file is made: noticed later it would end the process without a word."""
    result = Running(take_room, tmp_path, file_bytes=1000).finish()
    assert "no room left on the disk" in result.out, result.err
    assert list(tmp_path.iterdir()) == []
    assert Shelf(tmp_path, limit=100).room(3, 101) == 303
    assert Shelf(tmp_path, limit=100).room(3, 100) == 0
