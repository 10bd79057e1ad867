"""Finding the expert layers of an architecture."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoConfig

from moesaic.errors import UnsupportedModel
from moesaic.families import FAMILIES, find_moe_layers
from moesaic.families.skeleton import build_skeleton
from tests.tiny import CONFIGS, EXPERTS

WANTED = {  # experts module of the last layer, has_gate, has_bias, transposed, concatenated
    "mixtral": ("model.layers.1.mlp.experts", True, False, False, True),
    "gpt_oss": ("model.layers.1.mlp.experts", True, True, True, False),
    "granitemoe": ("model.layers.1.block_sparse_moe.experts", True, False, False, True),
    "switch_transformers": ("decoder.block.1.layer.2.mlp.experts", False, False, False, True),
}


@pytest.mark.parametrize("family", CONFIGS)
def test_layers_of_every_family(family: str) -> None:
    """The skeleton of each architecture gives its expert layers, with one router each and no memory taken."""
    config = AutoConfig.for_model(family, **CONFIGS[family])
    model = build_skeleton(config)
    layers = find_moe_layers(model, family)
    state = model.state_dict()
    for layer in layers:
        assert state[layer.router].shape == (layer.experts, layer.hidden)
        assert layer.experts == EXPERTS
        assert set(layer.parameters()) <= set(state)
        weights = sum(state[name].numel() for name in layer.parameters() if not name.endswith("bias"))
        assert layer.experts * layer.shape.expert_weights == weights
    if family in WANTED:
        last = layers[-1]
        flags = (last.has_gate, last.has_bias, last.transposed, last.concatenated)
        assert (last.name, *flags) == WANTED[family]


def test_matrices_of_a_layer() -> None:
    """Roles and shapes in stored order."""
    model = build_skeleton(AutoConfig.for_model("mixtral", **CONFIGS["mixtral"]))
    layer = find_moe_layers(model, "mixtral")[0]
    assert layer.matrices == (("gate", 96, 64), ("up", 96, 64), ("down", 64, 96))


def test_registered_families_name_themselves() -> None:
    """The registry's key is the family's own model type."""
    assert all(name == family.model_type for name, family in FAMILIES.items())


def test_no_experts_at_all() -> None:
    """A dense model is told that there is nothing to compress."""
    with pytest.raises(UnsupportedModel, match="'llama' has no Mixture-of-Experts layers"):
        find_moe_layers(nn.Linear(2, 2), "llama")


class OddExperts(nn.Module):
    """Experts outside transformers' interface."""


class Fused(nn.Module):
    """Experts with the interface's flags and the parameters that the test wants."""

    def __init__(self, *, norm: bool = False, parameters: bool = True) -> None:
        super().__init__()
        self.has_gate, self.has_bias, self.is_transposed, self.is_concatenated = True, False, False, True
        self.has_post_expert_norm = norm
        if parameters:
            self.gate_up_proj = nn.Parameter(torch.empty(4, 16, 8, device="meta"))
            self.down_proj = nn.Parameter(torch.empty(4, 8, 8, device="meta"))


class Block(nn.Module):
    """A layer with experts and so many routers."""

    def __init__(self, experts: nn.Module, routers: int) -> None:
        super().__init__()
        self.experts = experts
        for i in range(routers):
            self.register_parameter(f"router{i}", nn.Parameter(torch.empty(4, 8, device="meta")))


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (Block(OddExperts(), 1), r"OddExperts.*fused-experts interface; it needs a family file"),
        (Block(Fused(norm=True), 1), "norm after each expert"),
        (Block(Fused(parameters=False), 1), "lacks the fused 3-D parameters gate_up_proj and down_proj"),
        (Block(Fused(), 0), r"one router weight \[4, 8\] beside layer.experts, found none"),
        (Block(Fused(), 2), r"found \['layer.router0', 'layer.router1'\]"),
    ],
)
def test_what_is_missing_is_said(block: nn.Module, message: str) -> None:
    """An architecture that cannot be handled is refused by name, with the reason."""
    model = nn.Module()
    model.layer = block
    with pytest.raises(UnsupportedModel, match=message) as caught:
        find_moe_layers(model, "martian")
    assert "'martian'" in str(caught.value)
