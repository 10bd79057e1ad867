"""Fixtures that several test files share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.tiny import save_tiny

# an example may take long where the machine is busy; what is slow is a matter of benchmarks, not of tests
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny_checkpoint(model_type)`: the folder of a tiny random checkpoint. Made once a session; not to be changed."""
    made: dict[str, Path] = {}

    def make(model_type: str) -> Path:
        if model_type not in made:
            made[model_type] = save_tiny(tmp_path_factory.mktemp("tiny") / model_type, model_type)
        return made[model_type]

    return make


@pytest.fixture
def own_checkpoint(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """`own_checkpoint(model_type)`: a copy of a tiny checkpoint that the test may damage."""

    def make(model_type: str) -> Path:
        return Path(shutil.copytree(tiny_checkpoint(model_type), tmp_path / f"own-{model_type}"))

    return make


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded source of random numbers."""
    return torch.Generator().manual_seed(7)
