"""From priorities to what runs: the threshold, the rescaled weights, and the threshold that gives a share.

All policies share these steps. A token always keeps at least one expert. The weights of the experts that run are
rescaled so that their sum is what it was before: 1 in architectures that normalise the top-k weights
(`norm_topk_prob`), the routing mass of the top-k in those that do not, times the factor of those that have one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moesaic.prune._protocol import Policy, Routed, State

THRESHOLD = "threshold"  # the entry of a layer's state


def sort_places(weights: Tensor, experts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The places of every token by weight, largest first; equal ones stay in the router's order.

    Returns:
        Sorted weights, sorted experts, and the order `[tokens, k]` that leads to them.
    """
    ranked, order = weights.sort(dim=-1, descending=True, stable=True)
    return ranked, experts.gather(-1, order), order


def decide(policy: Policy, routed: Routed, state: State) -> Tensor:
    """Which places run, in sorted order. `[tokens, k]` bool"""
    return keep(policy(routed, state), state[THRESHOLD])


def keep(priority: Tensor, threshold: Tensor | float) -> Tensor:
    """Places whose priority reaches the threshold; the first where none does. `[tokens, k]` bool"""
    kept = priority >= threshold
    kept[:, 0] |= ~kept.any(dim=-1)
    return kept


def rescale(weights: Tensor, kept: Tensor) -> Tensor:
    """The weights of the places that run, their sum as before; zero at the others.

    A token that keeps everything keeps its weights bit for bit.

    Args:
        weights: `[tokens, k]`.
        kept: `[tokens, k]` bool, or numbers from 0 to 1 that are differentiated in training.
    """
    wide = weights.float()
    masked = wide * kept
    left = masked.sum(dim=-1, keepdim=True)
    factor = wide.sum(dim=-1, keepdim=True) / torch.where(left > 0, left, 1.0)
    return (masked * factor).to(weights.dtype)


def share_threshold(priorities: list[Tensor], share: float) -> float:
    """The threshold at which that share of all places runs, or as near to it as ties allow.

    Args:
        priorities: of one layer or several, `[tokens, k]` each.
        share: of the places that are to run, above `1 / k` and at most 1.

    Returns:
        A value halfway between two priorities that occur, so that rounding elsewhere does not matter.
    """
    values = torch.cat([_with_forced(each).flatten() for each in priorities]).sort(descending=True).values
    wanted = max(round(share * len(values)), int(values.isinf().sum()))
    if wanted >= len(values):
        return -torch.inf
    edge = values[wanted]  # the first that should not run, unless it is tied with the last that should
    above, reaching = int((values > edge).sum()), int((values >= edge).sum())
    count = above if wanted - above <= reaching - wanted else reaching
    if count >= len(values):
        return -torch.inf
    return _between(float(values[count - 1]), float(values[count]))


def _with_forced(priority: Tensor) -> Tensor:
    """Every token's priorities with the highest at infinity: one of its places runs in any case."""
    forced = priority.float().sort(dim=-1, descending=True).values
    forced[:, 0] = torch.inf
    return forced


def _between(high: float, low: float) -> float:
    if high == torch.inf:
        return low + max(abs(low), 1.0) * 1e-3
    return high if low == -torch.inf else low + (high - low) / 2
