"""The architecture without its weights: transformers' own model on the meta device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedConfig, PreTrainedModel

from moesaic.errors import NotACheckpoint, UnsupportedModel

SMALLEST_LINEAR = 32  # linear layers with fewer inputs or outputs are gates of some kind, and cost nothing to keep


def load_config(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Read `config.json`.

    Raises:
        NotACheckpoint: no readable config.json.
        UnsupportedModel: a model type that this transformers does not know, or an already quantized model.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise NotACheckpoint(f"{folder}: no config.json; give a Hugging Face model folder or a hub id")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (ValueError, OSError, KeyError, TypeError, AttributeError, StrictDataclassError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnsupportedModel(f"{path}: transformers {transformers.__version__} cannot read it: {reason}") from None
    return config


def refuse_quantized(config: PreTrainedConfig, folder: Path) -> None:
    """Refuse a source whose weights are quantized already.

    Raises:
        UnsupportedModel: names the method.
    """
    quantization: Any = getattr(config, "quantization_config", None)
    if quantization:
        method = quantization.get("quant_method", "?") if isinstance(quantization, dict) else quantization.quant_method
        raise UnsupportedModel(
            f"{folder}: the weights are already quantized ({method}); give the bfloat16, float16 or float32 checkpoint"
        )


def build_skeleton(
    config: PreTrainedConfig, *, trust_remote_code: bool = False, real_buffers: bool = False
) -> PreTrainedModel:
    """The model of that configuration on the meta device: every module and shape, no memory.

    Args:
        config: of the model.
        trust_remote_code: as transformers' flag of that name.
        real_buffers: make the buffers (rotary tables and the like, which no file holds), so that the model can run
            once its parameters are put in.

    Raises:
        UnsupportedModel: no model class for it.
    """
    names = getattr(config, "architectures", None) or []
    model_class = next((getattr(transformers, name) for name in names if hasattr(transformers, name)), None)
    try:
        with init_empty_weights(include_buffers=False) if real_buffers else torch.device("meta"):
            if model_class is not None:
                model: PreTrainedModel = model_class(config)
            else:
                auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
                model = auto.from_config(config, trust_remote_code=trust_remote_code)
    except (ValueError, TypeError, AttributeError, ZeroDivisionError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnsupportedModel(f"model type {config.model_type!r}: no language model can be built: {reason}") from None
    return model


def linear_names(model: PreTrainedModel, layer_names: list[str], routers: list[str]) -> list[str]:
    """The linear layers that may be packed: those of the decoder (and encoder) stacks that hold expert layers.

    Routers, very small layers and the output head stay out (`head_name` has that).

    Args:
        model: the skeleton.
        layer_names: paths of the experts modules.
        routers: names of the routers' weights.
    """
    stacks = {_stack(name) for name in layer_names}
    kept = {router.rpartition(".")[0] for router in routers}
    head = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear
        and module is not head
        and name not in kept
        and not any(name.startswith(layer + ".") for layer in layer_names)
        and any(name.startswith(stack) for stack in stacks)
        and min(module.weight.shape) >= SMALLEST_LINEAR
    ]


def head_name(model: PreTrainedModel) -> str | None:
    """The output head, if it may be packed: a linear layer of its own, which shares its weight with nobody.

    Args:
        model: the skeleton.
    """
    head = model.get_output_embeddings()
    name = next((name for name, module in model.named_modules() if module is head), "")
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    if type(head) is not nn.Linear or not name or f"{name}.weight" in {*tied, *tied.values()}:
        return None
    return name if min(head.weight.shape) >= SMALLEST_LINEAR else None


def _stack(name: str) -> str:
    """`model.layers.3.mlp.experts` -> `model.layers.`: the module list that the layer is in."""
    parts = name.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0]]) + "." if numbers else ""
