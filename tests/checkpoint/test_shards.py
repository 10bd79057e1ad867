"""safetensors headers that lie, files that end early, and tensors that hold NaN."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from moesaic.checkpoint.shards import (
    DTYPES,
    find_shards,
    read_bytes,
    read_header,
    read_headers,
    read_rows,
    read_tensor,
)
from moesaic.errors import CorruptFile, NotACheckpoint
from tests.checkpoint.raw import entry, write_raw


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_every_dtype_is_read_as_the_library_reads_it(tmp_path: Path, dtype: torch.dtype) -> None:
    """Values, shape and dtype agree with what safetensors wrote, whole and by rows, scalars and empty tensors too."""
    wanted = torch.arange(24).reshape(4, 3, 2).to(dtype)
    tensors = {"w": wanted, "scalar": wanted[1, 1, 1].clone(), "empty": wanted[:0].clone()}
    save_file(tensors, tmp_path / "x.safetensors")
    stored = read_header(tmp_path / "x.safetensors")
    for name, tensor in tensors.items():
        found = read_tensor(stored[name])
        assert found.dtype == dtype
        assert found.shape == tensor.shape
        assert torch.equal(found, tensor)
    assert torch.equal(read_tensor(stored["w"], 2), wanted[2])
    assert torch.equal(read_rows(stored["w"], 1, 3), wanted[1:3])


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[" * 200_000, "not valid JSON"),
        ([], "not a JSON object"),
        ({"w": 3}, "malformed"),
        ({"w": {}}, "malformed"),
        ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}, "malformed"),
        ({"w": {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}}, "malformed"),
        ({"w": entry(shape=[-2])}, "negative or non-integer"),
        ({"w": entry(shape=[2.0])}, "negative or non-integer"),
        ({"w": entry(shape=["2"])}, "negative or non-integer"),
        ({"w": entry(begin=-8, end=0)}, "negative or non-integer"),
        ({"w": entry("F8_E5M2")}, "tensor w has dtype F8_E5M2, known are"),
        ({"w": {**entry(), "dtype": ["F32"]}}, "dtype|malformed"),
        ({"w": entry(shape=[3])}, r"8 bytes where its shape \(3,\) needs 12"),
        ({"w": entry(begin=8, end=0)}, "needs"),
        ({"w": entry(shape=[2**60, 2**60], end=2**122)}, "truncated"),
        ({"w": entry(begin=8, end=16)}, "truncated: tensor w ends at byte"),
    ],
)
def test_headers_that_lie_are_refused(tmp_path: Path, header: Any, message: str) -> None:
    """Whatever a header says is checked against the file before memory is taken; file and tensor are named."""
    path = write_raw(tmp_path / "x.safetensors", header, b"\0" * 8)
    with pytest.raises(CorruptFile, match=message) as caught:
        read_header(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("length", [2**63, 10**9, 1000])
def test_header_longer_than_the_file_is_truncation(tmp_path: Path, length: int) -> None:
    """A length field of garbage takes no memory."""
    path = write_raw(tmp_path / "x.safetensors", {"w": entry()}, b"\0" * 8, length=length)
    with pytest.raises(CorruptFile, match="truncated or not a safetensors file"):
        read_header(path)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 20])
def test_truncated_files(tmp_path: Path, size: int) -> None:
    """A file that ends anywhere in its header is refused with its size."""
    path = write_raw(tmp_path / "x.safetensors", {"w": entry()}, b"\0" * 8)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CorruptFile, match=f"{size} bytes"):
        read_header(path)


def test_data_that_vanishes_after_the_header_was_read(tmp_path: Path) -> None:
    """A file that shrinks while it is in use is noticed at the read."""
    path = write_raw(tmp_path / "x.safetensors", {"w": entry()}, b"\0" * 8)
    stored = read_header(path)["w"]
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CorruptFile, match="ends at byte"):
        read_tensor(stored)


def test_missing_file_and_folder_in_place_of_a_file(tmp_path: Path) -> None:
    """Both are one line with the path."""
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(CorruptFile, match="cannot be read"):
            read_header(path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_nan_and_infinity_name_file_and_tensor(tmp_path: Path, bad: float, dtype: torch.dtype) -> None:
    """One bad value among many is found, whole or by row; rows without it can be read."""
    tensor = torch.ones(4, 100, dtype=dtype)
    tensor[2, 7] = bad
    save_file({"w": tensor}, tmp_path / "x.safetensors")
    stored = read_header(tmp_path / "x.safetensors")["w"]
    for row in (None, 2):
        with pytest.raises(CorruptFile, match=r"x.safetensors: tensor w holds 1 NaN or infinite"):
            read_tensor(stored, row)
    assert read_tensor(stored, 1).sum() == 100


def test_large_finite_values_are_not_mistaken_for_infinity(tmp_path: Path) -> None:
    """A sum that overflows is looked at again."""
    save_file({"w": torch.full((100,), 3e38)}, tmp_path / "x.safetensors")
    assert read_tensor(read_header(tmp_path / "x.safetensors")["w"])[0] == 3e38


def test_opposite_infinities_do_not_cancel(tmp_path: Path) -> None:
    """+inf and -inf together are still found."""
    save_file({"w": torch.tensor([float("inf"), -float("inf")])}, tmp_path / "x.safetensors")
    with pytest.raises(CorruptFile, match="2 NaN or infinite"):
        read_tensor(read_header(tmp_path / "x.safetensors")["w"])


def test_read_bytes_reads_what_is_asked(tmp_path: Path) -> None:
    """Ranges, the empty one included."""
    (tmp_path / "x").write_bytes(bytes(range(10)))
    assert read_bytes(tmp_path / "x", 3, 6).tolist() == [3, 4, 5]
    assert read_bytes(tmp_path / "x", 4, 4).tolist() == []


# ---- indices ----


def sharded(folder: Path, weight_map: Any) -> Path:
    """Two files and an index that says what the test wants."""
    save_file({"a": torch.ones(2)}, folder / "one.safetensors")
    save_file({"b": torch.ones(2)}, folder / "two.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_sound_index(tmp_path: Path) -> None:
    """All tensors of all files are found where they lie."""
    folder = sharded(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    assert {name: each.path.name for name, each in read_headers(folder).items()} == {
        "a": "one.safetensors",
        "b": "two.safetensors",
    }


@pytest.mark.parametrize("name", ["/etc/passwd", "../x.safetensors", "sub/../../x.safetensors", "..", "/"])
def test_index_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    """Absolute paths and `..` are refused before anything is opened."""
    (tmp_path / "x.safetensors").write_bytes(b"")
    (tmp_path / "model").mkdir()
    with pytest.raises(CorruptFile, match="outside the folder"):
        find_shards(sharded(tmp_path / "model", {"a": name}))


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "one.safetensors", "b": "three.safetensors"}, "three.safetensors, which is missing"),
        ({"a": "one.safetensors", "b": "one.safetensors"}, "places b in one.safetensors, which does not hold it"),
        ({"a": "one.safetensors", "c": "one.safetensors"}, "places c in"),
        ({}, "weight_map"),
        ([], "weight_map"),
        (None, "weight_map"),
        ({"a": None}, "missing"),
        ({"a": 3}, "missing"),
        ({"a": ""}, "missing"),
        ({"a": "one\0.safetensors"}, "missing"),
    ],
)
def test_index_that_contradicts_the_files(tmp_path: Path, weight_map: Any, message: str) -> None:
    """Missing shards and misplaced tensors name the index and the file."""
    with pytest.raises(CorruptFile, match=message):
        read_headers(sharded(tmp_path, weight_map))


def test_folder_without_weights(tmp_path: Path) -> None:
    """No safetensors: says what is looked for, since a pickle checkpoint is not read."""
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(NotACheckpoint, match="safetensors checkpoints only"):
        find_shards(tmp_path)


def test_links_into_the_hub_cache_are_followed(tmp_path: Path) -> None:
    """The hub's cache links its files to a blob store beside the folder: that is no escape."""
    (tmp_path / "blobs").mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "blobs" / "123")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model.safetensors").symlink_to(tmp_path / "blobs" / "123")
    assert read_tensor(read_headers(tmp_path / "snapshot")["a"]).tolist() == [1, 1]
