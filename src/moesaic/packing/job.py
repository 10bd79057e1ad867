"""An output folder in the making: journalled, resumable, published in one rename.

    OUT.partial/                the work folder, beside the target
        journal.jsonl           first line: what the job is; then one line for every finished unit
        lock                    held by the process that works on it
        out/                    becomes OUT

A unit (an expert layer, a group of other tensors) is on the disk before its line is. A job that was killed goes on
after the last line; one with other options or inputs is refused.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from moesaic.checkpoint.writer import ShardFile, TensorSpec, check_room, shard_names, storage_error
from moesaic.errors import JobMismatch, OutputExists
from moesaic.packing import MANIFEST as MANIFEST  # noqa: PLC0414
from moesaic.records import write_json

INDEX = "model.safetensors.index.json"


def check_target(target: Path, *, overwrite: bool) -> None:
    """Refuse a target that exists, and with `overwrite` one that moesaic did not write.

    Raises:
        OutputExists: says the remedy.
    """
    if not (target.exists() or target.is_symlink()):
        return
    if not overwrite:
        raise OutputExists(
            f"{target} exists; give another folder, or --overwrite to replace it when the new one is complete"
        )
    ours = target.is_dir() and not target.is_symlink() and ((target / MANIFEST).is_file() or not any(target.iterdir()))
    if not ours:
        raise OutputExists(f"{target} exists and is not a folder written by moesaic; --overwrite does not touch it")


def index_of(file_of: Mapping[str, list[TensorSpec]]) -> dict[str, Any]:
    """The index of a model of several files: which tensor lies in which."""
    total = sum(spec.size for specs in file_of.values() for spec in specs)
    places = {spec.name: name for name, specs in file_of.items() for spec in specs}
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}


class PackingJob:
    """Writes the tensors of a packed model, unit by unit."""

    def __init__(
        self, target: Path, shards: list[list[TensorSpec]], identity: Mapping[str, Any], *, overwrite: bool
    ) -> None:
        """Start a job, or go on with the unfinished one of the same identity.

        Args:
            target: the folder to be made.
            shards: the tensors of each file.
            identity: what makes the result what it is (inputs, options); JSON.
            overwrite: discard an unfinished job of another identity, and at the end replace an output that exists.

        Raises:
            JobMismatch: an unfinished job with another identity, or one that another process works on.
            StorageFull: no room for the result.
        """
        self.target = target
        self._overwrite = overwrite
        self.work = target.with_name(target.name + ".partial")
        self.out = self.work / "out"
        self.digests: dict[str, str] = {}
        self._identity = json.loads(json.dumps(identity))
        self._done: set[str] = set()
        self.work.mkdir(parents=True, exist_ok=True)
        self._lock = lock_folder(self.work)
        self._journal = self.work / "journal.jsonl"
        found = self._journal.exists()
        try:
            self._recover(overwrite=overwrite)
        except JobMismatch:
            self._unlock()
            raise
        except OSError as error:
            if not found:
                shutil.rmtree(self.work, ignore_errors=True)
            self._unlock()
            raise storage_error(error, self.work) from error
        self.out.mkdir(exist_ok=True)
        self._file_of = dict(zip(shard_names(len(shards)), shards, strict=True))
        self._files: dict[str, ShardFile] = {}
        try:
            self._check_room()
            for name, specs in self._file_of.items():
                self._files[name] = ShardFile(self.out / name, specs)
        except BaseException:
            self.abandon()
            raise
        if any(file.fresh for file in self._files.values()):
            self._forget()  # a file that the journal speaks of is gone
        for path in self.out.iterdir():
            if path.name not in self._files:
                path.unlink()  # from the end of a run that was killed; it will be written again
        self._place = {spec.name: name for name, specs in self._file_of.items() for spec in specs}
        self._touched: set[str] = set()
        self.resumed = len(self._done)

    def is_done(self, unit: str) -> bool:
        """Whether an earlier run finished the unit."""
        return unit in self._done

    def write(self, name: str, data: Tensor, row: int | None = None) -> None:
        """Put a tensor, or one index of its first dimension, in its place."""
        file = self._place[name]
        self._touched.add(file)
        self._files[file].write(name, data, row)

    def finish(self, unit: str, digests: Mapping[str, str]) -> None:
        """Record a unit as finished, with the digests of what it was made from."""
        for file in sorted(self._touched):
            self._files[file].sync()
        self._touched.clear()
        self._append({"unit": unit, "digests": dict(digests)})
        self._done.add(unit)
        self.digests.update(digests)

    def write_index(self) -> None:
        """Write the index that a model of several files needs."""
        if len(self._file_of) > 1:
            write_json(self.out / INDEX, index_of(self._file_of))

    def publish(self) -> None:
        """Give the complete folder its name. What stood there before goes away only now.

        Raises:
            OutputExists: something took the name in the meantime.
        """
        check_target(self.target, overwrite=self._overwrite)
        self.close_files()
        for path in self.out.iterdir():
            _sync(path)
        _sync(self.out)
        if self.target.exists():
            self.target.rename(self.work / "replaced")
        self.out.rename(self.target)
        _sync(self.target.parent)
        self._unlock()
        shutil.rmtree(self.work)

    def abandon(self, *, keep: bool = True) -> None:
        """Stop without a result.

        Args:
            keep: leave finished units, if there are any, for a later run to go on from.
        """
        self.close_files()
        measured = any(self.work.glob("calibration/*.safetensors"))  # what a long calibration has kept is of use too
        if not (keep and (self._done or measured)):
            shutil.rmtree(self.work, ignore_errors=True)
        self._unlock()

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def close_files(self) -> None:
        """Close the files of tensors."""
        for file in self._files.values():
            file.close()
        self._files = {}

    def _recover(self, *, overwrite: bool) -> None:
        lines = _read_lines(self._journal)
        if lines and lines[0].get("identity") == self._identity:
            if self._journal.read_text(encoding="utf-8", errors="replace") != _text(lines):
                _write_lines(self._journal, lines)  # without a torn one
            for line in lines[1:]:
                self._done.add(line["unit"])
                self.digests.update(line["digests"])
            return
        if lines and not overwrite:
            changed = _changed(lines[0].get("identity", {}), self._identity)
            raise JobMismatch(
                f"{self.work} holds an unfinished run with other settings (changed: {', '.join(changed)}); repeat that "
                "command to finish it, or give --overwrite to discard it"
            )
        shutil.rmtree(self.out, ignore_errors=True)
        self._forget()

    def _forget(self) -> None:
        self._done.clear()
        self.digests.clear()
        _write_lines(self._journal, [{"identity": self._identity}])

    def _append(self, line: Mapping[str, Any]) -> None:
        with self._journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _check_room(self) -> None:
        needed = sum(spec.size for specs in self._file_of.values() for spec in specs)
        present = sum(path.stat().st_size for path in self.out.iterdir() if path.name in self._file_of)
        check_room(self.work.parent, needed - present, "the packed model needs", "choose another disk")


def lock_folder(work: Path) -> int:
    """Hold a work folder alone: until the handle that is returned is closed, or the process ends.

    Raises:
        JobMismatch: another process holds it.
    """
    handle = os.open(work / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise JobMismatch(
            f"{work}: another process is writing this output; wait for it or choose another folder"
        ) from None
    return handle


def _read_lines(journal: Path) -> list[dict[str, Any]]:
    """The journal's lines; a line that a power cut tore ends it."""
    lines: list[dict[str, Any]] = []
    if journal.is_file():
        for text in journal.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                break
    return lines


def _write_lines(journal: Path, lines: list[dict[str, Any]]) -> None:
    draft = journal.with_name(journal.name + ".draft")
    try:
        draft.write_text(_text(lines), encoding="utf-8")
        _sync(draft)
        draft.replace(journal)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def _text(lines: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def _changed(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Which settings differ, by dotted name."""
    names = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            names += _changed(before, after, f"{prefix}{key}.")
        elif before != after:
            names.append(f"{prefix}{key}")
    return names


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
