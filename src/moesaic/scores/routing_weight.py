"""Routing weight: the mean weight that the router gave to an expert (MC's w, arXiv 2410.06270; "activation weight").

`w_s = (1/N) sum of the routing weights of expert s over the tokens that chose it`, with `N` the tokens that the router
saw. **Large = more bits.** Cost: statistics; no weights are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from moesaic.records import Scores
from moesaic.scores._protocol import ModelWeights
from moesaic.scores.measured import layer_stats, mean_per_token


@dataclass(frozen=True)
class RoutingWeight:
    """Score = mean routing weight.

    Attributes:
        normalised: weights as they were applied, after those of a token's chosen experts were made to sum to 1; else
            before, as MC's code has it. Where a model does not normalise the two are the same.
        routed_only: the mean over the tokens that chose the expert, and not over all: how strongly it is used when it
            is used. An expert that no token chose has 0.
    """

    needs_stats: ClassVar[bool] = True

    normalised: bool = False
    routed_only: bool = False

    def __call__(self, weights: ModelWeights) -> Scores:
        """Score every expert; larger = more routing weight = more bits."""
        layers = {}
        for layer in weights.experts:
            stats = layer_stats(weights, layer)
            mass = stats.mass if self.normalised else stats.mass_before
            if self.routed_only:
                layers[layer] = tuple((mass.double() / torch.clamp(stats.count, min=1)).tolist())
            else:
                layers[layer] = mean_per_token(mass, stats)
        return Scores(rule="routing_weight", layers=layers)
