"""A model's weights that a test made up, in the form that scoring rules ask for."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class MadeUp:
    """Two tables and what was read of them.

    Attributes:
        routers: layer -> `[experts, hidden]`.
        first: layer -> first-layer weight of each expert.
        initial: layer -> router before training, or None.
    """

    routers: dict[str, Tensor]
    first: dict[str, list[Tensor]] = field(default_factory=dict)
    initial: dict[str, Tensor] | None = None
    asked: list[str] = field(default_factory=list)

    @property
    def experts(self) -> dict[str, int]:
        """Layers with their number of experts."""
        return {name: router.shape[0] for name, router in self.routers.items()}

    def router(self, layer: str) -> Tensor:
        """The router."""
        self.asked.append("router")
        return self.routers[layer]

    def initial_router(self, layer: str) -> Tensor | None:
        """The router before training."""
        return None if self.initial is None else self.initial[layer]

    def first_layer(self, layer: str, expert: int) -> Tensor:
        """W1 of an expert."""
        self.asked.append("first_layer")
        return self.first[layer][expert]


def random_weights(seed: int = 0, experts: int = 6, layers: int = 2) -> MadeUp:
    """Random routers and first layers, whose sizes differ a lot between experts."""
    random = torch.Generator().manual_seed(seed)
    names = [f"layers.{i}" for i in range(layers)]
    routers = {name: torch.randn(experts, 16, generator=random) for name in names}
    sizes = torch.logspace(-1, 1, experts)
    first = {name: [torch.randn(8, 16, generator=random) * size for size in sizes] for name in names}
    initial = {name: torch.randn(experts, 16, generator=random) * 0.1 for name in names}
    return MadeUp(routers, first, initial)
