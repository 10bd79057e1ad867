"""Where hidden states lie."""

from __future__ import annotations

from pathlib import Path

import torch

from moesaic.calibrate.activations import Shelf


def test_large_tensors_lie_in_files_that_go_with_them(tmp_path: Path):
    """Below the limit memory, above it a mapped file whose name is gone at once; both hold what is written."""
    shelf = Shelf(tmp_path / "scratch", limit=100)
    small, large = shelf.empty(5, 5), shelf.empty(50, 50)
    assert list((tmp_path / "scratch").iterdir()) == []
    for tensor in (small, large):
        tensor.copy_(torch.arange(tensor.numel()).view(tensor.shape))
        assert float(tensor.flatten()[-1]) == tensor.numel() - 1
    assert large.dtype == torch.float32
