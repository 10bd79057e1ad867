"""SGD from small random weights, all seeds in one loop, with snapshots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from . import data
from .model import Weights, contributions_of_vectors, outputs, tables
from .setting import Setting

LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "hinge": lambda margins: (1 - margins).relu(),
    "logistic": lambda margins: torch.nn.functional.softplus(-margins),
    "linear": lambda margins: -margins,  # never satisfied: what a loss does before any margin is reached
}


def initial(setting: Setting, frames: Tensor) -> Weights:
    """Gaussian weights in the space of the tokens; the first half of the experts has sign +1.

    `init` is their standard deviation along the patterns, `spread` across the other directions.
    """
    rows, routers = [], []
    for draw in data.generators(setting, 2):
        size = (setting.experts, setting.neurons, setting.dimension)
        rows.append(torch.randn(size, generator=draw))
        routers.append(setting.router_init * torch.randn((setting.experts, setting.dimension), generator=draw))
    signs = torch.ones(setting.experts)
    signs[setting.experts // 2 :] = -1
    raw = torch.stack(rows).flatten(1, 2)
    along = raw @ frames @ frames.transpose(1, 2)
    experts = setting.init * along + setting.spread * (raw - along)
    return Weights(experts.view(-1, *size), torch.stack(routers), signs)


def train(setting: Setting, frames: Tensor, snapshots: Sequence[int]) -> dict[int, Weights]:
    """Weights in the space of the tokens after each number of steps in `snapshots` (0 is the initial ones).

    Gradients lie in the span of the patterns, so that training runs in the coordinates of the patterns and is lifted
    back; what is orthogonal to all patterns stays as it was drawn.
    """
    start = initial(setting, frames)
    inside = start.in_patterns(frames)
    experts = inside.experts.clone().requires_grad_()
    router = inside.router.clone().requires_grad_()
    current = replace(inside, experts=experts, router=router)
    draws = data.generators(setting, 3)
    kept: dict[int, Weights] = {}
    for step in range(max(snapshots) + 1):
        if step in snapshots:
            kept[step] = _lifted(start, inside, current, frames)
        if step == max(snapshots):
            break
        grown, turned = torch.autograd.grad(_loss(setting, current, draws), [experts, router])
        with torch.no_grad():
            experts -= setting.rate * grown
            router -= setting.router_rate * turned
    return kept


def _loss(setting: Setting, weights: Weights, draws: list[torch.Generator]) -> Tensor:
    """Loss of a fresh mini-batch, mean over sequences, sum over seeds (that do not touch each other)."""
    features = data.draw_features(setting, draws, setting.batch)
    tokens = data.draw_tokens(setting, draws, features)
    if setting.noise:
        found = contributions_of_vectors(weights, data.add_noise(setting, draws, tokens), setting.chosen).sum(dim=1)
    else:
        found = outputs(*tables(weights), weights.signs, tokens, setting.chosen)
    margins = torch.tensor(data.LABELS)[features] * found
    return LOSSES[setting.loss](margins).mean(dim=1).sum()


def _lifted(start: Weights, inside: Weights, current: Weights, frames: Tensor) -> Weights:
    back = frames.transpose(1, 2)
    change = (current.experts.detach() - inside.experts).flatten(1, 2) @ back
    experts = start.experts + change.view(start.experts.shape)
    router = start.router + (current.router.detach() - inside.router) @ back
    return Weights(experts, router, start.signs)
