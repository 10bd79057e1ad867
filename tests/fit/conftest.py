"""Models that the tests of fitting share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from moesaic import CompressOptions, compress, load
from tests.talking import talking_copy
from tests.tiny import save_tiny


@pytest.fixture(autouse=True)
def exact_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference kernels: they have gradients, and round no activations."""
    monkeypatch.setenv("MOESAIC_KERNELS", "reference")


@pytest.fixture(scope="package")
def source(tiny_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mixtral with a tokenizer; not to be changed."""
    return talking_copy(tiny_checkpoint("mixtral"), tmp_path_factory.mktemp("source") / "mixtral")


@pytest.fixture(scope="package")
def packed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, packed at 3 bits; not to be changed."""
    return compress(source, tmp_path_factory.mktemp("packed") / "mixtral", CompressOptions(bits=3))


@pytest.fixture
def model(packed: Path) -> PreTrainedModel:
    """The packed model in float32."""
    return load(packed, dtype=torch.float32, pruning=False).requires_grad_(False)


@pytest.fixture(scope="package")
def top_four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny packed model with four experts a token, a shared one, and unnormalised weights; not to be changed."""
    folder = tmp_path_factory.mktemp("four")
    checkpoint = save_tiny(folder / "source", "qwen2_moe", num_experts_per_tok=4, norm_topk_prob=False)
    return compress(checkpoint, folder / "packed", CompressOptions(bits=3))


@pytest.fixture
def windows() -> Tensor:
    """Random tokens, `[16, 24]`."""
    return torch.randint(2, 100, (16, 24), generator=torch.Generator().manual_seed(1))
