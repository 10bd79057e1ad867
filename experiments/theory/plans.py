"""Test error at equal average bits: which experts get the high width?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moesaic.allocate.ranks import two_level_counts
from moesaic.records import Budget
from moesaic.scores.reorder import ranking, reordered

from . import data
from .constants import GROUPS, RANDOM_PLANS, ZETA
from .measure import error_record, router_change
from .model import Weights, route
from .readings import Readings
from .roles import Roles
from .setting import Setting

PAIRS = (
    (2, 1, 1.5),
    (3, 1, 2.0),
    (3, 2, 2.5),
    (4, 2, 2.5),
    (4, 2, 3.0),
    (5, 2, 3.5),
    (5, 3, 4.0),
    (6, 4, 5.0),
)  # b_h, b_l, average
BY_ROLE = torch.tensor([1.0, 3.0, 2.0, 0.0])  # of GROUPS: the rarer feature first, idle experts last


def scores(setting: Setting, frames: Tensor, before: Weights, after: Weights, roles: Roles) -> dict[str, Tensor]:
    """What each rule thinks of every expert, larger = more bits, `[seeds, experts]`."""
    change = router_change(before, after)
    spread = after.experts.var(dim=3, correction=0).amax(dim=2)
    chosen, weight = usage(setting, frames, after)
    found = {
        "small change": -change,
        "small change + MaxVar": lifted(-change, spread, ZETA),
        "large change": change,
        "small final norm": -torch.linalg.vector_norm(after.router, dim=2),
        "frequently used": chosen,
        "large routing weight": weight,
        "large MaxVar": spread,
        "small change, idle experts last": -change - 1e3 * (roles.group == GROUPS.index("none")),
        "rarer feature, prevalent, idle": BY_ROLE[roles.group] - 1e-3 * change,
    }
    for number in range(RANDOM_PLANS):
        draws = data.generators(setting, 10 + number)
        found[f"random {number}"] = torch.stack([torch.rand(setting.experts, generator=g) for g in draws])
    return found


def lifted(base: Tensor, spread: Tensor, zeta: float) -> Tensor:
    """The rule `base` reordered by MaxVar, as `moesaic.scores.Reorder` does it. `[seeds, experts]`"""
    result = torch.empty_like(base)
    for seed, (row, widths) in enumerate(zip(base.tolist(), spread.tolist(), strict=True)):
        places = reordered(ranking(tuple(row)), tuple(widths), zeta, single_sweep=False)
        result[seed, torch.tensor(places)] = torch.arange(len(places), 0, -1.0)
    return result


def usage(setting: Setting, frames: Tensor, after: Weights) -> tuple[Tensor, Tensor]:
    """How often an expert takes a task-relevant token of natural sequences, and with what mean weight.

    With expert-choice routing every expert takes equally many tokens, so that only this tells a busy expert from an
    idle one. `[seeds, experts]` each.
    """
    draws = data.generators(setting, 5)
    probabilities = data.shares(setting, balanced=False)
    features = torch.stack([torch.multinomial(probabilities, 1000, replacement=True, generator=g) for g in draws])
    routed = route(after.router @ frames, data.draw_tokens(setting, draws, features), setting.chosen)
    relevant = routed.patterns < setting.features
    return relevant.any(dim=3).float().mean(dim=2), (routed.gates * relevant).sum(dim=3).mean(dim=2)


def plan(scores: Tensor, high: int, low: int, average: float) -> Tensor:
    """Two-level bits, the best scores high; ties go to the smaller expert. `[seeds, experts]` int64"""
    number = two_level_counts(scores.shape[1], Budget(average), low, high)[high]
    first = scores.argsort(dim=1, descending=True, stable=True)[:, :number]
    return torch.full(scores.shape, low).scatter(1, first, high)


def errors_of_plans(readings: Readings, rules: dict[str, Tensor]) -> dict[str, Any]:
    """Errors of every rule at every pair of widths, and of every single width."""
    one = next(iter(rules.values()))
    found: dict[str, Any] = {"full": error_record(readings, torch.zeros_like(one, dtype=torch.int64))}
    for bits in range(1, 7):
        found[f"uniform {bits}"] = error_record(readings, torch.full(one.shape, bits))
    for high, low, average in PAIRS:
        for name, values in rules.items():
            key = f"{high}/{low} at {average:g}: {name}"
            found[key] = error_record(readings, plan(values, high, low, average))
    return found
