"""Journalled, resumable, atomic output: killed, torn, locked, full and overwritten for real."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from moesaic.checkpoint.writer import TensorSpec
from moesaic.errors import JobMismatch, OutputExists, StorageFull
from moesaic.packing.job import PackingJob, check_target
from tests.packing.jobs import IDENTITY, SHARDS, UNITS, contents, data_of, finish, start, work

ROOT = Path(__file__).resolve().parents[2]


def run_program(target: Path, *more: str) -> int:
    """Run the job in a process of its own; its exit code, minus the signal when killed."""
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    command = [sys.executable, "-m", "tests.packing.jobs", str(target), *more]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, cwd=ROOT, check=False).returncode


@pytest.fixture
def undisturbed(tmp_path: Path) -> dict[str, bytes]:
    """What a job that nobody disturbs writes."""
    job = start(tmp_path / "undisturbed")
    work(job, range(UNITS))
    finish(job)
    return contents(tmp_path / "undisturbed")


def half_done(target: Path, units: int = 3) -> None:
    """Leave a job behind that finished some units and was stopped."""
    job = start(target)
    work(job, range(units))
    job.abandon()


def test_output_is_readable_by_safetensors(tmp_path: Path) -> None:
    """The published folder holds what was written, index included, and the work folder is gone."""
    target = tmp_path / "out"
    job = start(target)
    assert not target.exists()
    work(job, range(UNITS))
    finish(job)
    index = json.loads((target / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(spec.size for shard in SHARDS for spec in shard)
    for name, file in index["weight_map"].items():
        with safe_open(target / file, framework="pt") as opened:
            assert torch.equal(opened.get_tensor(name), data_of(int(name[1:])))
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("kill_at", [0, 4])
def test_killed_run_goes_on_and_ends_byte_identical(
    tmp_path: Path, undisturbed: dict[str, bytes], kill_at: int
) -> None:
    """SIGKILL in the middle of a unit leaves no output; the same command finishes it with the same bytes."""
    target = tmp_path / "out"
    assert run_program(target, str(kill_at)) == -signal.SIGKILL
    assert not target.exists()
    job = start(target)
    assert job.resumed == kill_at
    assert work(job, range(UNITS)) == [f"u{unit}" for unit in range(kill_at, UNITS)]
    finish(job)
    assert contents(target) == undisturbed


def test_interrupted_run_resumes_in_a_second_process(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    """A stopped job is taken up by another process."""
    half_done(tmp_path / "out")
    assert run_program(tmp_path / "out") == 0
    assert contents(tmp_path / "out") == undisturbed


@pytest.mark.parametrize("torn", [1, 10, 25, "not json", "\x00\x00\x00"])
def test_torn_journal_line_costs_one_unit(tmp_path: Path, undisturbed: dict[str, bytes], torn: int | str) -> None:
    """A line that a power cut tore is dropped with its unit, and the journal is sound again."""
    target = tmp_path / "out"
    half_done(target)
    journal = tmp_path / "out.partial" / "journal.jsonl"
    text = journal.read_text()
    journal.write_text(text[:-torn] if isinstance(torn, int) else text + torn)
    job = start(target)
    # without its line feed the last line is still whole
    assert job.resumed == (2 if torn in (10, 25) else 3)
    work(job, range(UNITS))
    assert len(journal.read_text().splitlines()) == 1 + UNITS
    finish(job)
    assert contents(target) == undisturbed


def test_torn_first_line_starts_afresh(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    """A journal without a readable first line belongs to nobody: the work starts again."""
    half_done(tmp_path / "out")
    journal = tmp_path / "out.partial" / "journal.jsonl"
    journal.write_text(journal.read_text()[:10])
    job = start(tmp_path / "out")
    assert job.resumed == 0
    work(job, range(UNITS))
    finish(job)
    assert contents(tmp_path / "out") == undisturbed


def test_other_options_are_refused_with_what_changed(tmp_path: Path) -> None:
    """An unfinished job of another command names the settings that differ and the ways out; it is left alone."""
    half_done(tmp_path / "out")
    other = {"options": {"bits": 3.0, "rule": "x"}, "source": {"a": [1, 3]}}
    with pytest.raises(JobMismatch, match=r"changed: options.bits, source.a.*--overwrite"):
        start(tmp_path / "out", other)
    assert start(tmp_path / "out").resumed == 3


def test_restart_discards_another_job(tmp_path: Path) -> None:
    """After a refusal the same process may start over with `restart`, and nothing of the old work is used."""
    half_done(tmp_path / "out")
    other = {"options": {"bits": 3.0}}
    with pytest.raises(JobMismatch):
        start(tmp_path / "out", other)
    job = start(tmp_path / "out", other, overwrite=True)
    assert job.resumed == 0
    assert not any(job.is_done(f"u{unit}") for unit in range(UNITS))
    assert job.digests == {}


def test_restart_goes_on_with_the_same_job(tmp_path: Path) -> None:
    """`--overwrite` on an unfinished job of the same command does not throw its work away."""
    half_done(tmp_path / "out")
    assert start(tmp_path / "out", overwrite=True).resumed == 3


def test_two_processes_cannot_write_one_output(tmp_path: Path) -> None:
    """While a process holds the job another one is turned away, with `restart` too; after its end it may go on."""
    job = start(tmp_path / "out")
    work(job, range(1))
    for overwrite in (False, True):
        with pytest.raises(JobMismatch, match="another process"):
            start(tmp_path / "out", overwrite=overwrite)
    assert run_program(tmp_path / "out") == 1
    job.abandon()
    assert start(tmp_path / "out").resumed == 1


@pytest.mark.parametrize("damage", ["delete", "shorten", "lengthen"])
def test_missing_or_wrong_file_of_a_resumed_job(tmp_path: Path, undisturbed: dict[str, bytes], damage: str) -> None:
    """When a file that the journal speaks of is gone or of another size, the units are made again."""
    half_done(tmp_path / "out", 5)
    path = sorted((tmp_path / "out.partial" / "out").glob("*.safetensors"))[0]
    if damage == "delete":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] if damage == "shorten" else path.read_bytes() + b"x")
    job = start(tmp_path / "out")
    assert not job.is_done("u0")
    work(job, range(UNITS))
    finish(job)
    assert contents(tmp_path / "out") == undisturbed


def test_digests_of_finished_units_survive(tmp_path: Path) -> None:
    """The manifest's digest of the inputs also covers what an earlier run read."""
    half_done(tmp_path / "out")
    assert start(tmp_path / "out").digests == {f"in{unit}": f"digest{unit}" for unit in range(3)}


def test_abandoned_without_a_unit_leaves_nothing(tmp_path: Path) -> None:
    """A run that failed before its first unit leaves no folder behind."""
    start(tmp_path / "out").abandon()
    assert os.listdir(tmp_path) == []


# ---- the target ----


def make_target(target: Path, kind: str) -> None:
    """Something under the name of the output."""
    match kind:
        case "file":
            target.write_text("x")
        case "link":
            (target.parent / "elsewhere").mkdir()
            (target.parent / "elsewhere" / "moesaic.json").write_text("{}")
            target.symlink_to(target.parent / "elsewhere")
        case "dangling link":
            target.symlink_to(target.parent / "nowhere")
        case _:
            target.mkdir()
    if kind == "foreign":
        (target / "thesis.tex").write_text("x")
    if kind == "ours":
        (target / "moesaic.json").write_text("{}")


@pytest.mark.parametrize("kind", ["file", "link", "dangling link", "foreign", "ours", "empty"])
def test_existing_target_is_refused(tmp_path: Path, kind: str) -> None:
    """Whatever stands under the name stays, and the message says the remedy."""
    make_target(tmp_path / "out", kind)
    with pytest.raises(OutputExists, match="--overwrite"):
        check_target(tmp_path / "out", overwrite=False)


@pytest.mark.parametrize(("kind", "allowed"), [("ours", True), ("empty", True), ("foreign", False), ("file", False)])
def test_overwrite_replaces_only_what_moesaic_wrote(tmp_path: Path, kind: str, allowed: bool) -> None:
    """`--overwrite` cannot delete a folder of something else, nor a file."""
    make_target(tmp_path / "out", kind)
    if allowed:
        check_target(tmp_path / "out", overwrite=True)
        return
    with pytest.raises(OutputExists, match="does not touch it"):
        check_target(tmp_path / "out", overwrite=True)


@pytest.mark.parametrize("kind", ["link", "dangling link"])
def test_overwrite_does_not_follow_links(tmp_path: Path, kind: str) -> None:
    """A link is not a folder that moesaic wrote."""
    make_target(tmp_path / "out", kind)
    with pytest.raises(OutputExists):
        check_target(tmp_path / "out", overwrite=True)


def test_old_output_stays_until_the_new_one_is_complete(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    """While the new model is made the old one can be used; then it is replaced as a whole."""
    target = tmp_path / "out"
    make_target(target, "ours")
    (target / "old.txt").write_text("old")
    job = start(target, overwrite=True)
    work(job, range(UNITS))
    assert (target / "old.txt").exists()
    finish(job)
    assert contents(target) == undisturbed


def test_a_folder_that_appeared_meanwhile_is_not_lost(tmp_path: Path) -> None:
    """Somebody else's folder that took the name during the run is not deleted by publishing."""
    target = tmp_path / "out"
    job = start(target)
    work(job, range(UNITS))
    make_target(target, "foreign")
    try:
        finish(job)
    except (OutputExists, OSError):
        job.abandon()
    assert list(tmp_path.rglob("thesis.tex")), "publish deleted a folder that it did not write"


def test_crash_between_the_two_renames_is_repaired(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    """When the old folder was moved aside but the new one not yet named, the same command finishes."""
    target = tmp_path / "out"
    make_target(target, "ours")
    job = start(target, overwrite=True)
    work(job, range(UNITS))
    job.close_files()
    os.close(job._lock)
    target.rename(job.work / "replaced")
    again = start(target, overwrite=True)
    assert again.resumed == UNITS
    finish(again)
    assert contents(target) == undisturbed
    assert not again.work.exists()


# ---- a full disk ----


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(command, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_too_small_a_disk_is_noticed_before_the_work(small_disk: Path) -> None:
    """What cannot fit is refused at once with both sizes, and nothing is left behind."""
    big = [[TensorSpec("t", torch.uint8, (1 << 20,))]]
    with pytest.raises(StorageFull, match=r"needs 1\.05 MB, 0\.52 MB are free"):
        PackingJob(small_disk / "out", big, IDENTITY, overwrite=False)
    assert os.listdir(small_disk) == []


def test_disk_that_fills_up_later(small_disk: Path) -> None:
    """Room is reserved when the job starts: another program filling the disk cannot stop the tensors."""
    job = PackingJob(small_disk / "out", [[TensorSpec("t", torch.uint8, (4, 65536))]], IDENTITY, overwrite=False)
    with pytest.raises(OSError, match="No space"):
        (small_disk / "filler").write_bytes(b"x" * (1 << 20))
    for row in range(4):
        job.write("t", torch.ones(65536, dtype=torch.uint8), row=row)
    job.abandon()
    (small_disk / "filler").unlink()


def test_no_room_for_the_second_file_frees_the_job(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a file cannot be reserved, the error is StorageFull and a later attempt is not locked out."""
    monkeypatch.setattr(PackingJob, "_check_room", lambda self: None)
    shards = [[TensorSpec(f"t{i}", torch.uint8, (300 << 10,))] for i in range(2)]
    for _ in range(2):
        with pytest.raises(StorageFull, match="no room left"):
            PackingJob(small_disk / "out", shards, IDENTITY, overwrite=False)
    assert not (small_disk / "out").exists()


LIMITED = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from tests.packing.jobs import start
from moesaic.errors import StorageFull
try:
    start(Path(sys.argv[1]))
except StorageFull as error:
    print("full", error)
"""


def test_a_limit_on_file_sizes_is_a_full_disk(tmp_path: Path) -> None:
    """A quota or `ulimit -f` gives the same error as a full disk."""
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "out")]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths}, cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert done.stdout.startswith("full")
    assert not (tmp_path / "out").exists()
