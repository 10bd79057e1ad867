"""A small job for the tests of `packing.job`, also run as a program of its own so that it can be killed.

python -m tests.packing.jobs TARGET [units before it kills itself]
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

from moesaic.checkpoint.writer import TensorSpec
from moesaic.packing.job import PackingJob
from moesaic.records import write_json

UNITS = 6
SHARDS = [
    [TensorSpec(f"t{unit}", torch.uint8 if unit % 2 else torch.float32, (4, 64)) for unit in (0, 1, 2)],
    [TensorSpec(f"t{unit}", torch.bfloat16, (4, 64)) for unit in (3, 4, 5)],
]
IDENTITY = {"options": {"bits": 2.5, "rule": "x"}, "source": {"a": [1, 2]}}


def data_of(unit: int) -> torch.Tensor:
    """The tensor that a unit makes."""
    spec = next(spec for shard in SHARDS for spec in shard if spec.name == f"t{unit}")
    return torch.arange(unit, unit + 256).remainder(250).view(spec.shape).to(spec.dtype)


def work(job: PackingJob, units: range, *, kill_at: int | None = None) -> list[str]:
    """Make the units that are not there yet, row by row; returns which. Kills this process in the middle of one."""
    made = []
    for unit in units:
        if job.is_done(f"u{unit}"):
            continue
        for row, part in enumerate(data_of(unit)):
            if unit == kill_at and row == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            job.write(f"t{unit}", part, row=row)
        job.finish(f"u{unit}", {f"in{unit}": f"digest{unit}"})
        made.append(f"u{unit}")
    return made


def finish(job: PackingJob) -> None:
    """Write what comes last and publish."""
    job.close_files()
    job.write_index()
    write_json(job.out / "moesaic.json", {"digests": job.digests})
    job.publish()


def start(target: Path, identity: dict[str, object] | None = None, *, overwrite: bool = False) -> PackingJob:
    """The job, new or resumed."""
    return PackingJob(target, SHARDS, identity or IDENTITY, overwrite=overwrite)


def contents(folder: Path) -> dict[str, bytes]:
    """All bytes of a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*"))}


if __name__ == "__main__":
    running = start(Path(sys.argv[1]))
    work(running, range(UNITS), kill_at=int(sys.argv[2]) if len(sys.argv) > 2 else None)
    finish(running)
