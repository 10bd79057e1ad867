"""Significance: activation frequency times routing weight (MC, ICLR 2025, arXiv 2410.06270; PMQ without its errors).

`phi_s^alpha * w_s^beta`, with `phi_s` the share of the tokens that chose expert s and `w_s` its mean routing weight
over all tokens. **Large = more bits.** Cost: statistics; no weights are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moesaic.records import Scores
from moesaic.scores._protocol import ModelWeights
from moesaic.scores.measured import layer_stats


@dataclass(frozen=True)
class Significance:
    """Score = frequency times routing weight.

    Attributes:
        alpha, beta: exponents of the frequency and of the routing weight, not negative.
        normalised: routing weights as applied; else before normalisation, as MC's code has it.
    """

    needs_stats: ClassVar[bool] = True

    alpha: float = 1.0
    beta: float = 1.0
    normalised: bool = False

    def __call__(self, weights: ModelWeights) -> Scores:
        """Score every expert; larger = used more = more bits."""
        layers = {}
        for layer in weights.experts:
            stats = layer_stats(weights, layer)
            phi = stats.count.double() / max(1, stats.tokens)
            w = (stats.mass if self.normalised else stats.mass_before).double() / max(1, stats.tokens)
            layers[layer] = tuple((phi**self.alpha * w**self.beta).tolist())
        return Scores(rule="significance", layers=layers)
