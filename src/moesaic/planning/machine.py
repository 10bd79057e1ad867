"""What this machine has: memory, disk, accelerators. Imports no torch."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")  # where Linux shows the limits of containers
_LIMITS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))


@dataclass(frozen=True)
class Memory:
    """Main memory in bytes.

    Attributes:
        total: what the process could ever have: of the machine, or of its container where that is less.
        available: what it could have now without swapping.
        source: where the figures come from.
    """

    total: int
    available: int
    source: str


def memory(cgroups: Path = CGROUPS) -> Memory:
    """The memory that this process can use, the limit of its container included."""
    machine = psutil.virtual_memory()
    limit = _container_limit(cgroups)
    if limit is None or limit[0] >= machine.total:
        return Memory(machine.total, machine.available, "the system's available memory")
    total, used = limit
    return Memory(total, max(0, min(machine.available, total - used)), "the container's limit less what it uses")


def _container_limit(cgroups: Path) -> tuple[int, int] | None:
    """Limit and usage of the container's memory, None where there is none."""
    for limit, usage in _LIMITS:
        try:
            most, used = (cgroups / limit).read_text().strip(), (cgroups / usage).read_text().strip()
        except OSError:
            continue
        if most.isdecimal() and used.isdecimal():
            return int(most), int(used)
    return None


def disk_free(path: Path) -> int:
    """Bytes free on the disk that a path is on, or will be."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def peak_memory() -> int:
    """The most memory that this program has had at any time, in bytes.

    `getrusage` counts what the process had before the program was started in it too, so that the system's own
    account of the program's memory is read where there is one.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource  # noqa: PLC0415  (not on every system)

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def cpu_features() -> list[str]:
    """The vector instruction sets of the processor that matter here, as Linux names them."""
    x86 = ("avx2", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "amx_int8")
    arm = ("asimd", "asimddp", "i8mm", "sve", "bf16")
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    lines = (line for line in text.splitlines() if line.startswith(("flags", "Features")))
    flags = set(next(lines, "").partition(":")[2].split())
    return [name for name in (*x86, *arm) if name in flags]


def cores() -> tuple[int, int]:
    """Processors that this process may run on, and those of the machine."""
    total = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else total
    return usable, total
