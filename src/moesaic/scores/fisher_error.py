"""Error weighted by the loss gradient: GEMQ's coefficient (ICML 2026, arXiv 2605.23078).

`D[s, b] = sum over tokens and channels of g^2 (change of the block's output, expert s alone rounded to b bits)^2`,
with `g` the gradient of the language-model loss at the layer's output: the loss' increase by a diagonal Fisher
approximation. **Large = more bits.** The costs are finished and comparable between layers, which is what `global`
wants. An expert that no token chose costs nothing at any width. Cost: statistics, with a backward pass; no weights are
read here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moesaic.records import CostTable
from moesaic.scores._protocol import ModelWeights
from moesaic.scores.measured import measured
from moesaic.scores.tables import tabulate


@dataclass(frozen=True)
class FisherError:
    """Cost = squared change of the block's output, weighted by the squared gradient.

    Attributes:
        per_matrix: costs apart for gate_up and down, each rounded alone.
    """

    needs_stats: ClassVar[bool] = True

    per_matrix: bool = False

    @property
    def needs_errors(self) -> tuple[str, ...]:
        """What calibration has to measure."""
        return ("fisher_entries",) if self.per_matrix else ("fisher",)

    def __call__(self, weights: ModelWeights) -> CostTable:
        """Collect every cost; smaller = better."""
        (name,) = self.needs_errors
        layers = {layer: measured(weights, layer, name) for layer in weights.experts}
        details = {"quantizer": weights.stats.quantizer}
        return tabulate(weights, "fisher_error", weights.stats.bits, layers, details=details)
