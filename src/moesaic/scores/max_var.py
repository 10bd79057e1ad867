"""Maximum intra-neuron variance (Chowdhury et al., ICLR 2026, arXiv 2604.06515, section on MaxVar).

`MaxVar_s = max_r (1/d) Σ_i (W1[r, i] - mean_i W1[r, :])²`: the largest variance, over the rows of the expert's first
layer, of a row's weights. A wide row has a coarse grid, so **large = more bits**. For gated experts W1 is the gate
projection, as in the paper's code (which, unlike its text and unlike this rule, takes the variance of the row with the
largest norm). Cost: reads the first layer of every expert.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from moesaic.records import Scores
from moesaic.scores._protocol import ModelWeights

_CHUNK = 1 << 19  # weights worked on at a time, so that the passes stay in cache


@dataclass(frozen=True)
class MaxVar:
    """Score = the largest population variance over the rows of the first-layer weight."""

    def __call__(self, weights: ModelWeights) -> Scores:
        """Score every expert; larger = wider weights = more bits."""
        layers = {
            layer: tuple(max_row_variance(weights.first_layer(layer, expert)) for expert in range(count))
            for layer, count in weights.experts.items()
        }
        return Scores(rule="max_var", layers=layers)


def max_row_variance(weight: Tensor) -> float:
    """Largest population variance of a row. `[rows, columns]` -> number"""
    largest = 0.0
    step = max(1, _CHUNK // max(1, weight.shape[1]))
    for start in range(0, weight.shape[0], step):
        centred = weight[start : start + step].float()
        centred = centred - centred.mean(dim=1, keepdim=True)
        variance = centred.square_().mean(dim=1)
        largest = max(largest, float(variance.max()))  # a NaN has been refused by whoever read the weight
    return largest
