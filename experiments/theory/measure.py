"""What is measured of a trained model: one number a seed (None where a seed has no such expert)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .constants import GROUPS, TOLERATED
from .data import RARER
from .model import Weights, tables
from .quantizer import WIDTHS
from .readings import FULL, Readings
from .roles import Roles, by_direction, by_value
from .setting import Setting

PerSeed = list[float | None]


def per_seed(values: Tensor) -> PerSeed:
    """A column as numbers of a record; what is not finite is None."""
    return [round(value, 6) if abs(value) < float("inf") else None for value in values.double().tolist()]


def over_members(values: Tensor, members: Tensor) -> Tensor:
    """Mean over the members of a group; NaN for seeds without any. `[seeds, experts]` twice -> `[seeds]`"""
    return values.masked_fill(~members, 0).sum(dim=1) / members.sum(dim=1)


def order(values: Tensor, upper: Tensor, lower: Tensor) -> Tensor:
    """Probability that a member of `upper` has a larger value than one of `lower`, ties half. `[seeds]`"""
    pairs = upper[:, :, None] & lower[:, None, :]
    above = (values[:, :, None] > values[:, None, :]).float() + (values[:, :, None] == values[:, None, :]).float() / 2
    return (above * pairs).sum(dim=(1, 2)) / pairs.sum(dim=(1, 2))


def router_change(before: Weights, after: Weights) -> Tensor:
    """Difference of the norms of the router's rows, not the norm of the difference. `[seeds, experts]`"""
    return torch.linalg.vector_norm(after.router, dim=2) - torch.linalg.vector_norm(before.router, dim=2)


def state(setting: Setting, frames: Tensor, before: Weights, after: Weights) -> dict[str, Any]:
    """Experts by group: number, router change, activation; and how the groups are ordered."""
    inside = after.in_patterns(frames)
    values, _ = tables(inside)
    roles = by_value(setting, values, after.signs)
    check = by_direction(setting, values, after.signs, before.in_patterns(frames), inside)
    change = router_change(before, after)
    columns = {
        "router_change": change,
        "router_norm": torch.linalg.vector_norm(after.router, dim=2),
        "router_distance": torch.linalg.vector_norm(after.router - before.router, dim=2),
        "activation": roles.activation,
        "max_var": after.experts.var(dim=3, correction=0).amax(dim=2),
    }
    found: dict[str, Any] = {
        "groups": {},
        "order": {},
        "agreement_of_roles": per_seed((roles.group == check.group).float().mean(1)),
    }
    for name in GROUPS:
        members = roles.members(name)
        found["groups"][name] = {"experts": per_seed(members.sum(dim=1).float())}
        found["groups"][name] |= {key: per_seed(over_members(column, members)) for key, column in columns.items()}
    for way, which in (("", roles), (" by direction", check)):
        for upper, lower in (("prevalent", "rarer"), ("rarer", "none")):
            for key in ("router_change", "router_norm", "activation"):
                found["order"][f"{key}: {upper} > {lower}{way}"] = per_seed(
                    order(columns[key], which.members(upper), which.members(lower))
                )
    ratio = over_members(roles.activation, roles.members("prevalent")) / over_members(
        roles.activation, roles.members("rarer")
    )
    found["activation_ratio"] = per_seed(ratio)
    return found


def error_record(readings: Readings, bits: Tensor) -> dict[str, PerSeed]:
    """Test error, balanced error and error of the rarer feature(s) under plans of bits `[seeds, experts]`."""
    errors = readings.errors(bits)
    rarer = torch.tensor(RARER[: errors.shape[1]])
    return {
        "error": per_seed(readings.test_error(errors)),
        "balanced": per_seed(errors.mean(dim=1)),
        "rarer": per_seed(errors[:, rarer].mean(dim=1)),
    }


def bits_needed(readings: Readings, roles: Roles) -> dict[str, Any]:
    """For each group: bits that it needs while the other experts stay in full precision.

    `by_error` is the smallest width from which on the balanced error stays within `TOLERATED` of full precision's;
    `rise` that error's rise by width; `noise` the root mean square change of y f(x) over the mean margin, both over the
    sequences with the group's own features (all for experts without one), by width.
    """
    full = torch.full_like(roles.group, FULL)
    margins = readings.margins(full)
    base = readings.errors(full).mean(dim=1)
    mean_margin = readings.by_feature(margins)
    kinds = torch.tensor(RARER[: mean_margin.shape[1]])
    found: dict[str, Any] = {}
    for name in GROUPS:
        members = roles.members(name)
        own = {"prevalent": ~kinds, "rarer": kinds}.get(name, torch.ones_like(kinds))
        rises, noises = [], []
        for bits in WIDTHS:
            plan = full.masked_fill(members, bits)
            rises.append(readings.errors(plan).mean(dim=1) - base)
            power = readings.by_feature((readings.margins(plan) - margins).square())[:, own].mean(dim=1)
            noises.append(power.sqrt() / mean_margin[:, own].mean(dim=1))
        empty = ~members.any(dim=1)
        rise, noise = torch.stack(rises, dim=1), torch.stack(noises, dim=1)  # (S, W)
        noise = noise.masked_fill((noise < 0) | empty[:, None], torch.nan)
        found[name] = {
            "by_error": per_seed(_first_from_which(rise <= TOLERATED).masked_fill(empty, torch.nan)),
            "rise": [per_seed(column) for column in rise.masked_fill(empty[:, None], torch.nan).T],
            "noise": [per_seed(column) for column in noise.T],
        }
    return found


def _first_from_which(fine: Tensor) -> Tensor:
    """The smallest width such that it and all larger ones are fine (one more than the largest if none is)."""
    return (~fine).flip(1).long().cummax(dim=1).values.sum(dim=1).float() + 1


def sensitivity(readings: Readings, bits: int) -> Tensor:
    """Rise of the balanced logistic loss when one expert alone goes to `bits`. `[seeds, experts]`"""
    full = readings.parts[FULL]
    margins = full.sum(dim=1) * readings.labels
    base = readings.by_feature(torch.nn.functional.softplus(-margins)).mean(dim=1)
    rises = []
    for expert in range(full.shape[1]):
        moved = margins + (readings.parts[bits][:, expert] - full[:, expert]) * readings.labels
        rises.append(readings.by_feature(torch.nn.functional.softplus(-moved)).mean(dim=1) - base)
    return torch.stack(rises, dim=1)


def rank_correlation(x: Tensor, y: Tensor) -> Tensor:
    """Spearman's correlation over the experts of each seed; values without ties. `[seeds, experts]` -> `[seeds]`"""
    ranks = [each.argsort(dim=1).argsort(dim=1).double() for each in (x, y)]
    centred = [each - each.mean(dim=1, keepdim=True) for each in ranks]
    return (centred[0] * centred[1]).sum(dim=1) / (centred[0].norm(dim=1) * centred[1].norm(dim=1))
