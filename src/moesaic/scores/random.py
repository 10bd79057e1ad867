"""Random scores: the control that every rule has to beat. Reads nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from moesaic.records import Scores
from moesaic.scores._protocol import ModelWeights


@dataclass(frozen=True)
class Random:
    """Score = a uniform random number.

    Attributes:
        seed: of the generator; the same seed gives the same scores.
    """

    seed: int = 0

    def __call__(self, weights: ModelWeights) -> Scores:
        """Score every expert at random."""
        generator = torch.Generator().manual_seed(self.seed)
        layers = {
            layer: tuple(torch.rand(count, generator=generator, dtype=torch.float64).tolist())
            for layer, count in weights.experts.items()
        }
        return Scores(rule="random", layers=layers, details={"seed": self.seed})
