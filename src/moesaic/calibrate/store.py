"""What a calibrated run keeps of finished layers, so that a later run can go on from them."""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from moesaic.checkpoint.writer import check_room, write_tensors
from moesaic.errors import CorruptFile, JobMismatch, MoesaicError
from moesaic.packing.job import lock_folder
from moesaic.records import read_json, write_json


class Store:
    """Named sets of tensors: in memory, or one file each in a folder, on the disk before `put` returns."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._kept: dict[str, dict[str, Tensor]] = {}

    @classmethod
    def open(cls, folder: Path, identity: Mapping[str, Any], *, overwrite: bool) -> Store:
        """A store on the disk, with what an earlier run of the same identity left there.

        Args:
            folder: of the files; made when it is missing.
            identity: what makes the tensors what they are; JSON.
            overwrite: discard what a run of another identity left.

        Raises:
            JobMismatch: another identity, and not `overwrite`; names what differs. Or another process at work there.
        """
        wanted = json.loads(json.dumps(identity))
        path = folder / "identity.json"
        folder.mkdir(parents=True, exist_ok=True)
        store = cls(folder)
        weakref.finalize(store, os.close, lock_folder(folder))
        try:
            found = read_json(path)
        except MoesaicError:
            found = None  # killed before it was written: there is nothing of worth yet
        if found != wanted:
            if found is not None and not overwrite:
                changed = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
                raise JobMismatch(
                    f"{folder} holds an unfinished calibration with other settings (changed: "
                    f"{', '.join(changed)}); repeat that command to finish it, or give --overwrite to discard it"
                )
            path.unlink(missing_ok=True)  # first, so that what is left of the others never counts as of this one
            for kept in folder.glob("*.safetensors*"):
                kept.unlink()
            write_json(path, wanted)
        return store

    def reserve(self, needed: int, what: str, remedy: str) -> None:
        """Refuse to begin what the disk has no room for, what is kept already taken off; see `check_room`.

        Raises:
            StorageFull: with both sizes.
        """
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        present = sum(path.stat().st_size for path in self._folder.iterdir())
        check_room(self._folder, needed - present, what, remedy)

    def has(self, name: str) -> bool:
        """Whether a set of that name is kept."""
        return name in self._kept if self._folder is None else self._path(name).exists()

    def put(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep a set of tensors.

        Raises:
            StorageFull: no room on the disk.
        """
        if self._folder is None:
            self._kept[name] = {key: tensor.clone() for key, tensor in tensors.items()}
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        # a tensor of length 0 keeps a set without tensors a valid file
        write_tensors({"": torch.empty(0), **tensors}, self._path(name))

    def get(self, name: str) -> dict[str, Tensor]:
        """A set of tensors that was kept.

        Raises:
            CorruptFile: it is gone or damaged.
        """
        if self._folder is None:
            return self._kept[name]
        try:
            found = load_file(self._path(name))
        except (OSError, SafetensorError) as error:
            raise CorruptFile(
                f"{self._path(name)}: what an unfinished run kept cannot be read ({error}); give --overwrite to begin "
                "anew"
            ) from None
        found.pop("", None)
        return found

    def drop(self, name: str) -> None:
        """Forget a set."""
        self._kept.pop(name, None)
        if self._folder is not None:
            self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{name}.safetensors"
