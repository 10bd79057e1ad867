"""Export of a finished run in Hugging Face layout."""

from __future__ import annotations

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.core_model_loading import revert_weight_conversion

from .train import Workspace, write_tensors


def export_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, space: Workspace, dtype: torch.dtype = torch.bfloat16
) -> None:
    """Write the model, its tokenizer and its initial routers to the export folder.

    The model is rounded to `dtype` in place, so that what is evaluated afterwards is what was exported.
    The initial routers stay float32 and carry the names that the routers have in the exported checkpoint.
    """
    model.eval()
    initial = load_file(space.routers(0))
    renamed = revert_weight_conversion(model, initial)
    model.to(dtype).save_pretrained(space.export)
    tokenizer.save_pretrained(space.export)
    write_tensors(space.export / "initial_routers.safetensors", renamed)
