"""From costs of a layer, whole or apart for its two entries, to a `CostTable`. What the cost rules share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from moesaic.records import ENTRIES, CostTable, entry_layer
from moesaic.scores._protocol import ModelWeights

Columns = Mapping[str, tuple[float, ...]]


def tabulate(
    weights: ModelWeights,
    rule: str,
    bits: tuple[int, ...],
    layers: Mapping[str, Tensor],
    *,
    frequency: Columns | None = None,
    routing_weight: Columns | None = None,
    details: Mapping[str, Any] | None = None,
) -> CostTable:
    """The table of a rule.

    Args:
        weights: knows the sizes.
        rule: the rule's name.
        bits: the widths.
        layers: layer -> costs `[experts, widths]`, or apart for gate_up and down `[experts, widths, 2]`: these become
            two layers, named by `entry_layer`.
        frequency, routing_weight: layer -> a factor an expert; see `CostTable`.
        details: what else is to be said.
    """
    rows: dict[str, tuple[tuple[float, ...], ...]] = {}
    sizes: dict[str, int] = {}
    phi: dict[str, tuple[float, ...]] = {}
    w: dict[str, tuple[float, ...]] = {}
    for layer, costs in layers.items():
        shape = weights.shape(layer)
        parts = {layer: (costs, shape.expert_weights)}
        if costs.dim() == 3:
            counts = (shape.gate_up_weights, shape.down_weights)
            parts = {entry_layer(layer, entry): (costs[..., i], counts[i]) for i, entry in enumerate(ENTRIES)}
        for name, (part, size) in parts.items():
            rows[name] = tuple(map(tuple, part.double().tolist()))
            sizes[name] = size
            for kept, given in zip((phi, w), (frequency, routing_weight), strict=True):
                if given is not None:
                    kept[name] = given[layer]
    return CostTable(rule, bits, rows, sizes, phi, w, details or {})
