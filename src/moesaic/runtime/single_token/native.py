"""When the native way is open."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.modules import module as anywhere
from transformers import PreTrainedModel

from moesaic.kernels import cpu, select

HALF = (torch.bfloat16, torch.float16)
MOST_TOKENS = 4  # a token of each of a few sequences; many are torch's, whose results they share with other programs


def is_open(x: Tensor) -> bool:
    """Whether an activation is one that the native code takes here: half precision on a CPU, without gradients.

    In float32, in which people check things, everything stays torch's.
    """
    return (
        x.dtype in HALF
        and x.device.type == "cpu"
        and not (torch.is_grad_enabled() and x.requires_grad)
        and not torch.compiler.is_compiling()
    )


def is_chosen(model: PreTrainedModel) -> bool:
    """Whether the native kernels are those of a model, as long as it stays where it is."""
    return model.device.type == "cpu" and select("cpu") is cpu


def is_watched(*modules: Any) -> bool:
    """Whether somebody's hooks wait for one of the modules, or for any module at all, to be called."""
    if anywhere._global_forward_hooks or anywhere._global_forward_pre_hooks:
        return True
    return any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def setting(config: Any, name: str) -> Any:
    """What a model's configuration says; None where it says nothing.

    Past its own way of looking things up, which takes up to 8 microseconds.
    """
    try:
        return object.__getattribute__(config, name)
    except AttributeError:
        return getattr(config, name, None)
