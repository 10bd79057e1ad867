"""The packed experts module."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig

from moesaic.families import MoeLayer, find_moe_layers
from moesaic.kernels import cpu
from moesaic.packing.names import entry_layouts
from moesaic.records import LayerBits
from moesaic.runtime.experts import PackedExperts, activation_of
from tests.kernels.made_up import entry_of
from tests.tiny import CONFIGS, build_tiny

BITS = LayerBits((16, 8, 8, 16, 8, 8, 8, 16), (8, 8, 16, 16, 8, 8, 8, 8))


def first_layer(family: str) -> tuple[torch.nn.Module, MoeLayer]:
    """A tiny float32 model's first experts module."""
    model = build_tiny(family).float().eval()
    layer = find_moe_layers(model, family)[0]
    return model.get_submodule(layer.name), layer


def packed_from(original: torch.nn.Module, layer: MoeLayer) -> PackedExperts:
    """The packed module, filled with the original's weights at 8 and 16 bits."""
    module = PackedExperts(layer, entry_layouts(layer, BITS, 32, False), original, torch.float32)
    first, second, state = [], [], {}
    for expert in range(layer.experts):
        if layer.family is not None:
            one = original.get_submodule(f"expert_{expert}")
            first.append([one.wi.weight.detach()])
            second.append([one.wo.weight.detach()])
            continue
        gate_up, down = original.gate_up_proj[expert].detach(), original.down_proj[expert].detach()
        gate_up, down = (gate_up.T, down.T) if layer.transposed else (gate_up, down)
        halves = gate_up.chunk(2) if layer.concatenated else (gate_up[::2], gate_up[1::2])
        first.append([half.contiguous() for half in halves])
        second.append([down.contiguous()])
    for name, widths, matrices in (("gate_up", BITS.gate_up, first), ("down", BITS.down, second)):
        entry, _ = entry_of(widths, matrices)
        state |= {f"{name}.b{width}": tensor for width, tensor in entry.tensors.items()}
    if layer.has_bias:
        first_bias = original.gate_up_proj_bias.detach()
        state |= {"gate_bias": first_bias[:, ::2], "up_bias": first_bias[:, 1::2]}
        state["down_bias"] = original.down_proj_bias.detach()
    module.load_state_dict(state, assign=True)
    return module


@pytest.mark.parametrize("family", [name for name in CONFIGS if name != "switch_transformers"])
def test_computes_what_the_original_computes(family: str) -> None:
    """At 8 and 16 bits the packed module is close to the family's own: activation, order and biases are right."""
    original, layer = first_layer(family)
    x = torch.randn(13, layer.hidden)
    index, weights = torch.randint(0, 8, (13, 2)), torch.rand(13, 2)
    with torch.inference_mode():
        wanted = original(x, index, weights)
        found = packed_from(original, layer)(x, index, weights)
    assert (found - wanted).norm() < 0.03 * wanted.norm()


def test_switch_takes_a_one_hot_mask() -> None:
    """Switch Transformers calls its experts with a mask; a token beyond the capacity has none and gets zeros."""
    original, layer = first_layer("switch_transformers")
    x, chosen = torch.randn(6, 64), torch.tensor([0, 3, 3, 7, 1, 5])
    mask = torch.nn.functional.one_hot(chosen, 8)[:, None]
    mask[4] = 0
    weights = torch.rand(6, 1)
    with torch.inference_mode():
        found = packed_from(original, layer)(x, mask, weights)
        wanted = torch.stack([weights[i] * original.get_submodule(f"expert_{e}")(x[i]) for i, e in enumerate(chosen)])
    assert not found[4].any()
    keep = torch.tensor([0, 1, 2, 3, 5])
    assert (found[keep] - wanted[keep]).norm() < 0.03 * wanted[keep].norm()


def test_views_are_made_again_when_tensors_move() -> None:
    """The layer handed to kernels is kept, and made anew after the module's tensors were replaced."""
    original, layer = first_layer("mixtral")
    module = packed_from(original, layer)
    first = module.packed_layer()
    assert module.packed_layer() is first
    module.gate_up.b8 = module.gate_up.b8.clone()
    assert module.packed_layer() is not first
    assert module.packed_layer().gate_up.tensors[8].data_ptr() == module.gate_up.b8.data_ptr()


@pytest.mark.skipif(not cpu.available()[0], reason="the compiled module is not there")
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_compiles_into_one_graph(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile takes the module without a break, also with biases and width 16, before any other call."""
    monkeypatch.delenv("MOESAIC_KERNELS", raising=False)
    original, layer = first_layer(family)
    module = packed_from(original, layer)
    x, index, weights = torch.randn(5, layer.hidden), torch.randint(0, 8, (5, 2)), torch.rand(5, 2)
    compiled: Any = torch.compile(module, backend="aot_eager", fullgraph=True)
    with torch.inference_mode():
        found = compiled(x, index, weights)
        assert torch.equal(found, module(x, index, weights))
        module.gate_up.b8 = module.gate_up.b8.clone().fill_(0)
        assert torch.equal(compiled(x, index, weights), module(x, index, weights))
        assert not torch.equal(compiled(x, index, weights), found)


def test_holds_no_part_of_the_original() -> None:
    """Only packed tensors are in the state: the original's weights are not kept alive as a submodule."""
    original, layer = first_layer("mixtral")
    module = packed_from(original, layer)
    assert set(module.state_dict()) == {"gate_up.b8", "gate_up.b16", "down.b8", "down.b16"}
    assert not list(module.parameters())
    assert "bits=16 8 8" in repr(module)


@pytest.mark.parametrize(
    ("family", "kind"),
    [("mixtral", "silu"), ("olmoe", "silu"), ("gpt_oss", "swiglu_clamped"), ("switch_transformers", "relu")],
)
def test_activation_kinds_that_native_code_may_do(family: str, kind: str) -> None:
    """The activation is recognised, so that native kernels need not call back into Python."""
    original, layer = first_layer(family)
    activation = activation_of(layer, original)
    assert activation.kind == kind
    assert (activation.limit > 0) == (family == "gpt_oss")


def test_unknown_activations_are_left_to_python() -> None:
    """An activation without a native form is `other`, and still computed."""
    config = AutoConfig.for_model("mixtral", **CONFIGS["mixtral"], hidden_act="mish")
    assert config.hidden_act == "mish"
    model = build_tiny("mixtral", hidden_act="mish").float()
    layer = find_moe_layers(model, "mixtral")[0]
    activation = activation_of(layer, model.get_submodule(layer.name))
    assert activation.kind == "other"
    gate, up = torch.randn(2, 96), torch.randn(2, 96)
    wanted = torch.nn.functional.mish(gate) * up
    torch.testing.assert_close(activation.function(torch.cat([gate, up], dim=1)), wanted)
