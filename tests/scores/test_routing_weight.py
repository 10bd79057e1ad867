"""Routing weight, by hand."""

from __future__ import annotations

import pytest
import torch

from moesaic.records import ExpertStats, LayerStats
from moesaic.scores.routing_weight import RoutingWeight
from tests.scores.made_up import MadeUp


def routed() -> MadeUp:
    """Of 10 tokens, 8 gave 2.0 (before) and 4.0 (as applied) to expert 0; one gave 0.5 and 0.9 to expert 1."""
    moments = torch.zeros(3, 2, dtype=torch.float64)
    before, applied = (torch.tensor(mass, dtype=torch.float64) for mass in ([2.0, 0.5, 0.0], [4.0, 0.9, 0.0]))
    stats = LayerStats(10, torch.tensor([8, 1, 0]), before, applied, moments, moments)
    return MadeUp({"L": torch.ones(3, 2)}, measured=ExpertStats({"L": stats}))


@pytest.mark.parametrize(
    ("knobs", "wanted"),
    [
        ({}, (0.2, 0.05, 0.0)),
        ({"normalised": True}, (0.4, 0.09, 0.0)),
        ({"routed_only": True}, (0.25, 0.5, 0.0)),
        ({"routed_only": True, "normalised": True}, (0.5, 0.9, 0.0)),
    ],
)
def test_mean_routing_weight(knobs: dict[str, bool], wanted: tuple[float, ...]) -> None:
    """Over all tokens or over the expert's own; before or after normalisation; 0 for an expert without tokens."""
    assert RoutingWeight(**knobs)(routed()).layers["L"] == pytest.approx(wanted)
