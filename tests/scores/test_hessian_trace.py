"""HAWQ-V2's sensitivity, against an explicit Hessian."""

from __future__ import annotations

import pytest
import torch

from moesaic.records import ExpertStats, LayerStats
from moesaic.scores.hessian_trace import HessianTrace
from tests.scores.made_up import MadeUp, random_weights


def test_average_trace_of_an_explicit_hessian() -> None:
    """For a linear layer with squared error autograd's Hessian has twice the average trace that the rule uses."""
    random = torch.Generator().manual_seed(0)
    inputs, weight = torch.randn(50, 4, generator=random).double(), torch.randn(3, 4, generator=random).double()
    target = torch.randn(50, 3, generator=random).double()

    def loss(flat: torch.Tensor) -> torch.Tensor:
        return ((inputs @ flat.view(3, 4).T - target) ** 2).sum(dim=1).mean()

    hessian = torch.autograd.functional.hessian(loss, weight.flatten())
    error = torch.tensor([[[0.5, 0.0]]], dtype=torch.float64)  # one expert, one width; down is exact
    moment = inputs.square().mean(dim=0)[None]
    ones = torch.ones(1, dtype=torch.float64)
    stats = LayerStats(50, torch.tensor([50]), ones, ones, moment, torch.ones(1, 3).double(), weight_error=error)
    made = MadeUp({"L": torch.ones(1, 4)}, {"L": [weight]}, measured=ExpertStats({"L": stats}, (2,)))
    average_trace = float(hessian.trace()) / 12
    assert HessianTrace()(made).layers["L"][0][0] == pytest.approx(average_trace / 2 * 0.5)


@pytest.mark.parametrize("by_frequency", [False, True])
def test_sum_over_entries(by_frequency: bool) -> None:
    """Mean square of the input times weight error, gate_up plus down, times the frequency if asked for."""
    weights = random_weights()
    assert weights.measured is not None
    stats = weights.measured.layers["layers.0"]
    assert stats.weight_error is not None
    whole = HessianTrace(by_frequency=by_frequency)(weights)
    parts = HessianTrace(by_frequency=by_frequency, per_matrix=True)(weights)
    for expert in range(6):
        share = float(stats.count[expert]) / stats.tokens if by_frequency else 1.0
        traces = [float(moment[expert].sum()) / moment.shape[1] for moment in (stats.gate_up_moment, stats.down_moment)]
        for width in range(3):
            costs = [share * trace * float(stats.weight_error[expert, width, i]) for i, trace in enumerate(traces)]
            assert parts.layers["layers.0/gate_up"][expert][width] == pytest.approx(costs[0])
            assert parts.layers["layers.0/down"][expert][width] == pytest.approx(costs[1])
            assert whole.layers["layers.0"][expert][width] == pytest.approx(sum(costs))
