"""Routings that the tests of policies share."""

from __future__ import annotations

import torch
from torch import Tensor

from moesaic.prune import Routed
from moesaic.prune.decide import sort_places

EXPERTS = 8


def random_routed(tokens: int = 40, k: int = 4, *, hidden: int = 6, seed: int = 0, batch: int = 2) -> Routed:
    """A made-up routing of `batch` sequences, sorted."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens, EXPERTS, generator=generator)
    weights, experts = logits.softmax(-1).topk(k)
    ranked, experts, _ = sort_places(weights, experts)
    return Routed(
        weights=ranked,
        experts=experts,
        hidden=torch.randn(tokens, hidden, generator=generator),
        count=EXPERTS,
        sequences=torch.arange(batch).repeat_interleave(tokens // batch),
        significance=torch.rand(tokens, generator=generator),
    )


def of_weights(rows: list[list[float]], experts: list[list[int]] | None = None, **more: Tensor) -> Routed:
    """A routing with these weights."""
    weights = torch.tensor(rows)
    chosen = torch.tensor(experts) if experts else torch.arange(weights.shape[1]).expand(weights.shape)
    return Routed(weights, chosen, torch.zeros(len(rows), 2), EXPERTS, **more)
