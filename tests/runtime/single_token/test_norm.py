"""RMSNorms that are native, against transformers' own."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

from moesaic.kernels import cpu
from moesaic.runtime.single_token.native import MOST_TOKENS
from moesaic.runtime.single_token.norm import NativeNorm, epsilon_of, use

CLASSES = {"mixtral": "Mixtral", "gpt_oss": "GptOss", "qwen3_next": "Qwen3Next", "deepseek_v3": "DeepseekV3"}

pytestmark = pytest.mark.skipif(not cpu.is_ready()[0], reason="the native module is not built")


def norm_of(package: str, columns: int) -> Any:
    """A norm of that family with random weights, native."""
    module = importlib.import_module(f"transformers.models.{package}.modeling_{package}")
    made = getattr(module, f"{CLASSES[package]}RMSNorm")(columns, eps=1e-4).bfloat16().requires_grad_(False)
    made.weight.add_(torch.randn(columns, generator=torch.Generator().manual_seed(1)))
    use(torch.nn.Sequential(made))  # type: ignore[arg-type]
    assert isinstance(made, NativeNorm)
    return made


@pytest.mark.parametrize("package", CLASSES)
@pytest.mark.parametrize("shape", [(1, 1, 96), (2, 2, 96), (1, 1, 8, 96), (3, 96)])
@pytest.mark.parametrize("size", [1.0, 1e-2])
def test_a_norm_is_the_familys_own(package: str, shape: tuple[int, ...], size: float) -> None:
    """Weights as they are or what is left of 1, epsilon where it counts: within the last place of bfloat16."""
    norm = norm_of(package, 96)
    assert epsilon_of(norm) == 1e-4
    x = (size * torch.randn(shape, generator=torch.Generator().manual_seed(2))).bfloat16()
    theirs = type(norm).__mro__[2].forward(norm, x)
    ours = norm(x)
    assert ours.dtype == theirs.dtype
    assert ((ours - theirs).abs() <= 2**-7 * theirs.abs()).all()


def test_many_tokens_and_other_dtypes_are_torchs() -> None:
    """The same bits as without native code."""
    norm = norm_of("mixtral", 32)
    own = type(norm).__mro__[2].forward
    many = torch.randn(1, MOST_TOKENS + 1, 32).bfloat16()
    assert torch.equal(norm(many), own(norm, many))
    norm.float()
    one = torch.randn(1, 1, 32)
    assert torch.equal(norm(one), own(norm, one))
