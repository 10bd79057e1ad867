"""The two-layer MoE in the coordinates of the patterns, for all seeds at once.

Without noise a token is a pattern, so that all an expert can say is one table: its value for every pattern. That is
exact, and far cheaper than multiplying tokens with weights; with noise the products are made.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Weights:
    """Weights of all seeds.

    Attributes:
        experts: first layers W1, `[seeds, experts, neurons, dimension]`.
        router: rows w_s, `[seeds, experts, dimension]`.
        signs: fixed output signs, `[experts]`.
    """

    experts: Tensor
    router: Tensor
    signs: Tensor

    def in_patterns(self, frames: Tensor) -> Weights:
        """The products with every pattern in the place of the weights. `frames` is `[seeds, dimension, patterns]`"""
        products = (self.experts.flatten(1, 2) @ frames).view(*self.experts.shape[:3], -1)
        return Weights(products, self.router @ frames, self.signs)


def tables(weights: Weights) -> tuple[Tensor, Tensor]:
    """Value of every expert for every pattern, and the router's logit, `[seeds, experts, patterns]` each.

    The value is the sum over neurons of ReLU(<w_r, x>), without the output sign.
    """
    return weights.experts.relu().sum(dim=2), weights.router


@dataclass(frozen=True)
class Routed:
    """What the routers chose from noiseless sequences.

    Attributes:
        patterns: pattern numbers of the tokens that each expert took, `[seeds, experts, number, chosen]` int64.
        gates: their weights, of the same shape.
    """

    patterns: Tensor
    gates: Tensor


def route(logits: Tensor, tokens: Tensor, chosen: int) -> Routed:
    """Every expert takes its `chosen` tokens of the largest logits. `tokens` is `[seeds, number, tokens]`"""
    index = tokens.flatten(1)[:, None].expand(-1, logits.shape[1], -1)
    scores = logits.gather(2, index).view(tokens.shape[0], -1, *tokens.shape[1:])
    taken, gates = _choose(scores, chosen)
    return Routed(index.view(scores.shape).gather(3, taken), gates)


def contributions(values: Tensor, signs: Tensor, routed: Routed) -> Tensor:
    """What every expert adds to f(x), sign included. `[seeds, experts, number]`"""
    found = values.gather(2, routed.patterns.flatten(2)).view(routed.gates.shape)
    return (routed.gates * found).sum(dim=3) * signs[:, None]


def outputs(values: Tensor, logits: Tensor, signs: Tensor, tokens: Tensor, chosen: int) -> Tensor:
    """f(x) of noiseless sequences.

    Args:
        values, logits: of `tables`.
        signs: `[experts]`.
        tokens: `[seeds, number, tokens]` pattern numbers.
        chosen: tokens that an expert takes.

    Returns:
        `[seeds, number]`
    """
    return contributions(values, signs, route(logits, tokens, chosen)).sum(dim=1)


def contributions_of_vectors(weights: Weights, vectors: Tensor, chosen: int) -> Tensor:
    """As `contributions`, of sequences of vectors `[seeds, number, tokens, width]`, `width` as in the weights."""
    scores = torch.einsum("sep,sbnp->sebn", weights.router, vectors)
    taken, gates = _choose(scores, chosen)
    seeds, experts, number, _ = taken.shape
    width = vectors.shape[-1]
    places = taken.permute(0, 2, 1, 3).flatten(2)[..., None].expand(-1, -1, -1, width)  # (S, B, E*l, P)
    picked = vectors.gather(2, places).view(seeds, number, experts, chosen, width)
    picked = picked.permute(0, 2, 1, 3, 4).flatten(2, 3)  # (S, E, B*l, P)
    found = (picked @ weights.experts.transpose(2, 3)).relu().sum(dim=3).view(gates.shape)
    return (gates * found).sum(dim=3) * weights.signs[:, None]


def _choose(scores: Tensor, chosen: int) -> tuple[Tensor, Tensor]:
    """Places of an expert's top tokens and the softmax over them, `[seeds, experts, number, chosen]` each."""
    best, taken = scores.topk(chosen, dim=3)
    return taken, best.softmax(dim=3)
