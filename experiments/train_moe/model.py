"""Model of a recipe, its router parameters and its losses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from .data import Batch
from .recipe import Recipe


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A freshly initialised float32 model; the recipe's seed fixes the weights."""
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    special["pad_token_id"] = tokenizer.pad_token_id
    if recipe.seq2seq:
        special["decoder_start_token_id"] = tokenizer.pad_token_id
    config = AutoConfig.for_model(recipe.model_type, vocab_size=recipe.vocab_size, **special, **recipe.config)
    auto = AutoModelForSeq2SeqLM if recipe.seq2seq else AutoModelForCausalLM
    options = {}
    if recipe.experts_implementation is not None:
        options["experts_implementation"] = recipe.experts_implementation
    torch.manual_seed(recipe.seed)
    return auto.from_config(config, **options).float()


def router_names(model: PreTrainedModel) -> list[str]:
    """Parameter names of all routers, in layer order."""
    names = [
        f"{module_name}.{name}"
        for module_name, module in model.named_modules()
        if type(module).__name__.endswith("Router")
        for name, _ in module.named_parameters()
    ]
    if not names:
        raise ValueError(f"no router found in {type(model).__name__}")
    return names


def router_weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Copies of the router weights under their parameter names."""
    parameters = dict(model.named_parameters())
    return {name: parameters[name].detach().clone() for name in router_names(model)}


@dataclass
class Losses:
    """The loss to minimise and, without the router terms, the language model's own loss."""

    total: torch.Tensor
    language: torch.Tensor


def load_balancing_loss(model: PreTrainedModel, router_logits: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The Switch loss (Fedus et al. 2022, equation 4) of each layer by itself, averaged over the layers.

    transformers pools the tokens of all layers first, which is content when one layer's dead expert is another
    layer's favourite; a model trained that way had an expert that no token reached.
    """
    config = model.config
    experts = getattr(config, "num_local_experts", None) or config.num_experts
    losses = [load_balancing_loss_func((logits,), experts, config.num_experts_per_tok) for logits in router_logits]
    return torch.stack(losses).mean()


def compute_losses(model: PreTrainedModel, batch: Batch) -> Losses:
    """Training losses of a batch: cross-entropy plus load-balancing terms."""
    output = model(**batch, output_router_logits=True, use_cache=False)
    if model.config.is_encoder_decoder:
        labels = batch["labels"]
        language = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), labels.flatten()).detach()
        return Losses(total=output.loss, language=language)
    coefficient = model.config.router_aux_loss_coef
    language = output.loss - coefficient * output.aux_loss
    total = language + coefficient * load_balancing_loss(model, output.router_logits)
    return Losses(total=total, language=language.detach())


def token_losses(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Negative log-likelihood of each predicted token, flat."""
    logits = model(**batch, use_cache=False).logits
    labels = batch["labels"]
    if not model.config.is_encoder_decoder:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="none")
