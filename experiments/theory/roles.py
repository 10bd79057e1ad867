"""Which feature an expert has learned.

`by_value` (used for all figures): an expert has learned a feature of its own label if its value on that token is at
least `ROLE_RATIO` times its largest value on any irrelevant pattern. `by_direction` (a check): the features of its
label hold at least half of the squared change of its weights, and a feature counts if it holds a quarter of that part.
Neither looks at the router, and both are ratios within one expert: neither decides by itself how large a norm change
or an activation is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .constants import GROUPS, ROLE_RATIO
from .data import LABELS, RARER
from .model import Weights
from .setting import Setting


@dataclass(frozen=True)
class Roles:
    """What the experts have learned.

    Attributes:
        group: index in `GROUPS`, `[seeds, experts]` int64.
        feature: the feature of the expert's label with the largest value, `[seeds, experts]` int64.
        activation: the value on that token, `[seeds, experts]`.
    """

    group: Tensor
    feature: Tensor
    activation: Tensor

    def members(self, name: str) -> Tensor:
        """Experts of a group. `[seeds, experts]` bool"""
        return self.group == GROUPS.index(name)


def by_value(setting: Setting, values: Tensor, signs: Tensor) -> Roles:
    """Roles from the tables of values `[seeds, experts, patterns]`."""
    background = values[..., setting.features :].amax(dim=2, keepdim=True)
    return _roles(setting, values, signs, values[..., : setting.features] >= ROLE_RATIO * background)


def by_direction(setting: Setting, values: Tensor, signs: Tensor, before: Weights, after: Weights) -> Roles:
    """Roles from the change of the weights, both in the coordinates of the patterns."""
    energy = (after.experts - before.experts).square().sum(dim=2)
    own = _own(setting, signs)
    relevant = energy[..., : setting.features] * own
    found = (relevant >= relevant.sum(dim=2, keepdim=True) / 4) & (
        relevant.sum(dim=2, keepdim=True) >= energy.sum(dim=2, keepdim=True) / 2
    )
    return _roles(setting, values, signs, found)


def _own(setting: Setting, signs: Tensor) -> Tensor:
    """Whether a feature has the expert's label. `[experts, features]`"""
    return torch.tensor(LABELS[: setting.features]) == signs[:, None]


def _roles(setting: Setting, values: Tensor, signs: Tensor, found: Tensor) -> Roles:
    own = _own(setting, signs)
    learned = found & own
    rarer = torch.tensor(RARER[: setting.features])
    prevalent, rare = learned[..., ~rarer].any(dim=2), learned[..., rarer].any(dim=2)
    group = torch.full(prevalent.shape, GROUPS.index("none"))
    group[prevalent] = GROUPS.index("prevalent")
    group[rare] = GROUPS.index("rarer")
    group[prevalent & rare] = GROUPS.index("both")
    best = values[..., : setting.features].masked_fill(~own, -1.0).max(dim=2)
    return Roles(group=group, feature=best.indices, activation=best.values)
