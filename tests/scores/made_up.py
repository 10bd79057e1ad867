"""A model's weights and statistics that a test made up, in the form that rules ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from moesaic.errors import UsageError
from moesaic.records import ExpertStats, ExpertWeights, LayerShape, LayerStats


@dataclass
class MadeUp:
    """Tables and what was read of them.

    Attributes:
        routers: layer -> `[experts, hidden]`.
        first: layer -> first-layer weight of each expert.
        initial: layer -> router before training, or None.
        second: layer -> down matrix of each expert; where it is not given, the first layer turned round.
        measured: statistics, or None.
    """

    routers: dict[str, Tensor]
    first: dict[str, list[Tensor]] = field(default_factory=dict)
    initial: dict[str, Tensor] | None = None
    second: dict[str, list[Tensor]] = field(default_factory=dict)
    measured: ExpertStats | None = None
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

    def expert(self, layer: str, expert: int) -> ExpertWeights:
        """All matrices of an expert, which has no gate."""
        self.asked.append("expert")
        first = self.first[layer][expert]
        down = self.second[layer][expert] if layer in self.second else first.T.contiguous()
        return ExpertWeights(gate=None, up=first, down=down)

    def shape(self, layer: str) -> LayerShape:
        """Sizes; a layer without matrices has experts of one weight in each entry."""
        sizes = (1, 1)
        if layer in self.first:
            sizes = (self.first[layer][0].numel(), self.expert(layer, 0).down.numel())
            self.asked.pop()
        return LayerShape(layer, self.experts[layer], *sizes)

    @property
    def stats(self) -> ExpertStats:
        """Statistics."""
        self.asked.append("stats")
        if self.measured is None:
            raise UsageError("the rule needs statistics: give --calibration or --stats")
        return self.measured

    def renumbered(self, order: Tensor) -> MadeUp:
        """The same model with its experts in another order."""
        assert self.initial is not None
        assert self.measured is not None
        return MadeUp(
            {layer: router[order] for layer, router in self.routers.items()},
            {layer: [matrices[i] for i in order] for layer, matrices in self.first.items()},
            {layer: router[order] for layer, router in self.initial.items()},
            {layer: [matrices[i] for i in order] for layer, matrices in self.second.items()},
            replace(self.measured, layers={name: _reordered(s, order) for name, s in self.measured.layers.items()}),
        )


def _reordered(stats: LayerStats, order: Tensor) -> LayerStats:
    return replace(stats, **{name: tensor[order] for name, tensor in stats.tensors().items()})


def random_stats(
    experts: Mapping[str, int],
    hidden: int = 16,
    intermediate: int = 8,
    bits: tuple[int, ...] = (1, 2, 3),
    seed: int = 3,
) -> ExpertStats:
    """Statistics with everything in them; in every layer the last expert but one was never chosen."""
    random = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=random, dtype=torch.float64)

    layers = {}
    for name, number in experts.items():
        count = torch.randint(1, 500, (number,), generator=random)
        count[-2] = 0
        used = (count > 0).double()
        falling = used[:, None] * (0.2 + uniform(number, 1)) * 4.0 ** -torch.tensor(bits, dtype=torch.float64)
        entries = torch.stack([falling * 0.7, falling * 0.5], dim=-1)
        layers[name] = LayerStats(
            tokens=500,
            count=count,
            mass_before=count * 0.4 * uniform(number),
            mass=count * 0.8 * uniform(number),
            gate_up_moment=uniform(number, hidden),
            down_moment=uniform(number, intermediate),
            weight_error=entries + 0.01 * (1 - used)[:, None, None],
            output_error=falling,
            fisher=falling**2,
            output_error_entries=entries,
            fisher_entries=entries**2,
        )
    return ExpertStats(layers, bits, "rtn group 64 symmetric", {"text": "made up"})


def random_weights(seed: int = 0, experts: int = 6, layers: int = 2) -> MadeUp:
    """Random routers, matrices and statistics; the matrices' sizes differ a lot between experts."""
    random = torch.Generator().manual_seed(seed)
    names = [f"layers.{i}" for i in range(layers)]
    routers = {name: torch.randn(experts, 16, generator=random) for name in names}
    sizes = torch.logspace(-1, 1, experts)
    first = {name: [torch.randn(8, 16, generator=random) * size for size in sizes] for name in names}
    initial = {name: torch.randn(experts, 16, generator=random) * 0.1 for name in names}
    second = {name: [torch.randn(16, 8, generator=random) * size for size in sizes] for name in names}
    return MadeUp(routers, first, initial, second, random_stats(dict.fromkeys(names, experts), seed=seed))
