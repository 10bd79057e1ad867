"""PMQ's cost, against the formula written out."""

from __future__ import annotations

import pytest

from moesaic.scores.quant_error import QuantError
from tests.oracles.allocation import pmq_objective
from tests.scores.made_up import random_weights


@pytest.mark.parametrize("exponents", [(1.0, 1.5, 1.0), (1.0, 1.0, 2.0)])
@pytest.mark.parametrize("normalised", [False, True])
def test_weighted_costs_are_pmqs(exponents: tuple[float, float, float], normalised: bool) -> None:
    """phi^alpha * w^beta * eps^gamma, phi and w over their sums in the layer."""
    weights = random_weights()
    assert weights.measured is not None
    table = QuantError(normalised=normalised)(weights)
    assert table.raw
    for layer, stats in weights.measured.layers.items():
        assert stats.output_error is not None
        mass = stats.mass if normalised else stats.mass_before
        wanted = pmq_objective(stats.output_error.tolist(), stats.count.tolist(), mass.tolist(), exponents)
        for row, expected in zip(table.weighted(*exponents).layers[layer], wanted, strict=True):
            assert row == pytest.approx(expected, rel=1e-12)


def test_entries_are_measured_apart() -> None:
    """Per matrix, the errors are those of each entry rounded alone, with the expert's factors."""
    weights = random_weights()
    assert weights.measured is not None
    rule = QuantError(per_matrix=True)
    table = rule(weights)
    stats = weights.measured.layers["layers.0"]
    assert stats.output_error_entries is not None
    assert rule.needs_errors == ("output_error_entries",)
    assert table.layers["layers.0/down"][2] == tuple(stats.output_error_entries[2, :, 1].tolist())
    assert table.frequency["layers.0/down"] == table.frequency["layers.0/gate_up"]


def test_an_expert_without_tokens_costs_nothing() -> None:
    """No tokens, no change of the output: every width costs 0."""
    table = QuantError()(random_weights())
    assert all(rows[-2] == (0, 0, 0) for rows in table.weighted(1, 1.5, 1).layers.values())
