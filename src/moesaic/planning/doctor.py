"""What this installation can do on this machine, and what would make it do better."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch

from moesaic.errors import MoesaicError
from moesaic.evaluate.conditions import processor_name
from moesaic.kernels import cpu, select
from moesaic.planning.machine import cores, cpu_features, disk_free, memory

GB = 10**9


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what.
        value: how it is.
        state: `ok`; `better` where it works but could do better; `missing` where it does not work.
        remedy: what to do, "" where nothing is to be done.
    """

    name: str
    value: str
    state: str = "ok"
    remedy: str = ""


def diagnose() -> list[Finding]:
    """Look at everything."""
    return [*_software(), *_processor(), kernels(), *_accelerators(), *_room(), *_extras()]


def _software() -> Iterator[Finding]:
    yield Finding("moesaic", _version("moesaic"))
    yield Finding("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for name in ("torch", "transformers", "safetensors"):
        yield Finding(name, _version(name))


def _processor() -> Iterator[Finding]:
    features = cpu_features()
    yield Finding("processor", f"{processor_name()}; {' '.join(features) or 'no vector instructions used here'}")
    usable, total = cores()
    threads = torch.get_num_threads()
    words = f"torch uses {threads}; this process may run on {usable} of {total} processors"
    if threads > usable:
        yield Finding("threads", words, "better", f"threads beyond the processors only wait: --threads {usable}")
    elif threads < usable:
        set_by = "OMP_NUM_THREADS" if os.environ.get("OMP_NUM_THREADS") else "torch's choice"
        yield Finding("threads", f"{words} ({set_by})", "ok", f"--threads {usable} uses all of them")
    else:
        yield Finding("threads", words)


def kernels() -> Finding:
    """Which kernel backend runs packed layers, and why not a better one."""
    try:
        name = select("cpu").NAME
    except MoesaicError as error:
        return Finding("kernels", str(error), "missing", "unset MOESAIC_KERNELS and MOESAIC_CPU_ISA, or correct them")
    try:
        ready, reason = cpu.available()
    except MoesaicError as error:
        ready, reason = False, str(error)
    if name == "cpu":
        return Finding("kernels", f"cpu (native): {reason}")
    if ready:
        return Finding(
            "kernels", f"{name} (torch); the native kernels could run: {reason}", "better", "set MOESAIC_KERNELS=cpu"
        )
    return Finding("kernels", f"{name} (torch), which is slow; not the native ones: {reason}", "better", _BUILD)


_BUILD = "`make native` in a checkout of moesaic builds them"


def _accelerators() -> Iterator[Finding]:
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        yield Finding(f"GPU {number}", f"{name}: {free / GB:.1f} of {total / GB:.1f} GB free")
    if not torch.cuda.device_count():
        yield Finding("GPU", "none that torch can use; packed models run on the processor")


def _room() -> Iterator[Finding]:
    here = memory()
    yield Finding("memory", f"{here.available / GB:.1f} of {here.total / GB:.1f} GB free ({here.source})")
    yield Finding("disk here", f"{disk_free(Path()) / GB:.1f} GB free in {Path().absolute()}")
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", "~/.cache/huggingface")) / "hub")
    cache = cache.expanduser()
    yield Finding("disk of the hub's cache", f"{disk_free(cache) / GB:.1f} GB free at {cache}")


def _extras() -> Iterator[Finding]:
    """The optional parts that moesaic's own metadata names."""
    groups: dict[str, list[str]] = {}
    for line in requires("moesaic") or ():
        requirement, marker, extra = line.partition("; extra == ")
        if marker:
            groups.setdefault(extra.strip("'\""), []).append(requirement.strip())
    for extra, requirements in groups.items():
        absent = [each for each in map(_name, requirements) if _version(each) == "not installed"]
        if absent:
            remedy = f"pip install 'moesaic[{extra}]'"
            yield Finding(f"extra {extra}", f"not installed: {', '.join(absent)}", "ok", remedy)
        else:
            yield Finding(f"extra {extra}", "installed")


def _name(requirement: str) -> str:
    """`hypothesis>=6.100` -> `hypothesis`"""
    end = next((place for place, sign in enumerate(requirement) if not (sign.isalnum() or sign in "-_.")), None)
    return requirement[:end]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
