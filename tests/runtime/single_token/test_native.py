"""When the native way is open."""

from __future__ import annotations

import pytest
import torch
from transformers import MixtralConfig

from moesaic.kernels import cpu
from moesaic.runtime.single_token import norm, use
from moesaic.runtime.single_token.native import is_chosen, is_open, setting
from tests.tiny import build_tiny

X = torch.ones(1, 8)


def test_half_precision_on_a_cpu_is_what_it_takes() -> None:
    """bfloat16 and float16 pass; float32, float64 and other devices do not."""
    assert is_open(X.bfloat16())
    assert is_open(X.half())
    assert not is_open(X)
    assert not is_open(X.double())
    assert not is_open(X.bfloat16().to("meta"))


def test_gradients_close_it() -> None:
    """What is to be differentiated is torch's, unless nobody asks."""
    x = X.bfloat16().requires_grad_()
    assert not is_open(x)
    with torch.no_grad():
        assert is_open(x)


def test_compilation_closes_it() -> None:
    """A compiler gets operations that it knows."""
    seen = []

    def ask(x: torch.Tensor) -> torch.Tensor:
        seen.append(is_open(x))
        return x + 1

    torch.compile(ask, backend="eager")(X.bfloat16())
    assert seen == [False]


@pytest.mark.skipif(not cpu.is_ready()[0], reason="the native module is not built")
def test_the_reference_backend_leaves_models_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for the reference kernels gets transformers' own modules as well."""
    model = build_tiny("mixtral")
    assert is_chosen(model)
    monkeypatch.setenv("MOESAIC_KERNELS", "reference")
    assert not is_chosen(model)
    use(model)
    assert not any(isinstance(module, norm.NativeNorm) for module in model.modules())


def test_settings_of_any_configuration() -> None:
    """Names that a configuration has, has under another name, or does not have at all."""
    config = MixtralConfig(sliding_window=None, num_hidden_layers=3)
    assert setting(config, "num_hidden_layers") == 3
    assert setting(config, "num_experts") == config.num_local_experts
    assert setting(config, "sliding_window") is None
    assert setting(config, "nothing_of_the_kind") is None
