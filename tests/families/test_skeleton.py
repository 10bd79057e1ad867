"""The architecture without its weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from moesaic.errors import NotACheckpoint, UnsupportedModel
from moesaic.families.skeleton import build_skeleton, linear_names, load_config, refuse_quantized
from tests.tiny import CONFIGS


@pytest.mark.parametrize("family", CONFIGS)
def test_skeleton_is_on_the_meta_device(family: str) -> None:
    """Building the model takes no memory and the right class."""
    model = build_skeleton(AutoConfig.for_model(family, **CONFIGS[family]))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert model.can_generate()


def test_default_device_is_put_back() -> None:
    """After building, tensors are made on the CPU again."""
    build_skeleton(AutoConfig.for_model("mixtral", **CONFIGS["mixtral"]))
    assert torch.ones(1).device.type == "cpu"


def test_named_architecture_wins() -> None:
    """`architectures` in the configuration names the class."""
    config = AutoConfig.for_model("mixtral", **CONFIGS["mixtral"], architectures=["MixtralForSequenceClassification"])
    assert type(build_skeleton(config)).__name__ == "MixtralForSequenceClassification"


def test_impossible_configuration_is_refused() -> None:
    """A configuration that no model can be built from is one line with the reason."""
    config = AutoConfig.for_model("mixtral", **{**CONFIGS["mixtral"], "num_attention_heads": 0})
    with pytest.raises(UnsupportedModel, match="'mixtral': no language model can be built"):
        build_skeleton(config)


def test_config_is_read(tmp_path: Path) -> None:
    """A sound configuration comes back; a missing or unknown one names the file."""
    with pytest.raises(NotACheckpoint, match=r"no config.json"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mixtral", "num_local_experts": 5}))
    assert load_config(tmp_path).num_local_experts == 5
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "martian_moe"}))
    with pytest.raises(UnsupportedModel, match=r"config.json: transformers .*martian_moe"):
        load_config(tmp_path)


@pytest.mark.parametrize("method", ["fp8", "gptq", "moesaic"])
def test_quantized_sources_are_refused(method: str, tmp_path: Path) -> None:
    """Weights are quantized once: a second time is refused with the method's name."""
    config = AutoConfig.for_model("mixtral")
    refuse_quantized(config, tmp_path)
    config.quantization_config = {"quant_method": method}
    with pytest.raises(UnsupportedModel, match=rf"already quantized \({method}\)"):
        refuse_quantized(config, tmp_path)


def test_linear_names_leave_routers_heads_and_small_layers_out() -> None:
    """Attention and shared experts may be packed; routers, the head and gates of one output may not."""
    model = build_skeleton(AutoConfig.for_model("qwen2_moe", **CONFIGS["qwen2_moe"]))
    routers = [f"model.layers.{i}.mlp.gate.weight" for i in range(2)]
    names = linear_names(model, [f"model.layers.{i}.mlp.experts" for i in range(2)], routers)
    ends = {name.removeprefix("model.layers.0.") for name in names if ".0." in name}
    projections = {f"self_attn.{part}_proj" for part in "qkvo"}
    assert ends == projections | {f"mlp.shared_expert.{part}_proj" for part in ("gate", "up", "down")}
    assert "lm_head" not in names
