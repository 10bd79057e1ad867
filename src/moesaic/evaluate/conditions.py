"""The conditions that a measurement was made under: machine, versions, backend."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from moesaic.kernels import describe, select
from moesaic.packing.manifest import library_versions


def conditions(**more: Any) -> dict[str, Any]:
    """What a `RunRecord` has to carry; `more` is added (model, text, window, …)."""
    return {
        **more,
        "machine": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "backend": select("cpu").NAME,
        "kernels": describe("cpu"),
        "versions": library_versions(),
    }


def processor_name() -> str:
    """The processor's name, as the system gives it."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
