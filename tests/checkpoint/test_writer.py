"""safetensors files written out of order."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from moesaic.checkpoint.writer import (
    ShardFile,
    TensorSpec,
    check_room,
    lay_out,
    shard_names,
    split_into_shards,
    storage_error,
    write_tensors,
)
from moesaic.errors import StorageFull
from tests.oracles.format_v1 import SafetensorsFile
from tests.processes import Running

SPECS = [
    TensorSpec("f", torch.float32, (3, 5)),
    TensorSpec("u", torch.uint8, (2, 64)),
    TensorSpec("scalar", torch.bfloat16, ()),
    TensorSpec("flag", torch.bool, (1,)),
    TensorSpec("v", torch.uint8, (128,)),
    TensorSpec("empty", torch.float16, (0, 4)),
]


def data(spec: TensorSpec) -> torch.Tensor:
    """Some values of the spec's shape."""
    return (torch.arange(spec.size // spec.dtype.itemsize) % 100).to(spec.dtype).view(spec.shape)


def test_file_written_in_any_order_is_read_by_safetensors(tmp_path: Path) -> None:
    """Whole tensors, rows and runs of rows arrive in their place, whatever the order."""
    file = ShardFile(tmp_path / "x.safetensors", SPECS)
    file.write("f", data(SPECS[0])[2], row=2)
    file.write("f", data(SPECS[0])[:2], row=0)
    for spec in reversed(SPECS[1:]):
        file.write(spec.name, data(spec))
    file.sync()
    file.close()
    found = load_file(tmp_path / "x.safetensors")
    assert set(found) == {spec.name for spec in SPECS}
    assert all(torch.equal(found[spec.name], data(spec)) for spec in SPECS)
    with safe_open(tmp_path / "x.safetensors", framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_packed_blobs_are_aligned(tmp_path: Path) -> None:
    """uint8 tensors come first, and both the data section and each of them start at a multiple of 64 bytes."""
    ShardFile(tmp_path / "x.safetensors", SPECS).close()
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert file.data_at % 64 == 0
    assert [file.header[name]["data_offsets"][0] % 64 for name in "uv"] == [0, 0]
    order = sorted(file.header, key=lambda name: file.header[name]["data_offsets"])
    assert set(order[:2]) == {"u", "v"}


def test_existing_file_of_the_right_size_keeps_its_data(tmp_path: Path) -> None:
    """Resuming finds what was written; a file of another size is emptied and said to be fresh."""
    first = ShardFile(tmp_path / "x", SPECS)
    assert first.fresh
    first.write("v", data(SPECS[4]))
    first.close()
    again = ShardFile(tmp_path / "x", SPECS)
    assert not again.fresh
    again.close()
    assert torch.equal(load_file(tmp_path / "x")["v"], data(SPECS[4]))
    with (tmp_path / "x").open("ab") as file:
        file.write(b"more")
    third = ShardFile(tmp_path / "x", SPECS)
    assert third.fresh
    third.close()
    assert not load_file(tmp_path / "x")["v"].any()


@pytest.mark.parametrize(
    ("tensor", "row"),
    [
        (torch.zeros(3, 4), None),
        (torch.zeros(5, 3), None),
        (torch.zeros(3, 5, dtype=torch.float16), None),
        (torch.zeros(4), 0),
        (torch.zeros(5), 3),
        (torch.zeros(2, 5), 2),
        (torch.zeros(4, 5), 0),
        (torch.zeros(5), -1),
    ],
)
def test_what_was_not_announced_is_refused(tmp_path: Path, tensor: torch.Tensor, row: int | None) -> None:
    """Another shape or dtype, or rows beyond the tensor's end, would spoil the neighbour: refused."""
    file = ShardFile(tmp_path / "x", SPECS)
    with pytest.raises(ValueError, match="f: announced"):
        file.write("f", tensor, row=row)
    file.close()


def test_strided_data_is_written_by_value(tmp_path: Path) -> None:
    """A transposed view lands as its values read."""
    file = ShardFile(tmp_path / "x", SPECS[:1])
    file.write("f", data(SPECS[0]).T.contiguous().T)
    file.close()
    assert torch.equal(load_file(tmp_path / "x")["f"], data(SPECS[0]))


@given(st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=4), min_size=1, max_size=12), st.integers(1, 100))
def test_shards_keep_order_and_groups_and_are_not_too_large(sizes: list[list[int]], limit: int) -> None:
    """Groups stay together and in order; a file exceeds the limit only when a single group does."""
    groups = [
        [TensorSpec(f"{i}.{j}", torch.uint8, (size,)) for j, size in enumerate(group)] for i, group in enumerate(sizes)
    ]
    shards = split_into_shards(groups, limit)
    assert [spec for shard in shards for spec in shard] == [spec for group in groups for spec in group]
    for shard in shards:
        owners = {spec.name.split(".")[0] for spec in shard}
        assert (
            sum(spec.size for spec in shard) <= limit
            or len(owners) == 1
            or not any(sum(sizes[int(owner)]) for owner in sorted(owners, key=int)[1:])
        )
    assert all(shards)


def test_shard_names_follow_the_convention() -> None:
    """One file has no number."""
    assert shard_names(1) == ["model.safetensors"]
    assert shard_names(2) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


@pytest.mark.parametrize(("number", "full"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EIO, False)])
def test_only_a_full_disk_is_storage_full(number: int, full: bool) -> None:
    """Other failures keep their own error."""
    error = OSError(number, "x")
    found = storage_error(error, Path("/x"))
    assert isinstance(found, StorageFull) == full
    assert full or found is error


def test_size_of_a_spec() -> None:
    """Elements times bytes; a scalar is one element."""
    assert [spec.size for spec in SPECS] == [60, 128, 2, 1, 128, 0]


def test_every_number_is_aligned() -> None:
    """Flags of one byte come last, so that nothing after them lies askew: kernels read numbers in place."""
    specs = [
        TensorSpec("blob", torch.uint8, (64,)),
        TensorSpec("flag", torch.bool, (1,)),
        TensorSpec("half", torch.bfloat16, (3,)),
        TensorSpec("single", torch.float32, (2,)),
    ]
    header, places, _ = lay_out(specs)
    for offset, spec in places.values():
        assert (len(header) + offset) % spec.dtype.itemsize == 0


def write_too_much(path: Path) -> None:
    """For a process that may write little."""
    try:
        write_tensors({"a": torch.zeros(10_000)}, path)
    except StorageFull as error:
        print(error)


def test_tensors_that_find_no_room(tmp_path: Path) -> None:
    """What the library says of a full disk in words alone is told as such, and no part of the file is left."""
    path = tmp_path / "kept.safetensors"
    result = Running(write_too_much, path, file_bytes=1000).finish()
    assert "kept.safetensors: no room left on the disk" in result.out, result.err
    assert list(tmp_path.iterdir()) == []
    write_tensors({"a": torch.zeros(10_000)}, path, {"who": "me"})
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    assert load_file(path)["a"].shape == (10_000,)


def test_room_is_asked_for_beforehand(tmp_path: Path) -> None:
    """The refusal has both sizes and the remedy."""
    check_room(tmp_path, 1000, "the model needs", "go away")
    with pytest.raises(StorageFull, match=r"the model needs 1000000000\.00 GB, [\d.]+ [GM]B are free; free some or go"):
        check_room(tmp_path, 10**18, "the model needs", "go away")
