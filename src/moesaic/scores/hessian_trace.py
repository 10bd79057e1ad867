"""Average Hessian trace times squared weight error: HAWQ-V2's sensitivity (NeurIPS 2020, arXiv 1911.03852).

`Omega[s, b] = sum over gate_up and down of  (Tr H / n) * ||Q_b(W) - W||_F^2`. For the squared error of a linear layer's
output the Hessian of every row is the second moment of its input, so that the average trace is the mean square of that
input (up to a factor that all experts share). **Large = more bits.** Costs are finished. Cost: statistics, with every
expert rounded at every width; no weights are read here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from moesaic.records import CostTable
from moesaic.scores._protocol import ModelWeights
from moesaic.scores.measured import layer_stats, measured
from moesaic.scores.tables import tabulate


@dataclass(frozen=True)
class HessianTrace:
    """Cost = mean square of a matrix' input times its squared rounding error.

    Attributes:
        by_frequency: times the share of the tokens that chose the expert: the trace of the mean over all tokens, and
            not over the expert's own.
        per_matrix: costs apart for gate_up and down.
    """

    needs_stats: ClassVar[bool] = True
    needs_errors: ClassVar[tuple[str, ...]] = ("weight_error",)

    by_frequency: bool = False
    per_matrix: bool = False

    def __call__(self, weights: ModelWeights) -> CostTable:
        """Work out every cost; smaller = better."""
        layers = {}
        for layer in weights.experts:
            stats = layer_stats(weights, layer)
            moments = (stats.gate_up_moment, stats.down_moment)
            trace = torch.stack([moment.double().mean(dim=1) for moment in moments], dim=-1)  # (E, 2)
            if self.by_frequency:
                trace = trace * (stats.count.double() / max(1, stats.tokens))[:, None]
            cost = trace[:, None, :] * measured(weights, layer, "weight_error")  # (E, W, 2)
            layers[layer] = cost if self.per_matrix else cost.sum(dim=-1)
        details = {"quantizer": weights.stats.quantizer}
        return tabulate(weights, "hessian_trace", weights.stats.bits, layers, details=details)
