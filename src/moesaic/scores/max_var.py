"""Maximum intra-neuron variance (Chowdhury et al., ICLR 2026, arXiv 2604.06515, section on MaxVar).

`MaxVar_s = max_r (1/d) Σ_i (W1[r, i] - mean_i W1[r, :])²`: the largest variance, over the rows of the expert's first
layer, of a row's weights. A wide row has a coarse grid, so **large = more bits**. For gated experts W1 is the gate
projection, as in the paper's code (which, unlike its text and unlike this rule, takes the variance of the row with the
largest norm). Cost: reads the first layer of every expert.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moesaic.records import Scores
from moesaic.scores._protocol import ModelWeights


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
    return float(torch.var(weight.float(), dim=1, correction=0).max())
