"""Activation frequency, by hand."""

from __future__ import annotations

import pytest
import torch

from moesaic.records import ExpertStats, LayerStats
from moesaic.scores.activation_frequency import ActivationFrequency
from tests.scores.made_up import MadeUp


def counted(*counts: int, tokens: int = 100) -> MadeUp:
    """A layer whose experts were chosen so often."""
    zeros = torch.zeros(len(counts), dtype=torch.float64)
    moments = torch.zeros(len(counts), 2, dtype=torch.float64)
    stats = LayerStats(tokens, torch.tensor(counts), zeros, zeros, moments, moments)
    return MadeUp({"L": torch.ones(len(counts), 2)}, measured=ExpertStats({"L": stats}))


def test_share_of_tokens() -> None:
    """75 of 100 tokens score 0.75; an expert that no token chose scores 0."""
    scores = ActivationFrequency()(counted(75, 0, 25))
    assert scores.layers == {"L": (0.75, 0.0, 0.25)}
    assert scores.rule == "activation_frequency"


def test_reversed_direction_has_its_own_name() -> None:
    """With rare_first the seldom chosen come first, under the name rarity."""
    scores = ActivationFrequency(rare_first=True)(counted(75, 5, 25))
    assert scores.layers["L"] == pytest.approx((-0.75, -0.05, -0.25))
    assert scores.rule == "rarity"


def test_a_layer_without_tokens_scores_zero() -> None:
    """Nothing is divided by zero."""
    assert ActivationFrequency()(counted(0, 0, tokens=0)).layers["L"] == (0.0, 0.0)
