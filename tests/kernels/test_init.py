"""The choice between kernel backends."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from moesaic import kernels
from moesaic.errors import KernelUnavailable, UnknownName
from moesaic.kernels import cpu


@pytest.mark.parametrize("name", kernels.BACKENDS)
def test_every_backend_has_its_name_and_functions(name: str) -> None:
    """A registered backend says its own name and offers both functions."""
    backend = kernels.BACKENDS[name]
    assert name == backend.NAME
    assert callable(backend.linear)
    assert callable(backend.experts)


def test_backend_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """By argument, and by environment variable; the argument wins."""
    assert kernels.select("cpu", "reference").NAME == "reference"
    monkeypatch.setenv("MOESAIC_KERNELS", "reference")
    assert kernels.select().NAME == "reference"
    monkeypatch.setenv("MOESAIC_KERNELS", "warp")
    assert kernels.select("cpu", "reference").NAME == "reference"


def test_unknown_backend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A typing error is answered with the nearest, also from the environment variable."""
    with pytest.raises(UnknownName, match="kernel backend 'referense'; did you mean 'reference'"):
        kernels.select("cpu", "referense")
    monkeypatch.setenv("MOESAIC_KERNELS", "warp")
    with pytest.raises(UnknownName, match="kernel backend 'warp'"):
        kernels.select()


def test_without_wishes_the_native_kernels_run_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Native where they are built, on CPU tensors; the reference on any other device and without the module."""
    monkeypatch.delenv("MOESAIC_KERNELS", raising=False)
    assert kernels.select("meta").NAME == "reference"
    assert ("cpu" if cpu.available()[0] else "reference") == kernels.select("cpu").NAME
    monkeypatch.setattr(cpu, "_native", None)
    assert kernels.select("cpu").NAME == "reference"


def test_the_choice_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads a measurement learns which kernels ran and why, also when none could."""
    monkeypatch.delenv("MOESAIC_KERNELS", raising=False)
    assert kernels.describe("meta")["why"] == "tensors are on meta, and the native kernels run on CPUs"
    assert kernels.describe("cpu", "reference") == {"backend": "reference", "why": "asked for by name"}
    monkeypatch.setenv("MOESAIC_KERNELS", "reference")
    assert kernels.describe() == {"backend": "reference", "why": "MOESAIC_KERNELS=reference"}
    monkeypatch.setenv("MOESAIC_KERNELS", "warp")
    assert kernels.describe()["backend"] is None
    assert "unknown kernel backend 'warp'" in kernels.describe()["why"]
    monkeypatch.delenv("MOESAIC_KERNELS")
    monkeypatch.setattr(cpu, "_native", None)
    monkeypatch.setattr(cpu, "_missing", "no such file")
    assert kernels.describe() == {"backend": "reference", "why": "no such file"}
    assert kernels.describe(prefer="cpu") == {"backend": None, "why": "kernel backend cpu: no such file"}


@pytest.mark.skipif(not cpu.available()[0], reason="the compiled module is not there")
def test_native_kernels_say_with_what_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instruction set, threads and precision belong to every figure that was measured with them."""
    monkeypatch.delenv("MOESAIC_KERNELS", raising=False)
    monkeypatch.setenv("MOESAIC_NUM_THREADS", "3")
    monkeypatch.setenv("MOESAIC_CPU_PRECISION", "exact")
    found = kernels.describe()
    assert found == {
        "backend": "cpu",
        "why": "native kernels",
        "instruction_set": cpu.isa(),
        "threads": 3,
        "precision": "exact",
    }
    monkeypatch.setenv("MOESAIC_NUM_THREADS", "none")
    assert kernels.describe()["backend"] is None
    with pytest.raises(KernelUnavailable, match="tensors are on cuda"):
        kernels.select("cuda", "cpu")


@pytest.mark.skipif(not cpu.available()[0], reason="the compiled module is not there")
def test_an_instruction_set_that_is_not_there_is_no_reason_to_run_something_else() -> None:
    """Whoever forces the instruction set wants it, not another one and not the reference."""
    program = "from moesaic.kernels import describe, select; print(describe()['why']); select()"
    environment = os.environ | {"MOESAIC_CPU_ISA": "sse9"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "unknown instruction set 'sse9'" in done.stdout
    assert "KernelUnavailable" in done.stderr
