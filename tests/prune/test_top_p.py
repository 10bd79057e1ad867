"""The smallest set with a share of the mass."""

from __future__ import annotations

import torch

from moesaic.prune import TopP
from moesaic.prune.decide import keep
from tests.prune.made_up import of_weights


def test_keeps_the_smallest_set_that_reaches_the_mass() -> None:
    """With p = 0.7 of the mass: 0.5 is not enough, 0.5 + 0.3 is; and one of 0.8 stands alone."""
    routed = of_weights([[0.5, 0.3, 0.2], [0.8, 0.15, 0.05], [0.4, 0.2, 0.2]])
    kept = keep(TopP()(routed, {}), 1 - 0.7)
    assert kept.tolist() == [[True, True, False], [True, False, False], [True, True, False]]


def test_mass_counts_from_the_top_k() -> None:
    """The share is of what the chosen experts weigh together, so that unnormalised weights give the same."""
    rows = [[0.5, 0.3, 0.2], [0.8, 0.15, 0.05]]
    half = [[value / 2 for value in row] for row in rows]
    torch.testing.assert_close(TopP()(of_weights(rows), {}), TopP()(of_weights(half), {}))
