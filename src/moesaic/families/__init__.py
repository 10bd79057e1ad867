"""What transformers does not tell us about an architecture, and how to find the expert layers of one.

Most MoE architectures of transformers use its fused-experts interface and need no entry here: their layers are found
by the attributes that the interface sets. Those that differ are one constant in one file, and one line in `FAMILIES`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from moesaic.errors import UnsupportedModel
from moesaic.families._spec import ModuleListFamily as ModuleListFamily
from moesaic.families._spec import MoeLayer as MoeLayer
from moesaic.families.switch_transformers import SWITCH_TRANSFORMERS

FAMILIES: dict[str, ModuleListFamily] = {
    SWITCH_TRANSFORMERS.model_type: SWITCH_TRANSFORMERS,
}

_FLAGS = ("has_gate", "has_bias", "is_transposed", "is_concatenated", "has_post_expert_norm")


def find_moe_layers(model: nn.Module, model_type: str) -> list[MoeLayer]:
    """All routed-expert layers of a model, in the order of its modules.

    Args:
        model: the skeleton, on the meta device.
        model_type: of its configuration.

    Raises:
        UnsupportedModel: there are none, or a layer of a form that moesaic cannot handle; says what is missing.
    """
    family = FAMILIES.get(model_type)
    layers = []
    for name, module in model.named_modules():
        if family is not None and type(module).__name__ == family.experts_class:
            layers.append(_module_list_layer(name, module, family))
        elif all(hasattr(module, flag) for flag in _FLAGS):
            layers.append(_fused_layer(model, name, module, model_type))
    if not layers:
        raise UnsupportedModel(_why_none(model, model_type))
    return layers


def _fused_layer(model: nn.Module, name: str, module: Any, model_type: str) -> MoeLayer:
    if module.has_post_expert_norm:
        raise UnsupportedModel(
            f"model type {model_type!r}: {name} has a norm after each expert, which is not supported"
        )
    first_name = "gate_up_proj" if module.has_gate else "up_proj"
    first = getattr(module, first_name, None)
    down = getattr(module, "down_proj", None)
    if first is None or down is None or first.dim() != 3 or down.dim() != 3:
        raise UnsupportedModel(
            f"model type {model_type!r}: {name} ({type(module).__name__}) lacks the fused 3-D parameters "
            f"{first_name} and down_proj"
        )
    experts = down.shape[0]
    intermediate, hidden = down.shape[1:] if module.is_transposed else (down.shape[2], down.shape[1])
    return MoeLayer(
        name=name,
        experts=experts,
        hidden=hidden,
        intermediate=intermediate,
        has_gate=module.has_gate,
        has_bias=module.has_bias,
        transposed=module.is_transposed,
        concatenated=module.is_concatenated,
        router=_find_router(model, name, experts, hidden, model_type),
    )


def _module_list_layer(name: str, module: nn.Module, family: ModuleListFamily) -> MoeLayer:
    first = module.get_submodule(family.expert.format(0))
    hidden_first = first.get_parameter(family.up)
    parent = name.rpartition(".")[0]
    return MoeLayer(
        name=name,
        experts=len(list(module.children())),
        hidden=hidden_first.shape[1],
        intermediate=hidden_first.shape[0],
        has_gate=False,
        has_bias=False,
        transposed=False,
        concatenated=True,
        router=f"{parent}.{family.router}",
        family=family,
    )


def _find_router(model: nn.Module, name: str, experts: int, hidden: int, model_type: str) -> str:
    """The weight `[experts, hidden]` beside the experts: there must be exactly one."""
    parent = name.rpartition(".")[0]
    block = model.get_submodule(parent)
    found = [
        f"{parent}.{path}"
        for path, parameter in block.named_parameters()
        if tuple(parameter.shape) == (experts, hidden) and not f"{parent}.{path}".startswith(name + ".")
    ]
    if len(found) != 1:
        raise UnsupportedModel(
            f"model type {model_type!r}: expected one router weight [{experts}, {hidden}] beside {name}, found "
            f"{found or 'none'}; a family file has to name it"
        )
    return found[0]


def _why_none(model: nn.Module, model_type: str) -> str:
    suspects = sorted({type(m).__name__ for m in model.modules() if "Experts" in type(m).__name__})
    if suspects:
        return (
            f"model type {model_type!r} is not supported: its experts ({', '.join(suspects)}) do not use transformers' "
            "fused-experts interface; it needs a family file (see CONTRIBUTING.md)"
        )
    return f"model type {model_type!r} has no Mixture-of-Experts layers: there is nothing here for moesaic to compress"
