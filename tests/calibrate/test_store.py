"""What a calibrated run keeps of finished layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moesaic.calibrate.store import Store
from moesaic.errors import CorruptFile, JobMismatch, StorageFull


@pytest.mark.parametrize("on_disk", [False, True])
def test_sets_of_tensors_come_back(on_disk: bool, tmp_path: Path):
    """What was put is what is got, also a set without tensors; dropping forgets it."""
    store = Store(tmp_path / "kept") if on_disk else Store()
    tensors = {"a/b": torch.arange(6).view(2, 3), "c": torch.rand(2)}
    store.put("one", tensors)
    store.put("none", {})
    tensors["c"].zero_()
    assert store.has("one")
    assert not store.has("two")
    found = store.get("one")
    assert found.keys() == tensors.keys()
    assert float(found["c"].sum()) > 0, "a copy is kept"
    assert store.get("none") == {}
    store.drop("one")
    assert not store.has("one")


def test_only_a_run_of_the_same_identity_goes_on(tmp_path: Path):
    """Other settings are refused with what changed, unless what is there may be discarded."""
    folder = tmp_path / "kept"
    Store.open(folder, {"seed": 1, "text": "x"}, overwrite=False).put("a", {"t": torch.ones(1)})
    assert Store.open(folder, {"seed": 1, "text": "x"}, overwrite=False).has("a")
    with pytest.raises(JobMismatch, match=r"changed: seed\).*--overwrite"):
        Store.open(folder, {"seed": 2, "text": "x"}, overwrite=False)
    assert not Store.open(folder, {"seed": 2, "text": "x"}, overwrite=True).has("a")


def test_damaged_files_are_named(tmp_path: Path):
    """A file that was cut short is an error with its name, not wrong states."""
    store = Store(tmp_path)
    store.put("a", {"t": torch.ones(100)})
    path = tmp_path / "a.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CorruptFile, match=r"a\.safetensors"):
        store.get("a")


def test_one_process_at_a_time(tmp_path: Path):
    """While one run is at work in a folder, another that starts there is refused; afterwards it is not."""
    at_work = Store.open(tmp_path / "kept", {"seed": 1}, overwrite=False)
    with pytest.raises(JobMismatch, match="another process"):
        Store.open(tmp_path / "kept", {"seed": 1}, overwrite=True)
    at_work.put("a", {"t": torch.ones(1)})
    del at_work
    assert Store.open(tmp_path / "kept", {"seed": 1}, overwrite=False).has("a")


def test_room_is_asked_for_beforehand(tmp_path: Path):
    """What is kept already is taken off what is needed; in memory there is no disk to ask."""
    Store().reserve(10**18, "states need", "give less")
    store = Store(tmp_path)
    store.put("a", {"t": torch.ones(1000)})
    store.reserve(1000, "states need", "give less")
    with pytest.raises(StorageFull, match=r"states need .* are free; free some or give less"):
        store.reserve(10**18, "states need", "give less")
