"""Switch Transformers: the one family file so far."""

from __future__ import annotations

from transformers import AutoConfig

from moesaic.families import find_moe_layers
from moesaic.families.skeleton import build_skeleton
from moesaic.families.switch_transformers import SWITCH_TRANSFORMERS
from tests.tiny import CONFIGS


def test_the_constant_fits_the_architecture() -> None:
    """Every name in the constant exists in transformers' module: sparse layers of encoder and decoder are found."""
    model = build_skeleton(AutoConfig.for_model("switch_transformers", **CONFIGS["switch_transformers"]))
    layers = find_moe_layers(model, "switch_transformers")
    assert {layer.name.split(".")[0] for layer in layers} == {"encoder", "decoder"}
    for layer in layers:
        module = model.get_submodule(layer.name)
        assert type(module).__name__ == SWITCH_TRANSFORMERS.experts_class
        expert = module.get_submodule(SWITCH_TRANSFORMERS.expert.format(0))
        assert expert.get_parameter(SWITCH_TRANSFORMERS.up).shape == (96, 64)
        assert expert.get_parameter(SWITCH_TRANSFORMERS.down).shape == (64, 96)
        assert hasattr(expert, SWITCH_TRANSFORMERS.activation)
        assert model.get_parameter(layer.router).shape == (8, 64)
