"""The choice between kernel backends."""

from __future__ import annotations

import pytest

from moesaic import kernels
from moesaic.errors import UnknownName


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


def test_without_wishes_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Something always runs, on the CPU and on any other device."""
    monkeypatch.delenv("MOESAIC_KERNELS", raising=False)
    assert kernels.select("cpu").NAME in kernels.BACKENDS
    assert kernels.select("meta").NAME == "reference"
