"""GEMQ's coefficient: the statistics' own figures, in the places where the allocator looks."""

from __future__ import annotations

import pytest

from moesaic.scores.fisher_error import FisherError
from tests.scores.made_up import random_weights


@pytest.mark.parametrize("per_matrix", [False, True])
def test_costs_are_finished(per_matrix: bool) -> None:
    """The table holds the measured coefficients with nothing left to weight."""
    weights = random_weights()
    assert weights.measured is not None
    rule = FisherError(per_matrix=per_matrix)
    table = rule(weights)
    assert not table.raw
    assert table.bits == weights.measured.bits
    assert table.details["quantizer"] == weights.measured.quantizer
    stats = weights.measured.layers["layers.1"]
    if per_matrix:
        assert rule.needs_errors == ("fisher_entries",)
        assert stats.fisher_entries is not None
        assert table.layers["layers.1/gate_up"][3] == tuple(stats.fisher_entries[3, :, 0].tolist())
    else:
        assert rule.needs_errors == ("fisher",)
        assert stats.fisher is not None
        assert table.layers["layers.1"][3] == tuple(stats.fisher[3].tolist())
