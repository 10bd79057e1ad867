"""What rules read of calibration statistics, checked: the layer is there, it has these experts, this was measured."""

from __future__ import annotations

from torch import Tensor

from moesaic.errors import UsageError
from moesaic.records import LayerStats
from moesaic.scores._protocol import ModelWeights

_AGAIN = "give --calibration to measure them anew"


def layer_stats(weights: ModelWeights, layer: str) -> LayerStats:
    """The statistics of one layer.

    Raises:
        UsageError: there are none, or they are of another model.
    """
    layers = weights.stats.layers
    experts = weights.experts[layer]
    if layer not in layers:
        raise UsageError(f"the statistics have no layer {layer}: they are of another model; {_AGAIN}")
    if layers[layer].experts != experts:
        raise UsageError(
            f"the statistics have {layers[layer].experts} experts for {layer}, the model has {experts}: they are of "
            f"another model; {_AGAIN}"
        )
    return layers[layer]


def measured(weights: ModelWeights, layer: str, name: str) -> Tensor:
    """Errors of one layer, by the name of their field. `[experts, widths]` or `[experts, widths, 2]` float64

    Raises:
        UsageError: the run that made the statistics did not measure them.
    """
    found: Tensor | None = getattr(layer_stats(weights, layer), name)
    if found is None or not weights.stats.bits:
        raise UsageError(f"the statistics hold no {name}, which this rule needs; {_AGAIN}")
    return found


def mean_per_token(total: Tensor, stats: LayerStats) -> tuple[float, ...]:
    """Sums over tokens, per token that the router saw. `[experts]`"""
    return tuple((total.double() / max(1, stats.tokens)).tolist())
