"""Headers of safetensors files; how they are refused is in `test_shards.py`, which reads them through torch's names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from moesaic.checkpoint.headers import ITEM_BYTES, find_shards, read_all_entries, read_entries
from moesaic.checkpoint.shards import DTYPES
from moesaic.errors import CorruptFile
from tests.checkpoint.raw import entry, write_raw


def test_item_sizes_are_those_of_torch() -> None:
    """Every dtype that tensors are read in has its size here."""
    assert {name: dtype.itemsize for name, dtype in DTYPES.items()} == ITEM_BYTES


def test_entries_of_a_file(tmp_path: Path) -> None:
    """Name, dtype, shape and size are those of the tensors that the library wrote."""
    held = {"a": torch.ones(3, 5, dtype=torch.bfloat16), "b": torch.ones(2, dtype=torch.int64)}
    save_file(held, tmp_path / "model.safetensors")
    found = read_entries(tmp_path / "model.safetensors")
    assert {name: (each.dtype, each.shape, each.size) for name, each in found.items()} == {
        "a": ("BF16", (3, 5), 30),
        "b": ("I64", (2,), 16),
    }
    assert read_all_entries(tmp_path) == {tmp_path / "model.safetensors": found}
    assert find_shards(tmp_path) == [tmp_path / "model.safetensors"]


@pytest.mark.parametrize("shape", [(-1, 2), (2.0,), ("2",), (None,)])
def test_sizes_that_are_none(shape: tuple[object, ...], tmp_path: Path) -> None:
    """A shape that is not made of counts is refused by the tensor's name."""
    path = write_raw(tmp_path / "x.safetensors", {"w": entry(shape=shape)}, bytes(8))
    with pytest.raises(CorruptFile, match="header entry of w"):
        read_entries(path)


def test_torch_is_not_needed() -> None:
    """Headers are read without importing torch, which takes longer than reading them."""
    code = "import sys, moesaic.checkpoint.overview, moesaic.packing.manifest; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
