"""Activation frequency: how often the router chose an expert (MC's phi, arXiv 2410.06270; arXiv 2604.06515 compares).

`phi_s = n_s / N`, with `n_s` the calibration tokens routed to expert s of the `N` that the router saw. By default
**frequent = more bits**, as in MC and in most of the literature: what is used often does most damage. `rare_first`
turns it round, which is the direction of the router-norm rule: rare experts learned what few tokens show.

Cost: statistics; no weights are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moesaic.records import Scores
from moesaic.scores._protocol import ModelWeights
from moesaic.scores.measured import layer_stats, mean_per_token


@dataclass(frozen=True)
class ActivationFrequency:
    """Score = share of the tokens that chose the expert.

    Attributes:
        rare_first: minus that share; the rule is then called `rarity`.
    """

    needs_stats: ClassVar[bool] = True

    rare_first: bool = False

    def __call__(self, weights: ModelWeights) -> Scores:
        """Score every expert; larger = chosen more often (or less often) = more bits."""
        sign = -1 if self.rare_first else 1
        layers = {}
        for layer in weights.experts:
            stats = layer_stats(weights, layer)
            layers[layer] = mean_per_token(sign * stats.count, stats)
        return Scores(rule="rarity" if self.rare_first else "activation_frequency", layers=layers)
