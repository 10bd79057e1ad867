"""Tiny packed models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import moesaic


@pytest.fixture(scope="package")
def packed(tiny_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Opens a tiny packed model."""
    folder = tmp_path_factory.mktemp("packed")

    def make(family: str, dtype: torch.dtype = torch.bfloat16, **options: Any) -> PreTrainedModel:
        out = folder / "-".join([family, *map(str, options.values())])
        if not out.exists():
            given = {"bits": 2.5, "levels": (2, 3), **options}
            moesaic.compress(tiny_checkpoint(family), out, moesaic.CompressOptions(**given))
        return moesaic.load(out, dtype=dtype)

    return make
