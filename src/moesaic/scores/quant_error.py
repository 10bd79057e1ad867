"""Quantization error weighted by use: PMQ's cost (Huang et al., MC, ICLR 2025, arXiv 2410.06270).

The table is raw: `eps[s, b]`, the Frobenius norm of the change of the block's output over all calibration tokens when
expert s alone is rounded to b bits, with the factors `phi_s`, how often s was chosen, and `w_s`, its routing weight.
The allocator weights it by `phi^alpha w^beta eps^gamma`: `pmq` per layer, `global` over all of them. **Large error,
much use = more bits.** An expert that no token chose costs nothing at any width. Cost: statistics, with one more run of
every expert at every width; no weights are read here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moesaic.records import CostTable
from moesaic.scores._protocol import ModelWeights
from moesaic.scores.measured import layer_stats, mean_per_token, measured
from moesaic.scores.tables import tabulate


@dataclass(frozen=True)
class QuantError:
    """Cost = change of the block's output, with frequency and routing weight as factors.

    Attributes:
        normalised: routing weights as applied; else before normalisation, as MC's code has it.
        per_matrix: costs apart for gate_up and down, each rounded alone.
    """

    needs_stats: ClassVar[bool] = True

    normalised: bool = False
    per_matrix: bool = False

    @property
    def needs_errors(self) -> tuple[str, ...]:
        """What calibration has to measure."""
        return ("output_error_entries",) if self.per_matrix else ("output_error",)

    def __call__(self, weights: ModelWeights) -> CostTable:
        """Collect every cost; smaller = better."""
        (name,) = self.needs_errors
        layers, frequency, routing_weight = {}, {}, {}
        for layer in weights.experts:
            stats = layer_stats(weights, layer)
            layers[layer] = measured(weights, layer, name)
            frequency[layer] = mean_per_token(stats.count, stats)
            routing_weight[layer] = mean_per_token(stats.mass if self.normalised else stats.mass_before, stats)
        return tabulate(
            weights,
            "quant_error",
            weights.stats.bits,
            layers,
            frequency=frequency,
            routing_weight=routing_weight,
            details={"quantizer": weights.stats.quantizer},
        )
