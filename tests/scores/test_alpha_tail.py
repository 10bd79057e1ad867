"""The tail exponent: against a naive computation, and on spectra whose exponent is known."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import torch

from moesaic.scores.alpha_tail import AlphaTail, AlphaTailCost, tail_exponent
from tests.scores.made_up import MadeUp, random_weights


def naive_exponent(weight: torch.Tensor) -> float:
    """All blocks of 128 x 128 with NumPy's singular values, then Hill's formula term by term."""
    values = []
    for row in range(0, weight.shape[0] - 127, 128):
        for column in range(0, weight.shape[1] - 127, 128):
            block = weight[row : row + 128, column : column + 128].double().numpy()
            values += [s * s for s in np.linalg.svd(block, compute_uv=False)]
    values.sort(reverse=True)
    k = max(10, int(0.1 * len(values)))
    return 1 + k / sum(math.log(value / values[k]) for value in values[:k])


@pytest.mark.parametrize("shape", [(128, 128), (256, 384), (300, 200)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_naive_value(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """The same exponent as term by term, rows and columns beyond the last whole block left out."""
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    assert tail_exponent(weight) == pytest.approx(naive_exponent(weight), rel=1e-9)


@pytest.mark.parametrize("exponent", [2.0, 3.0, 5.0])
def test_power_law_is_found(exponent: float) -> None:
    """Eigenvalues i^(-1/(a-1)) have a tail of exponent a: Hill's estimate comes near it, and ranks by it."""
    eigenvalues = torch.arange(1, 129).double() ** (-1 / (exponent - 1))
    q, _ = torch.linalg.qr(torch.randn(128, 128, generator=torch.Generator().manual_seed(0)).double())
    assert tail_exponent(q * eigenvalues.sqrt()) == pytest.approx(exponent, rel=0.15)


def test_scale_does_not_matter() -> None:
    """The exponent is of the shape of the spectrum."""
    weight = torch.randn(64, 200, generator=torch.Generator().manual_seed(2))
    assert tail_exponent(weight * 1e-6) == pytest.approx(tail_exponent(weight), rel=1e-6)


@pytest.mark.parametrize("weight", [torch.zeros(130, 130), torch.eye(128), torch.ones(4, 4), torch.ones(1, 5)])
def test_matrices_without_a_tail(weight: torch.Tensor) -> None:
    """Zeros, equal eigenvalues, rank one, a single row: finite, and as far from a heavy tail as can be."""
    assert tail_exponent(weight) == 1000.0


def test_blocks_are_chosen_by_the_seed() -> None:
    """More than 256 blocks: another seed takes others, the same seed the same."""
    weight = torch.randn(128, 128 * 300, generator=torch.Generator().manual_seed(0))
    assert tail_exponent(weight, 1) == tail_exponent(weight, 1) != tail_exponent(weight, 2)
    rule = AlphaTail(seed=1)
    assert rule(MadeUp({"L": torch.ones(1, 2)}, {"L": [weight]})).layers["L"][0] == pytest.approx(
        -(tail_exponent(weight, 1) + tail_exponent(weight.T.contiguous(), 1)) / 2
    )


def test_heavy_tail_comes_first() -> None:
    """A small exponent is a large score."""
    q, _ = torch.linalg.qr(torch.randn(128, 128, generator=torch.Generator().manual_seed(0)).double())
    heavy, light = (q * torch.arange(1, 129).double() ** (-power) for power in (1.0, 0.1))
    scores = AlphaTail()(MadeUp({"L": torch.ones(2, 2)}, {"L": [light, heavy]})).layers["L"]
    assert scores[1] > scores[0]


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_costs_follow_the_formula(gamma: float) -> None:
    """(median alpha / alpha)^gamma * Var(W) * 4^-b, entry by entry, and summed over an expert's matrices."""
    weights = random_weights()
    matrices = [
        m for layer in weights.experts for i in range(6) for m in (weights.first[layer][i], weights.second[layer][i])
    ]
    median = statistics.median_low([tail_exponent(matrix) for matrix in matrices])
    whole = AlphaTailCost(gamma=gamma, bits=(2, 4))(weights)
    parts = AlphaTailCost(gamma=gamma, bits=(2, 4), per_matrix=True)(weights)
    for expert in range(6):
        costs = []
        for entry, matrix in (
            ("gate_up", weights.first["layers.1"][expert]),
            ("down", weights.second["layers.1"][expert]),
        ):
            spread = float(np.var(matrix.double().numpy()))
            costs.append([(median / tail_exponent(matrix)) ** gamma * spread * 4.0**-bits for bits in (2, 4)])
            assert parts.layers[f"layers.1/{entry}"][expert] == pytest.approx(costs[-1], rel=1e-6)
        assert whole.layers["layers.1"][expert] == pytest.approx(
            [sum(pair) for pair in zip(*costs, strict=True)], rel=1e-6
        )


def test_widths_that_cannot_be_packed_are_refused() -> None:
    """A made-up width is an error and not a column of the table."""
    with pytest.raises(ValueError, match="ascending widths"):
        AlphaTailCost(bits=(2, 5))


def test_seed_of_the_costs() -> None:
    """The knob reaches the choice of blocks."""
    weight = torch.randn(128, 128 * 300, generator=torch.Generator().manual_seed(0))
    narrow = torch.randn(128, 128, generator=torch.Generator().manual_seed(1))
    weights = MadeUp({"L": torch.ones(2, 2)}, {"L": [weight, narrow]})
    assert AlphaTailCost(seed=1)(weights).layers != AlphaTailCost(seed=2)(weights).layers


def test_threads_change_nothing() -> None:
    """Costs are the same to the last bit for every number of threads, as the same command must give the same bytes."""
    made = torch.Generator().manual_seed(0)
    first = {"L": [torch.randn(512, 384, generator=made)]}
    weights = MadeUp({"L": torch.randn(1, 384, generator=made)}, first)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(AlphaTailCost()(weights).layers)
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]
