"""From what the user calls a model to a folder."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants
import pytest

from moesaic.checkpoint.locate import locate
from moesaic.errors import NotACheckpoint


def test_local_folder_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder, relative or under the home folder, needs no network."""
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate(tmp_path) == tmp_path
    assert locate("owner/name") == Path("owner/name")
    assert locate("~/owner") == tmp_path / "owner"


@pytest.mark.parametrize("name", ["nowhere", "/no/such/folder", "a/b/c", "./a/b", "../a", "a b/c", ".hidden/name"])
def test_neither_folder_nor_hub_id(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be a hub id is not looked up there."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotACheckpoint, match="no such folder, and not a hub id"):
        locate(name)


def test_hub_id_without_network_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Offline, an id that is not in the cache says that neither folder nor hub had it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotACheckpoint, match=r"^nobody/nothing: no such folder here, and the hub .*") as caught:
        locate("nobody/nothing")
    assert "\n" not in str(caught.value)
