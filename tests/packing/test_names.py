"""Names and shapes of packed tensors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from moesaic.families import MoeLayer
from moesaic.families.switch_transformers import SWITCH_TRANSFORMERS
from moesaic.packing import names
from moesaic.records import LayerBits

LAYER = MoeLayer(
    name="model.layers.3.mlp.experts",
    experts=3,
    hidden=64,
    intermediate=32,
    has_gate=True,
    has_bias=False,
    transposed=False,
    concatenated=True,
    router="model.layers.3.mlp.gate.weight",
)
MIXED = LayerBits((2, 16, 2), (3, 3, 3))


def specs(layer: MoeLayer, bits: LayerBits, bias: torch.dtype | None = None) -> dict[str, tuple[torch.dtype, tuple]]:
    """The layer's tensors by name."""
    found = names.layer_specs(layer, names.entry_layouts(layer, bits, 64, False), torch.bfloat16, bias)
    return {spec.name: (spec.dtype, spec.shape) for spec in found}


@pytest.mark.parametrize("symmetric", [False, True])
def test_bytes_of_an_expert_add_up(symmetric: bool) -> None:
    """An entry's tensors have the bytes of its experts, whatever the mixture of widths."""
    for entry, layout in names.entry_layouts(LAYER, MIXED, 64, symmetric).items():
        total = sum(torch.Size(shape).numel() * (2 if width == 16 else 1) for width, shape in layout.shapes().items())
        each = [
            names.entry_bytes(LAYER, entry, width, group_size=64, symmetric=symmetric, dtype=torch.bfloat16)
            for width in MIXED.entry(entry)
        ]
        assert sum(each) == total


@pytest.mark.parametrize(
    ("bits", "packed"),
    [(MIXED, True), (LayerBits((16,) * 3, (16,) * 3), False), (LayerBits((16,) * 3, (16, 16, 8)), True)],
)
def test_a_layer_is_packed_as_soon_as_one_entry_is(bits: LayerBits, packed: bool) -> None:
    """Only a layer in which every width is 16 stays an ordinary module."""
    assert names.is_packed(bits) is packed


def test_tensors_of_a_mixed_layer_by_hand() -> None:
    """Names, dtypes and shapes of the page, for widths 2, 16, 2 and 3."""
    found = specs(LAYER, MIXED)
    prefix = LAYER.name
    gate = 2 * (64 + 64 + 2 * 2 * 64 * 2)  # row scales, parameters, codes of 2 blocks and 1 group, 2 matrices
    down = 128 + 128 + 4 * 2 * 64 * 3
    assert found == {
        f"{prefix}.gate_up.b2": (torch.uint8, (2, gate)),
        f"{prefix}.gate_up.b16": (torch.bfloat16, (1, 64, 64)),
        f"{prefix}.down.b3": (torch.uint8, (3, down)),
        f"{prefix}.gate_up_proj": (torch.bool, (1,)),
    }


def test_biases_of_all_experts() -> None:
    """A family with biases has one tensor a role, in the biases' dtype."""
    found = specs(replace(LAYER, has_bias=True), MIXED, torch.float32)
    assert found[f"{LAYER.name}.gate_bias"] == (torch.float32, (3, 32))
    assert found[f"{LAYER.name}.up_bias"] == (torch.float32, (3, 32))
    assert found[f"{LAYER.name}.down_bias"] == (torch.float32, (3, 64))


def test_experts_without_a_gate() -> None:
    """Switch Transformers: one first matrix, and the marker under the first expert's name."""
    layer = replace(LAYER, has_gate=False, family=SWITCH_TRANSFORMERS)
    found = specs(layer, LayerBits((8,) * 3, (16,) * 3))
    assert found[f"{LAYER.name}.gate_up.b8"][1] == (3, 64 + 64 + 2 * 2 * 64 * 8)
    assert found[f"{LAYER.name}.down.b16"] == (torch.bfloat16, (3, 64, 32))
    assert f"{LAYER.name}.expert_0.wi.weight" in found


def test_blob_sizes_keep_the_alignment() -> None:
    """Every uint8 tensor is a multiple of 64 bytes, so that those after it stay aligned."""
    for bits in (MIXED, LayerBits((1, 2, 3), (4, 8, 1))):
        for kind, shape in specs(LAYER, bits).values():
            assert kind != torch.uint8 or shape[0] * shape[1] % 64 == 0


def test_linear_and_bias_names() -> None:
    """Names that the format page promises."""
    assert names.linear_tensor("model.layers.0.self_attn.q_proj") == "model.layers.0.self_attn.q_proj.packed"
    assert names.bias_tensor(LAYER, "down") == "model.layers.3.mlp.experts.down_bias"
    assert names.entry_tensor(LAYER, "down", 4) == "model.layers.3.mlp.experts.down.b4"
    assert names.marker_tensor(LAYER) == "model.layers.3.mlp.experts.gate_up_proj"
