"""Packed modules with a gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from moesaic import CompressOptions, compress, load
from moesaic.fit.differentiable import Weights, dequantized_bytes, differentiable, product
from moesaic.runtime.experts import PackedExperts
from tests.tiny import save_tiny


@pytest.mark.parametrize("budget", [0, 1 << 30])
def test_computes_what_the_kernels_compute(budget: int, model: PreTrainedModel, windows: Tensor) -> None:
    """The float way gives the reference kernels' outputs, weights kept or not; afterwards all is as before."""
    with torch.inference_mode():
        wanted = model(windows[:2]).logits
        with differentiable(model, budget):
            found = model(windows[:2]).logits
        after = model(windows[:2]).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(after, wanted)
    assert all("forward" not in vars(each) for each in model.modules())


@pytest.mark.parametrize("family", ["gpt_oss", "qwen2_moe"])
def test_other_families(family: str, tmp_path_factory: pytest.TempPathFactory, windows: Tensor) -> None:
    """Biases, other activations, shared experts and experts stored at 16 bits are computed too."""
    folder = tmp_path_factory.mktemp(family)
    options = CompressOptions(bits=9, levels=(2, 16), allocator="two_level", rule="max_var")
    model = load(compress(save_tiny(folder / "source", family), folder / "packed", options), dtype=torch.float32)
    assert any(16 in each.gate_up.layout.widths for each in model.modules() if isinstance(each, PackedExperts))
    with torch.no_grad():
        wanted = model(windows[:2]).logits
        with differentiable(model, 1 << 20):
            found = model(windows[:2]).logits
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_the_gradient_is_that_of_the_dequantized_product(generator: torch.Generator) -> None:
    """The product with weights made anew has the gradient of an ordinary linear layer."""
    x = torch.randn(5, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda each: product(each, lambda: weight), x)


@pytest.mark.parametrize("budget", [0, 1 << 30])
def test_the_gradient_goes_through_the_model(budget: int, model: PreTrainedModel, windows: Tensor) -> None:
    """The gradient of the outputs by a routing weight of the first layer agrees with a difference quotient."""
    experts = next(each for each in model.modules() if isinstance(each, PackedExperts))
    scale = torch.ones((), requires_grad=True)
    model.double()

    def loss(factor: Tensor) -> Tensor:
        hook = experts.register_forward_pre_hook(lambda _, args: (args[0], args[1], args[2] * factor))
        found = model(windows[:1]).logits.double().square().mean()
        hook.remove()
        return found

    with differentiable(model, budget):
        loss(scale).backward()
        with torch.no_grad():
            step = 1e-4
            slope = (loss(torch.tensor(1 + step)) - loss(torch.tensor(1 - step))) / (2 * step)
    assert scale.grad is not None
    assert float(scale.grad) == pytest.approx(float(slope), rel=2e-2)
    assert float(slope) != 0


def test_weights_are_kept_within_the_budget() -> None:
    """What fits is made once, what does not is made each time."""
    made = []

    def make() -> Tensor:
        made.append(1)
        return torch.zeros(10)

    weights = Weights(50)
    for _ in range(3):
        weights.get((0, 0, 0), make)
        weights.get((1, 0, 0), make)
    assert len(made) == 1 + 3
    assert weights.room == 10


def test_size_of_the_dequantized_model(model: PreTrainedModel) -> None:
    """Four bytes for every packed weight: 2 layers of 8 experts, attention, and the head."""
    experts = 2 * 8 * 3 * 64 * 96
    attention = 2 * (2 * 64 * 64 + 2 * 32 * 64)
    assert dequantized_bytes(model) == 4 * (experts + attention + 128 * 64)
