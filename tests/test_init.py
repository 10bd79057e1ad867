"""The package's front door: public names, loaded only when asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

import moesaic


@pytest.mark.parametrize("name", moesaic.__all__)
def test_every_public_name_exists(name: str) -> None:
    """What `__all__` promises can be had."""
    assert getattr(moesaic, name) is not None
    assert name in dir(moesaic)


def test_unknown_attribute_is_an_attribute_error() -> None:
    """A typing error behaves as with any module."""
    with pytest.raises(AttributeError, match="no attribute 'compres'"):
        _ = moesaic.compres  # type: ignore[attr-defined]


def test_import_is_light() -> None:
    """`import moesaic` loads neither torch nor transformers, so that `--help` is instant."""
    code = "import sys, moesaic; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
