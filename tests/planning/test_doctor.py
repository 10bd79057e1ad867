"""What the doctor finds."""

from __future__ import annotations

import importlib
import platform

import pytest
import torch

from moesaic.kernels import select
from moesaic.planning.doctor import diagnose, kernels


def test_everything_is_looked_at() -> None:
    """Versions, processor, kernels, memory, disk and optional parts are all there, each in a known state."""
    found = {each.name: each for each in diagnose()}
    for name in ("Python", "torch", "transformers", "processor", "threads", "kernels", "memory", "disk here"):
        assert name in found
    assert platform.python_version() in found["Python"].value
    assert found["torch"].value == importlib.metadata.version("torch")
    assert f"torch uses {torch.get_num_threads()}" in found["threads"].value
    assert {each.state for each in found.values()} <= {"ok", "better", "missing"}
    assert all(each.remedy for each in found.values() if each.state != "ok")


def test_the_kernels_that_run_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend is the one that `select` gives; one that is forced but wrong is missing, with the reason."""
    assert kernels().value.startswith(select("cpu").NAME)
    monkeypatch.setenv("MOESAIC_KERNELS", "reference")
    assert kernels().value.startswith("reference")
    assert kernels().state == "better"
    monkeypatch.setenv("MOESAIC_KERNELS", "referense")
    found = kernels()
    assert found.state == "missing"
    assert "did you mean 'reference'" in found.value
