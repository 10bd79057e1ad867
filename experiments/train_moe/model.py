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
from transformers.modeling_outputs import Seq2SeqMoEOutput
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
    model = auto.from_config(config, **options).float()
    if recipe.router_std is not None:
        _redraw_routers(model, recipe.router_std)
    if recipe.residual_scale is not None:
        _scale_residual_stream(model, recipe.residual_scale)
    if recipe.copying_attention is not None:
        _copy_by_cross_attention(model, recipe.copying_attention)
    return model


@torch.no_grad()
def _redraw_routers(model: PreTrainedModel, std: float) -> None:
    """Draw all routers anew, from a normal distribution of this standard deviation.

    transformers draws a Switch router with standard deviation 1: logits of standard deviation sqrt(d_model),
    so a softmax that passes no gradient. Fedus et al. 2021 (section 2.4) ask for a small one.
    """
    parameters = dict(model.named_parameters())
    for name in router_names(model):
        torch.nn.init.normal_(parameters[name], std=std)


@torch.no_grad()
def _scale_residual_stream(model: PreTrainedModel, scale: float) -> None:
    """Shrink all that a Switch Transformer adds to its residual stream, and undo it in the last norm.

    The function does not change, but AdamW's steps, of one size for all weights, become larger relative to the
    embedding, which is drawn with standard deviation 1 and would hardly move in a short training.
    """
    model.get_input_embeddings().weight.mul_(scale)
    for name, parameter in model.named_parameters():
        if name.endswith((".o.weight", ".wo.weight")):
            parameter.mul_(scale)
    model.decoder.final_layer_norm.weight.div_(scale)


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


@torch.no_grad()
def _copy_by_cross_attention(model: PreTrainedModel, gain: float) -> None:
    """Let a decoder's cross-attention pass on the tokens it looks at: output matrix = `gain` * value matrix transposed.

    What it adds to the residual stream then points to the embeddings of the encoder's tokens, so that copying need not
    be found by chance (mimetic initialisation, Trockman and Kolter 2023).
    """
    for block in model.decoder.block:
        attention = block.layer[1].EncDecAttention
        attention.o.weight.copy_(gain * attention.v.weight.T)


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
    chosen = getattr(config, "num_experts_per_tok", 1)
    losses = [load_balancing_loss_func((logits,), experts, chosen) for logits in router_logits]
    return torch.stack(losses).mean()


def _encoder_decoder_losses(model: PreTrainedModel, batch: Batch, output: Seq2SeqMoEOutput) -> Losses:
    """Cross-entropy, load balancing and z-loss (Zoph et al. 2022, equation 5), layer by layer, padding left out.

    transformers pools all layers of a stack, counts padding, and skips the terms of a stack without dense layers.
    """
    labels = batch["labels"]
    language = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), labels.flatten())
    encoder = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    real = [logits[encoder] for logits in output.encoder_router_logits]
    real += [logits[labels != -100] for logits in output.decoder_router_logits]
    z_loss = torch.stack([logits.logsumexp(-1).square().mean() for logits in real]).mean()
    config = model.config
    balance = load_balancing_loss(model, tuple(real))
    total = language + config.router_aux_loss_coef * balance + config.router_z_loss_coef * z_loss
    return Losses(total=total, language=language.detach())


def compute_losses(model: PreTrainedModel, batch: Batch) -> Losses:
    """Training losses of a batch: cross-entropy plus load-balancing terms."""
    output = model(**batch, output_router_logits=True, use_cache=False)
    if model.config.is_encoder_decoder:
        return _encoder_decoder_losses(model, batch, output)
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
