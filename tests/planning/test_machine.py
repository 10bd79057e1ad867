"""What this machine has."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from moesaic.planning.machine import cores, cpu_features, disk_free, memory, peak_memory


def limits(folder: Path, names: tuple[str, str], most: object, used: object) -> Path:
    """A folder of control groups with those limits."""
    for name, value in zip(names, (most, used), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{value}\n")
    return folder


NEW = ("memory.max", "memory.current")
OLD = ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")


@pytest.mark.parametrize("names", [NEW, OLD])
def test_a_containers_limit_counts(names: tuple[str, str], tmp_path: Path) -> None:
    """In a container what may be used is its limit, not the machine's memory."""
    found = memory(limits(tmp_path, names, 10_000_000, 4_000_000))
    assert (found.total, found.available) == (10_000_000, 6_000_000)
    assert "container" in found.source


@pytest.mark.parametrize("most", ["max", 2**63 - 4096])
def test_no_limit(most: object, tmp_path: Path) -> None:
    """Without a limit, or with one above what there is, the machine's memory counts."""
    found = memory(limits(tmp_path, NEW, most, 4_000_000))
    assert found.total == psutil.virtual_memory().total
    assert 0 < found.available <= found.total


def test_the_disk_of_a_folder_to_be(tmp_path: Path) -> None:
    """A path that is not there yet is on the disk of its nearest parent."""
    found = disk_free(tmp_path / "a" / "b")
    assert abs(found - shutil.disk_usage(tmp_path).free) < 1 << 30


def test_peak_memory_is_of_the_program_alone() -> None:
    """A small program started by a large one has a small peak, and one that takes memory has it in its peak."""
    held = np.ones(100 << 17)  # 100 MiB in this process
    code = "import sys; from moesaic.planning.machine import peak_memory as p; x = b'1' * int(sys.argv[1]); print(p())"
    small, large = (
        int(subprocess.run([sys.executable, "-c", code, str(size)], capture_output=True, check=True).stdout)
        for size in (1, 50 << 20)
    )
    assert small < 60 << 20 < held.nbytes < peak_memory()
    assert 45 << 20 < large - small < 55 << 20


def test_processor() -> None:
    """Usable processors are some of the machine's; features are names without repetition."""
    usable, total = cores()
    assert 1 <= usable <= total
    assert len(set(cpu_features())) == len(cpu_features())
