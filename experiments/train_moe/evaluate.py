"""Held-out loss and perplexity, next to a unigram model's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from .data import make_batch, predicted_tokens, windows
from .model import token_losses
from .recipe import Recipe

Streams = dict[str, torch.Tensor]


def unigram_log_probabilities(streams: Streams, recipe: Recipe) -> torch.Tensor:
    """Log-probability of each token under counts of the training tokens, add-one smoothed.

    For an encoder-decoder the counted tokens are the targets of span corruption.
    """
    counts = torch.ones(recipe.vocab_size, dtype=torch.float64)
    for domain in recipe.domains:
        tokens = streams[f"{domain}.train"].long()
        if recipe.seq2seq:
            rng = np.random.default_rng([recipe.seed, 3])
            tokens = make_batch(windows(tokens, recipe.seq_len), recipe, rng)["labels"].flatten()
        counts += torch.bincount(tokens, minlength=recipe.vocab_size)
    return (counts / counts.sum()).log()


@torch.inference_mode()
def held_out_losses(
    model: PreTrainedModel,
    stream: torch.Tensor,
    recipe: Recipe,
    unigram: torch.Tensor,
    limit: int | None = None,
) -> dict[str, float]:
    """Summed losses of model and unigram over the same tokens of (the first `limit` windows of) a stream."""
    model.eval()
    rows = windows(stream, recipe.seq_len)[:limit]
    rng = np.random.default_rng([recipe.seed, 4])
    sums = {"tokens": 0, "loss": 0.0, "unigram_loss": 0.0}
    for at in range(0, len(rows), recipe.batch_size):
        batch = make_batch(rows[at : at + recipe.batch_size], recipe, rng)
        predicted = predicted_tokens(batch, recipe)
        sums["tokens"] += predicted.numel()
        sums["loss"] += token_losses(model, batch).double().sum().item()
        sums["unigram_loss"] -= unigram[predicted].sum().item()
    model.train()
    return sums


def _means(sums: dict[str, float]) -> dict[str, float]:
    """Mean losses and perplexities of summed losses."""
    tokens = max(1, sums["tokens"])
    loss, unigram_loss = sums["loss"] / tokens, sums["unigram_loss"] / tokens
    return {
        "tokens": int(sums["tokens"]),
        "loss": loss,
        "perplexity": math.exp(loss),
        "unigram_loss": unigram_loss,
        "unigram_perplexity": math.exp(unigram_loss),
    }


def evaluate(
    model: PreTrainedModel,
    streams: Streams,
    recipe: Recipe,
    split: str,
    unigram: torch.Tensor,
    *,
    limit: int | None = None,
) -> dict[str, Any]:
    """Loss and perplexity per domain and over all tokens (`overall`) of a held-out split.

    `limit` keeps only that many windows of each domain; an incomplete last window is never counted.
    """
    result: dict[str, Any] = {}
    total = {"tokens": 0, "loss": 0.0, "unigram_loss": 0.0}
    for domain in recipe.domains:
        sums = held_out_losses(model, streams[f"{domain}.{split}"], recipe, unigram, limit)
        result[domain] = _means(sums)
        total = {name: total[name] + sums[name] for name in total}
    return {**result, "overall": _means(total)}
