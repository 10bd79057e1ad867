"""Sequences with one task-relevant token among irrelevant ones, for all seeds at once.

A token is the number of its pattern; patterns `0 … features - 1` are task-relevant. With noise a token is a vector in
the coordinates of the patterns. Feature 0 is o_1 (prevalent, label +1), 1 is o_2 (rarer, label -1); with four features
2 and 3 are prevalent and rarer with the labels turned round.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .setting import Setting

LABELS = (1.0, -1.0, -1.0, 1.0)  # of the features
RARER = (False, True, False, True)


def generators(setting: Setting, purpose: int) -> list[torch.Generator]:
    """One generator a seed, so that a seed's draws do not depend on how many seeds run together."""
    return [torch.Generator().manual_seed(1_000_003 * purpose + seed) for seed in range(setting.seeds)]


def shares(setting: Setting, *, balanced: bool) -> Tensor:
    """Probability of every task-relevant feature. `[features]`"""
    rarer = 0.5 if balanced else setting.a
    each = torch.tensor([rarer if RARER[k] else 1 - rarer for k in range(setting.features)])
    return each / each.sum()


def draw_features(setting: Setting, draws: list[torch.Generator], number: int) -> Tensor:
    """The task-relevant feature of `number` training sequences. `[seeds, number]` int64"""
    probabilities = shares(setting, balanced=setting.balanced)
    return torch.stack([torch.multinomial(probabilities, number, replacement=True, generator=g) for g in draws])


def draw_tokens(setting: Setting, draws: list[torch.Generator], features: Tensor) -> Tensor:
    """Pattern numbers of sequences with these features, the relevant token at a random place.

    Args:
        features: `[seeds, number]`.

    Returns:
        `[seeds, number, tokens]` int64; irrelevant patterns are drawn with replacement.
    """
    number, first = features.shape[1], setting.features
    size = (number, setting.tokens)
    tokens = torch.stack([torch.randint(first, setting.patterns, size, generator=g) for g in draws])
    places = torch.stack([torch.randint(setting.tokens, (number, 1), generator=g) for g in draws])
    return tokens.scatter_(2, places, features[..., None])


def add_noise(setting: Setting, draws: list[torch.Generator], tokens: Tensor) -> Tensor:
    """Tokens as noisy vectors. `[seeds, number, tokens]` -> `[seeds, number, tokens, patterns]`"""
    vectors = torch.nn.functional.one_hot(tokens, setting.patterns).float()
    noise = torch.stack([torch.randn(vectors.shape[1:], generator=g) for g in draws])
    return vectors + setting.noise * noise


def frames(setting: Setting) -> Tensor:
    """The patterns as vectors of the tokens' space, orthonormal. `[seeds, dimension, patterns]`"""
    if setting.axis_aligned:
        return torch.eye(setting.dimension)[:, : setting.patterns].expand(setting.seeds, -1, -1)
    size = (setting.dimension, setting.patterns)
    raw = torch.stack([torch.randn(size, generator=g, dtype=torch.float64) for g in generators(setting, 1)])
    return torch.linalg.qr(raw)[0].float()
