"""Kurtosis of an expert's weights: how heavy the tails of their distribution are. Uses no data.

`kurt(W) = mean((w - mean w)^4) / var(w)^2` of each matrix: 3 for a normal distribution, 1.8 for a uniform one. The
score is the mean over the expert's matrices, weighted by their number of weights. Few large weights stretch the grid on
which all others are rounded (Shkolnik et al., "Robust Quantization", NeurIPS 2020, arXiv 2002.07686, train towards low
kurtosis for that reason), so **large = more bits**. Cost: reads every expert.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moesaic.records import Scores
from moesaic.scores._protocol import ModelWeights

_CHUNK = 1 << 19  # weights worked on at a time, so that the passes stay in cache


@dataclass(frozen=True)
class Kurtosis:
    """Score = mean kurtosis of the matrices."""

    def __call__(self, weights: ModelWeights) -> Scores:
        """Score every expert; larger = heavier tails = more bits."""
        layers = {}
        for layer, count in weights.experts.items():
            scores = []
            for expert in range(count):
                matrices = list(weights.expert(layer, expert).matrices().values())
                total = sum(matrix.numel() for matrix in matrices)
                scores.append(sum(kurtosis(matrix) * matrix.numel() / total for matrix in matrices))
            layers[layer] = tuple(scores)
        return Scores(rule="kurtosis", layers=layers)


def kurtosis(weight: Tensor) -> float:
    """Fourth standardised moment over all entries of a tensor; 1, the smallest there is, where all are equal."""
    parts = torch.split(weight.contiguous().view(-1), _CHUNK)
    mean = sum(float(part.double().sum()) for part in parts) / weight.numel()
    second = fourth = 0.0
    size = float(weight.abs().max()) or 1.0  # weights as shares of it, so that no power leaves the range of a double
    for part in parts:
        square = ((part.double() - mean) / size).square_()
        second += float(square.sum())
        fourth += float(torch.dot(square, square))
    spread = second / weight.numel()
    return fourth / weight.numel() / spread**2 if spread > 1e-24 else 1.0
