"""The tail of a matrix' spectrum as a measure of how much it learned (AlphaQ, arXiv 2606.04980). Uses no data.

With `l_1 >= l_2 >= ...` the squared singular values of up to 256 blocks of 128 x 128 weights together, and `k` a tenth
of them (at least 10), Hill's estimate of the exponent of their power law is

    alpha = 1 + k / sum_{i <= k} ln(l_i / l_{k+1})

A small alpha, a heavy tail, is a sign of a well trained matrix, so **small alpha = more bits**. As costs, of a matrix W
at b bits: `(median alpha / alpha)^gamma * Var(W) * 2^(-2b)`; those of the matrices of an expert (or of an entry) are
added. Cost: reads every expert; the spectra and the variance take 0.6 s for 14336 x 4096.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moesaic.lanes import lanes
from moesaic.records import WIDTHS, CostTable, Scores
from moesaic.scores._protocol import ModelWeights
from moesaic.scores.tables import tabulate

BLOCK, BLOCKS = 128, 256
_LEAST, _SHARE = 10, 10  # at least 10 eigenvalues, else one in 10
_NO_TAIL = 1e3  # stands for infinity: all eigenvalues of the tail are alike, or there are none


@dataclass(frozen=True)
class AlphaTail:
    """Score = minus the tail exponent, averaged over the expert's matrices.

    Attributes:
        seed: of the choice of blocks in matrices that have more than 256.
    """

    seed: int = 0

    def __call__(self, weights: ModelWeights) -> Scores:
        """Score every expert; larger = heavier tail = more bits."""
        layers = {}
        for layer, count in weights.experts.items():
            scores = []
            for expert in range(count):
                alphas = [alpha for alpha, _ in _measured(weights, layer, expert, self.seed)]
                scores.append(-sum(alphas) / len(alphas))
            layers[layer] = tuple(scores)
        return Scores(rule="alpha_tail", layers=layers, details={"seed": self.seed})


@dataclass(frozen=True)
class AlphaTailCost:
    """Cost = `(median alpha / alpha)^gamma * Var(W) * 2^(-2b)`.

    Attributes:
        bits: the widths.
        gamma: exponent; 0 leaves the variance alone.
        seed: of the choice of blocks.
        per_matrix: costs apart for gate_up and down.
    """

    bits: tuple[int, ...] = WIDTHS
    gamma: float = 1.0
    seed: int = 0
    per_matrix: bool = False

    def __post_init__(self) -> None:
        if not self.bits or list(self.bits) != sorted(set(self.bits)) or not set(self.bits) <= set(WIDTHS):
            raise ValueError(f"alpha_tail needs ascending widths out of {WIDTHS}, got {self.bits}")

    def __call__(self, weights: ModelWeights) -> CostTable:
        """Work out every cost; smaller = better."""
        alphas: dict[str, list[list[float]]] = {}
        spreads: dict[str, list[list[float]]] = {}
        for layer, count in weights.experts.items():
            alphas[layer], spreads[layer] = [], []
            for expert in range(count):
                found = _measured(weights, layer, expert, self.seed)
                alphas[layer].append([alpha for alpha, _ in found])
                spreads[layer].append([spread for _, spread in found])
        median = float(torch.tensor([a for rows in alphas.values() for row in rows for a in row]).median())
        noise = torch.tensor([4.0**-width for width in self.bits], dtype=torch.float64)
        layers = {}
        for layer, rows in alphas.items():
            alpha, spread = (torch.tensor(each, dtype=torch.float64) for each in (rows, spreads[layer]))
            cost = (median / alpha) ** self.gamma * spread  # (E, M)
            entries = torch.stack([cost[:, :-1].sum(dim=1), cost[:, -1]], dim=-1)  # (E, 2): down is the last
            table = entries[:, None, :] * noise[:, None]  # (E, W, 2)
            layers[layer] = table if self.per_matrix else table.sum(dim=-1)
        details = {"gamma": self.gamma, "seed": self.seed, "median_alpha": median}
        return tabulate(weights, "alpha_tail", self.bits, layers, details=details)


def _measured(weights: ModelWeights, layer: str, expert: int, seed: int) -> list[tuple[float, float]]:
    """Tail exponent and variance of an expert's matrices, the same for every number of threads."""
    with lanes() as side_by_side:
        return side_by_side(
            lambda matrix: (tail_exponent(matrix, seed), _variance(matrix)),
            weights.expert(layer, expert).matrices().values(),
        )


def tail_exponent(weight: Tensor, seed: int = 0) -> float:
    """Hill's estimate for a matrix `[out, in]`; 1000 where there is no tail, as in a matrix of zeros."""
    spectrum = _spectrum(weight, seed)
    count = min(max(_LEAST, len(spectrum) // _SHARE), len(spectrum) - 1)
    if count < 1 or not float(spectrum[count]) > 0:
        return _NO_TAIL
    total = float((spectrum[:count] / spectrum[count]).log().sum())
    return min(1 + count / total, _NO_TAIL) if total > 0 else _NO_TAIL


def _spectrum(weight: Tensor, seed: int) -> Tensor:
    """Squared singular values of the blocks together, largest first. `[values]` float64"""
    rows, columns = (min(BLOCK, size) for size in weight.shape)
    down, across = weight.shape[0] // rows, weight.shape[1] // columns
    places = torch.arange(down * across)
    if len(places) > BLOCKS:
        places = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))[:BLOCKS].sort().values
    blocks = weight[: down * rows, : across * columns].view(down, rows, across, columns).transpose(1, 2)
    chosen = blocks[places // across, places % across].double()  # (blocks, rows, columns)
    values = torch.linalg.eigvalsh(chosen @ chosen.mT if rows <= columns else chosen.mT @ chosen)
    return values.flatten().clamp(min=0).sort(descending=True).values


def _variance(weight: Tensor) -> float:
    return float(weight.double().var(correction=0))
