"""What is recognised of transformers' modules, by what they do and not by their names."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.mixtral.modeling_mixtral import MixtralRMSNorm

from moesaic.runtime.single_token import attention, norm, router
from moesaic.runtime.single_token.known import adopt, fingerprint

ATTENTION = {
    "mixtral": "Mixtral", "minimax": "MiniMax", "qwen2_moe": "Qwen2Moe", "phimoe": "Phimoe", "granitemoe": "GraniteMoe",
    "qwen3_moe": "Qwen3Moe", "dots1": "Dots1", "glm4_moe": "Glm4Moe", "olmoe": "Olmoe", "flex_olmo": "FlexOlmo",
    "minimax_m2": "MiniMaxM2", "qwen3_vl_moe": "Qwen3VLMoeText",
}  # fmt: skip
NORMS = {
    "mixtral": "Mixtral", "qwen2_moe": "Qwen2Moe", "qwen3_moe": "Qwen3Moe", "olmoe": "Olmoe",
    "deepseek_v2": "DeepseekV2", "deepseek_v3": "DeepseekV3", "granitemoe": "GraniteMoe", "gpt_oss": "GptOss",
    "ernie4_5_moe": "Ernie4_5_Moe", "glm4_moe": "Glm4Moe", "qwen3_next": "Qwen3Next",
}  # fmt: skip
ROUTERS = {
    "mixtral": "MixtralTopKRouter", "qwen2_moe": "Qwen2MoeTopKRouter", "qwen3_moe": "Qwen3MoeTopKRouter",
    "olmoe": "OlmoeTopKRouter", "deepseek_v3": "DeepseekV3TopkRouter", "granitemoe": "GraniteMoeTopKRouter",
    "gpt_oss": "GptOssTopKRouter", "glm4_moe": "Glm4MoeTopkRouter", "minimax_m2": "MiniMaxM2TopKRouter",
    "qwen3_next": "Qwen3NextTopKRouter", "dots1": "Dots1TopkRouter", "qwen3_vl_moe": "Qwen3VLMoeTextTopKRouter",
}  # fmt: skip


def class_of(package: str, name: str) -> Any:
    """A class of transformers."""
    return getattr(importlib.import_module(f"transformers.models.{package}.modeling_{package}"), name)


@pytest.mark.parametrize("package", ATTENTION)
def test_attention_of_the_large_families_is_known(package: str) -> None:
    """Where this fails transformers has changed what the module computes: read it, and write the table anew."""
    assert fingerprint(class_of(package, f"{ATTENTION[package]}Attention")) in attention.KNOWN


@pytest.mark.parametrize("package", NORMS)
def test_norms_of_the_large_families_are_known(package: str) -> None:
    """The same for norms."""
    assert fingerprint(class_of(package, f"{NORMS[package]}RMSNorm")) in norm.KNOWN


@pytest.mark.parametrize("package", ROUTERS)
def test_routers_of_the_large_families_are_known(package: str) -> None:
    """The same for routers."""
    assert fingerprint(class_of(package, ROUTERS[package])) in router.KNOWN


def test_the_tables_hold_nothing_that_nobody_has() -> None:
    """Every fingerprint is that of a class which the tests above name."""
    names = [(package, f"{name}Attention") for package, name in ATTENTION.items()]
    names += [(package, f"{name}RMSNorm") for package, name in NORMS.items()] + list(ROUTERS.items())
    found = {fingerprint(class_of(*each)) for each in names}
    assert {*attention.KNOWN, *norm.KNOWN, *router.KNOWN} == found


class AnotherNorm(nn.Module):
    """Mixtral's norm, but for one number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))
        self.variance_epsilon = 1e-6

    def forward(self, hidden_states: Tensor) -> Tensor:
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(4).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        return self.weight * hidden_states.to(input_dtype)


class CopiedNorm(nn.Module):
    """The same as Mixtral's, with other comments and types."""

    def forward(self, hidden_states):  # type: ignore[no-untyped-def]
        """Says something else."""
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)  # a comment
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        return self.weight * hidden_states.to(input_dtype)


def helper(x: Tensor) -> Tensor:
    return x + 1


class Calls(nn.Module):
    """Calls the helper, which is part of what it does."""

    def forward(self, x: Tensor) -> Tensor:
        return helper(self.own(x))

    def own(self, x: Tensor) -> Tensor:
        return x * 2


class CallsAnother(Calls):
    """The same but for a method that it calls."""

    def own(self, x: Tensor) -> Tensor:
        return x * 3


def test_what_a_module_does_is_what_counts() -> None:
    """Another formula is another module; another name, comment or type is not; what it calls belongs to it."""
    assert fingerprint(CopiedNorm) == fingerprint(MixtralRMSNorm)
    assert fingerprint(AnotherNorm) != fingerprint(MixtralRMSNorm)
    assert fingerprint(Calls) != fingerprint(CallsAnother)


class Short(nn.Module):
    """Its forward is an expression."""

    forward = lambda self, x: x  # type: ignore[assignment] # noqa: E731


def test_a_class_without_source_is_not_known() -> None:
    """Made at run time, or no ordinary function: an empty fingerprint, which is in no table."""
    assert not fingerprint(Short)
    names: dict[str, Any] = {"nn": nn}
    exec("class Made(nn.Module):\n    def forward(self, x):\n        return x", names)
    assert not fingerprint(names["Made"])
    assert "" not in {*attention.KNOWN, *norm.KNOWN, *router.KNOWN}


def test_adopting_twice_changes_nothing() -> None:
    """A module keeps its name and what it was, and is not wrapped again."""
    model: Any = nn.Sequential(MixtralRMSNorm(8), nn.Linear(8, 8))
    adopt(model, norm.NativeNorm, norm.KNOWN)
    kind = type(model[0])
    adopt(model, norm.NativeNorm, norm.KNOWN)
    assert type(model[0]) is kind
    assert isinstance(model[0], MixtralRMSNorm)
    assert kind.__name__ == "MixtralRMSNorm"
    assert type(model[1]) is nn.Linear
